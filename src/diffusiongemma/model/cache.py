"""Where keys and values of encoded tokens live. The canvas never enters: its keys and values last one pass.

Shapes: B batch, T new tokens, S slots, N heads, K key-value heads, H head size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma import kernels
from diffusiongemma.errors import InputError
from diffusiongemma.model.config import TextConfig

__all__ = ["Context", "KVCache", "Part", "Role", "Rows", "SharedPrompt"]


class Role(Enum):
    """Which of its two roles the stack plays in a pass."""

    ENCODE = "encode"
    DENOISE = "denoise"


class Context(ABC):
    """What a layer's attention needs of the encoded tokens."""

    @abstractmethod
    def attend(self, layer: int, role: Role, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of new tokens over the context and themselves, ``[B, T, N * H]``; encoding stores their keys and values."""


class _Stored(Context):
    """A context with keys and values of its own."""

    @abstractmethod
    def append(self, layer: int, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values; return those of the whole context ``[B, S, K, H]``."""

    @abstractmethod
    def beside(self, layer: int, k_BLKH: Tensor, v_BLKH: Tensor) -> tuple[Tensor, Tensor]:
        """The context's keys and values with the canvas's behind them; nothing of it stays."""

    def attend(self, layer: int, role: Role, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, mask: Tensor | None) -> Tensor:
        """See ``Context``."""
        k, v = (self.append if role is Role.ENCODE else self.beside)(layer, k_BTKH, v_BTKH)
        return kernels.attention(q_BTNH, k, v, mask)


class KVCache(_Stored):
    """Preallocated keys and values, one slot a token, each row with a length of its own.

    Rows of one batch may stand at different lengths; slots behind a row's length hold leftovers that masks hide and the
    next tokens overwrite. Sliding layers keep every slot too: the window is the mask's business (decision 0002).

    Attributes:
        lengths: ``[B]`` int64, tokens each row has stored.
        max_length: slots a row has.
    """

    def __init__(self, config: TextConfig, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.max_length = max_length
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)
        shapes = [(batch_size, max_length, layer.num_key_value_heads, layer.head_dim) for layer in config.layers]
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self._used, self._even = 0, True
        self._slots = torch.empty(0)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.lengths.shape[0]

    @staticmethod
    def bytes_of(config: TextConfig, slots: int, dtype: torch.dtype) -> int:
        """Memory of a row with so many slots."""
        return sum(2 * slots * layer.num_key_value_heads * layer.head_dim for layer in config.layers) * dtype.itemsize

    @property
    def bytes(self) -> int:
        """Memory of all rows."""
        return 2 * sum(keys.numel() * keys.element_size() for keys in self._keys)

    @property
    def used(self) -> int:
        """Slots a pass has to look at: the longest row's length."""
        return self._used

    @property
    def even(self) -> bool:
        """Whether every row has the same length."""
        return self._even

    def select(self, rows: Sequence[int], max_length: int) -> "KVCache":
        """A copy of some rows, in the order given, with ``max_length`` slots: at least ``used``."""
        assert max_length >= self.used
        picked = copy(self)
        picked.max_length = max_length
        picked.lengths = self.lengths[rows]
        picked._keys = [keys[rows, :max_length] for keys in self._keys]
        picked._values = [values[rows, :max_length] for values in self._values]
        picked._measure()
        return picked

    def reserve(self, tokens: int) -> int:
        """Make ready for ``tokens`` new tokens a row; returns the number of slots that attention will read.

        Raises:
            InputError: a row has no room left.
        """
        if self._used + tokens > self.max_length:
            raise InputError(
                f"the cache holds {self.max_length} tokens a row and the longest row has {self._used}: {tokens} more do not "
                "fit; make it larger with new_cache(max_length=...)"
            )
        self._slots = self.lengths[:, None] + torch.arange(tokens, device=self.lengths.device)
        return self._used + tokens

    def append(self, layer: int, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor]:
        """Write at each row's own length (after ``reserve``); lengths change only in ``advance``."""
        rows = torch.arange(self.batch_size, device=self.lengths.device)[:, None]
        self._keys[layer][rows, self._slots] = k_BTKH
        self._values[layer][rows, self._slots] = v_BTKH
        end = self._used + k_BTKH.shape[1]
        return self._keys[layer][:, :end], self._values[layer][:, :end]

    def beside(self, layer: int, k_BLKH: Tensor, v_BLKH: Tensor) -> tuple[Tensor, Tensor]:
        """The used slots with the canvas's keys and values behind them: in the free slots, where there are enough."""
        keys, values, used = self._keys[layer], self._values[layer], self._used
        end = used + k_BLKH.shape[1]
        if end > self.max_length:
            return torch.cat((keys[:, :used], k_BLKH), dim=1), torch.cat((values[:, :used], v_BLKH), dim=1)
        keys[:, used:end], values[:, used:end] = k_BLKH, v_BLKH
        return keys[:, :end], values[:, :end]

    def advance(self, lengths_B: Tensor) -> None:
        """Count the tokens each row has really gained; the rest of what was written is padding."""
        self.lengths = self.lengths + lengths_B
        self._measure()

    def read(self, start: int, end: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of each layer's keys and values ``[B, end - start, K, H]`` of stored tokens."""
        return [(k[:, start:end].clone(), v[:, start:end].clone()) for k, v in zip(self._keys, self._values, strict=True)]

    def write(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Append what ``read`` gave, of another cache, to every row; all of them must stand at the same length."""
        start, end = self._used, self._used + layers[0][0].shape[1]
        assert self._even and end <= self.max_length
        for keys, values, (k, v) in zip(self._keys, self._values, layers, strict=True):
            keys[:, start:end], values[:, start:end] = k, v
        self.advance(torch.full_like(self.lengths, end - start))

    def _measure(self) -> None:
        """What the host must know of the lengths; once a canvas, since it waits for the device."""
        lengths = self.lengths.tolist()
        self._used, self._even = max(lengths, default=0), len(set(lengths)) <= 1


class SharedPrompt(_Stored):
    """The context of a training pass: keys and values that gradients flow through, one prompt for several canvases.

    Args:
        prompt_length: tokens of the prompt; what was encoded behind them (the answer, for the causal loss) is not shown
            to the canvas.
    """

    def __init__(self, prompt_length: int) -> None:
        self._prompt_length = prompt_length
        self._kv: list[tuple[Tensor, Tensor]] = []

    def append(self, layer: int, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor]:
        """Keep this layer's keys and values; each layer comes once, in order."""
        self._kv.append((k_BTKH[:, : self._prompt_length], v_BTKH[:, : self._prompt_length]))
        return k_BTKH, v_BTKH

    def beside(self, layer: int, k_BLKH: Tensor, v_BLKH: Tensor) -> tuple[Tensor, Tensor]:
        """The prompt's keys and values, repeated for each of its canvases, with the canvas's behind them."""
        k_ctx, v_ctx = self._kv[layer]
        copies = k_BLKH.shape[0] // k_ctx.shape[0]
        return (
            torch.cat((k_ctx.repeat_interleave(copies, 0), k_BLKH), dim=1),
            torch.cat((v_ctx.repeat_interleave(copies, 0), v_BLKH), dim=1),
        )


class Part(NamedTuple):
    """One row of a pass over rows of different lengths.

    Attributes:
        context: the row's own.
        tokens: how many are new.
        masks: layer type to mask.
    """

    context: Context
    tokens: int
    masks: dict[str, Tensor | None]


class Rows(Context):
    """Rows laid one behind the other in one sequence ``[1, T]``: only attention looks at each apart, beside its own context.

    Nothing is padded to the longest row, and what a row computes has the same shapes whatever its neighbours are.

    Args:
        kinds: of the layers.
        parts: the rows, in order. Tokens of the sequence behind the last of them are filler, attended by nothing.
    """

    def __init__(self, kinds: Sequence[str], parts: Sequence[Part]) -> None:
        self._kinds, self._parts = kinds, parts

    def attend(self, layer: int, role: Role, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, mask: Tensor | None) -> Tensor:
        """Each row's own attention; ``mask`` is not used, the rows have their own."""
        out, at = [], 0
        for context, tokens, masks in self._parts:
            q, k, v = (x[:, at : at + tokens] for x in (q_BTNH, k_BTKH, v_BTKH))
            out.append(context.attend(layer, role, q, k, v, masks[self._kinds[layer]]))
            at += tokens
        if at < q_BTNH.shape[1]:
            out.append(q_BTNH[:, at:].flatten(2))
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)
