"""Where keys and values of encoded tokens live: row by row, layer by layer, and no more of them than somebody sees.

A full layer keeps all tokens, in pages; a sliding layer the last ``sliding_window - 1`` and room for what is encoded next. Both
grow as tokens come. New tokens are laid after those that are there, and stay where the row advances over them: a canvas never does.

Shapes: B batch, T new tokens, S keys, K key-value heads, H head size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from diffusiongemma.errors import InputError
from diffusiongemma.kernels import KeysValues
from diffusiongemma.model.config import LayerConfig, TextConfig

__all__ = ["BLOCK", "PAGE", "KVCache", "RowCache", "prefill_chunk"]

CHUNK, CHUNK_CPU = 1024, 128
PAGE = 4096
"""Tokens of a page of a full layer. A context that fits into one is read in one piece with the new tokens; of longer ones each page
is read alone (``kernels.attend``), so that nothing is ever moved to make room for more."""
BLOCK = 256
"""Tokens that memory grows by."""


def prefill_chunk(device: torch.device) -> int:
    """Prompt tokens of a row in one pass: the same whatever else runs, so that the bits are."""
    return CHUNK_CPU if device.type == "cpu" else CHUNK


class _LayerCache(ABC):
    """Keys and values of one layer of one row.

    Args:
        layer: its sizes.
        max_length: tokens it is to hold; a canvas after the last of them makes it larger.
        dtype: of the memory.
        device: of the memory.
    """

    def __init__(self, layer: LayerConfig, max_length: int, dtype: torch.dtype, device: torch.device) -> None:
        self._heads, self._max_length, self._dtype, self._device = layer, max_length, dtype, device

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Memory it has taken."""

    @abstractmethod
    def extended(self, at: int, k_BTKH: Tensor, v_BTKH: Tensor, *, keep: bool) -> list[KeysValues]:
        """What new tokens at position ``at`` attend to, themselves last; written down for good only with ``keep``."""

    @abstractmethod
    def read(self, start: int, end: int) -> KeysValues:
        """A copy of stored tokens."""

    @abstractmethod
    def fork(self, length: int) -> "_LayerCache":
        """One that goes on from the same ``length`` tokens without changing these."""

    def _empty(self, slots: int) -> KeysValues:
        # Made in inference mode, they could not be written to outside of it.
        with torch.inference_mode(False):
            shape = (1, slots, self._heads.num_key_value_heads, self._heads.head_dim)
            return (
                torch.empty(shape, dtype=self._dtype, device=self._device),
                torch.empty(shape, dtype=self._dtype, device=self._device),
            )


class _Pages(_LayerCache):
    """All tokens, ``PAGE`` in each page but the last, which grows by ``BLOCK``."""

    def __init__(self, layer: LayerConfig, max_length: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layer, max_length, dtype, device)
        self._pages: list[KeysValues] = []

    @property
    def bytes(self) -> int:
        """See ``_LayerCache``."""
        return sum(_bytes(page) for page in self._pages)

    def extended(self, at: int, k_BTKH: Tensor, v_BTKH: Tensor, *, keep: bool) -> list[KeysValues]:
        """One piece where it all fits into one page, else a piece a page and the new tokens as another."""
        end = at + k_BTKH.shape[1]
        if end <= PAGE:
            self.write(at, k_BTKH, v_BTKH)
            k, v = self._pages[0]
            return [(k[:, :end], v[:, :end])]
        before = [(k[:, : at - start], v[:, : at - start]) for start, (k, v) in self._from(0, at)]
        if keep:
            self.write(at, k_BTKH, v_BTKH)
        return [*before, (k_BTKH, v_BTKH)]

    def write(self, at: int, k_BTKH: Tensor, v_BTKH: Tensor) -> None:
        """Store tokens from position ``at``."""
        end = at + k_BTKH.shape[1]
        for start in range(at - at % PAGE, end, PAGE):
            first, last = max(at, start), min(end, start + PAGE)
            keys, values = self._page(start, last - start)
            keys[:, first - start : last - start] = k_BTKH[:, first - at : last - at]
            values[:, first - start : last - start] = v_BTKH[:, first - at : last - at]

    def read(self, start: int, end: int) -> KeysValues:
        """See ``_LayerCache``."""
        pages = self._from(start, end)
        keys, values = (torch.cat([page[which][:, max(0, start - at) : end - at] for at, page in pages], dim=1) for which in (0, 1))
        return keys, values

    def fork(self, length: int) -> "_Pages":
        """The full pages are shared, the last one is copied."""
        other = copy(self)
        shared = length // PAGE
        other._pages = [*self._pages[:shared], *((k.clone(), v.clone()) for k, v in self._pages[shared : shared + 1])]
        return other

    def _from(self, start: int, end: int) -> list[tuple[int, KeysValues]]:
        """Pages that hold tokens from ``start`` to ``end``, each with the position it begins at."""
        return [(at, self._pages[at // PAGE]) for at in range(start - start % PAGE, end, PAGE)]

    def _page(self, start: int, slots: int) -> KeysValues:
        """The page at a position, with so many slots at least."""
        place = start // PAGE
        if place == len(self._pages):
            self._pages.append(self._empty(self._size(start, slots)))
        elif self._pages[place][0].shape[1] < slots:
            old, new = self._pages[place], self._empty(self._size(start, slots))
            for source, target in zip(old, new, strict=True):
                target[:, : source.shape[1]] = source
            self._pages[place] = new
        return self._pages[place]

    def _size(self, start: int, slots: int) -> int:
        return min(_rounded(slots), PAGE, max(slots, self._max_length - start))


class _Window(_LayerCache):
    """The last tokens in one piece, oldest first, and room after them; where that is full, those that nobody sees any more go.

    Args:
        layer, max_length, dtype, device: see ``_LayerCache``.
        reach: tokens before its own position that a token sees.
        room: new tokens there is to be space for; more at once make it larger.
    """

    def __init__(
        self, layer: LayerConfig, max_length: int, dtype: torch.dtype, device: torch.device, *, reach: int, room: int
    ) -> None:
        super().__init__(layer, max_length, dtype, device)
        self._reach, self._room = reach, room
        self._first = 0
        self._stored = self._empty(0)

    @property
    def bytes(self) -> int:
        """See ``_LayerCache``."""
        return _bytes(self._stored)

    def extended(self, at: int, k_BTKH: Tensor, v_BTKH: Tensor, *, keep: bool) -> list[KeysValues]:
        """One piece, from the first token that the first of the new ones sees."""
        tokens = k_BTKH.shape[1]
        if at - self._first + tokens > self._stored[0].shape[1]:
            self._make_room(at, tokens)
        slot, seen = at - self._first, max(self._first, at - self._reach) - self._first
        keys, values = self._stored
        keys[:, slot : slot + tokens], values[:, slot : slot + tokens] = k_BTKH, v_BTKH
        return [(keys[:, seen : slot + tokens], values[:, seen : slot + tokens])]

    def read(self, start: int, end: int) -> KeysValues:
        """See ``_LayerCache``."""
        assert start >= self._first, "these tokens are not in memory any more"
        keys, values = self._stored
        return keys[:, start - self._first : end - self._first].clone(), values[:, start - self._first : end - self._first].clone()

    def restore(self, first: int, k_BTKH: Tensor, v_BTKH: Tensor) -> None:
        """Hold these tokens, from position ``first``, and no others."""
        tokens = k_BTKH.shape[1]
        self._first, self._stored = first, self._empty(self._size(tokens, 0))
        self._stored[0][:, :tokens], self._stored[1][:, :tokens] = k_BTKH, v_BTKH

    def fork(self, length: int) -> "_Window":
        """What can be seen is copied."""
        kept, slot = self._kept(length), length - self._first
        other = copy(self)
        other.restore(length - kept, *(stored[:, slot - kept : slot] for stored in self._stored))
        return other

    def _make_room(self, at: int, tokens: int) -> None:
        self._room = max(self._room, tokens)
        kept, slot, old = self._kept(at), at - self._first, self._stored
        size = self._size(kept, tokens)
        if old[0].shape[1] < size:
            self._stored = self._empty(size)
        for source, target in zip(old, self._stored, strict=True):
            # The two may overlap.
            target[:, :kept] = source[:, slot - kept : slot].clone()
        self._first = at - kept

    def _kept(self, at: int) -> int:
        return min(at - self._first, self._reach)

    def _size(self, kept: int, tokens: int) -> int:
        """Slots for what is kept and new tokens. A full window gets all its room at once: tokens that come one by one then move it
        only once in ``room`` tokens."""
        most = min(self._reach + self._room, max(self._max_length, kept + tokens))
        return most if kept == self._reach else min(_rounded(kept + tokens), most)


class RowCache:
    """One row's keys and values in all layers.

    Args:
        config: layers and window.
        max_length: tokens it may hold.
        dtype: of the memory.
        device: of the memory.

    Attributes:
        length: tokens it holds.
        max_length: tokens it may hold.
        device: of the memory.
    """

    def __init__(self, config: TextConfig, max_length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.length, self.max_length, self.device = 0, max_length, device
        self._config = config
        self._layers: list[_LayerCache] = [
            _Window(layer, max_length, dtype, device, reach=config.sliding_window - 1, room=prefill_chunk(device))
            if layer.is_sliding
            else _Pages(layer, max_length, dtype, device)
            for layer in config.layers
        ]

    @property
    def bytes(self) -> int:
        """Memory it has taken so far."""
        return sum(layer.bytes for layer in self._layers)

    def check_room(self, tokens: int) -> None:
        """Refuse more tokens than there is room for.

        Raises:
            InputError: they do not fit.
        """
        if self.length + tokens > self.max_length:
            raise InputError(
                f"the cache holds {self.max_length} tokens a row and the longest row has {self.length}: {tokens} more do not "
                "fit; make it larger with new_cache(max_length=...)"
            )

    def joined(self, tokens: int) -> bool:
        """Whether new tokens lie in one piece with those before them in full layers."""
        return self.length + tokens <= PAGE

    def extended(self, layer: int, k_BTKH: Tensor, v_BTKH: Tensor, *, keep: bool) -> list[KeysValues]:
        """What new tokens attend to in a layer, themselves last; with ``keep`` the row may ``advance`` over them."""
        return self._layers[layer].extended(self.length, k_BTKH, v_BTKH, keep=keep)

    def advance(self, tokens: int) -> None:
        """Count tokens as stored."""
        self.length += tokens

    def fork(self) -> "RowCache":
        """A row that goes on from the same tokens: full pages are shared, a page and a window a layer are copied."""
        other = copy(self)
        other._layers = [layer.fork(self.length) for layer in self._layers]
        return other

    def read(self, start: int, end: int, *, sliding: bool) -> list[KeysValues]:
        """A copy of stored tokens in the sliding layers, or in the full ones."""
        return [layer.read(start, end) for layer in self._layers if isinstance(layer, _Window) is sliding]

    def restore(self, length: int, full: Sequence[list[KeysValues]], sliding: Sequence[list[KeysValues]]) -> None:
        """Fill an empty row with what ``read`` gave.

        Args:
            length: tokens it then holds.
            full: pieces from position 0 to ``length``, each with all full layers.
            sliding: pieces that end at ``length``, each with all sliding layers, from the first token that is still seen or before.
        """
        assert not self.length
        pages = [layer for layer in self._layers if isinstance(layer, _Pages)]
        windows = [layer for layer in self._layers if isinstance(layer, _Window)]
        for at, layer in enumerate(pages):
            position = 0
            for piece in full:
                layer.write(position, *piece[at])
                position += piece[at][0].shape[1]
        seen = min(length, self._config.sliding_window - 1)
        for at, window in enumerate(windows):
            pieces = [piece[at] for piece in sliding] or [window.read(0, 0)]
            k, v = (torch.cat([piece[which] for piece in pieces], dim=1) for which in (0, 1))
            window.restore(length - seen, k[:, k.shape[1] - seen :], v[:, v.shape[1] - seen :])
        self.length = length


class KVCache:
    """Rows of a batch, each with a length of its own.

    Args:
        config: layers and window.
        batch_size: rows.
        max_length: tokens a row may hold; memory is taken as they come.
        dtype: of the memory.
        device: of the memory.

    Attributes:
        rows: in order.
        max_length: tokens a row may hold.
    """

    def __init__(self, config: TextConfig, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = [RowCache(config, max_length, dtype, device) for _ in range(batch_size)]
        self.max_length = max_length
        self._device = device

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def lengths(self) -> Tensor:
        """``[B]`` int64, tokens each row has stored."""
        return torch.tensor([row.length for row in self.rows], dtype=torch.int64, device=self._device)

    @property
    def bytes(self) -> int:
        """Memory of all rows so far."""
        return sum(row.bytes for row in self.rows)

    def select(self, rows: Sequence[int]) -> "KVCache":
        """Some of the rows, in the order given, one several times if need be: for canvases, which change none of them."""
        picked = copy(self)
        picked.rows = [self.rows[row] for row in rows]
        return picked

    @staticmethod
    def bytes_of(config: TextConfig, tokens: int, dtype: torch.dtype, *, canvas: int = 0, chunk: int = CHUNK) -> int:
        """The most memory that a row takes.

        Args:
            config: layers and window.
            tokens: of its context, the canvas it stands before counted in: full layers keep them all.
            dtype: of the memory.
            canvas: tokens of a canvas: sliding layers keep their window and room for a canvas or a chunk.
            chunk: tokens of a prompt that are encoded in one pass (``prefill_chunk``); unset: a GPU's, which are the most.
        """
        window = min(tokens, config.sliding_window - 1 + max(canvas, chunk))
        elements = sum(
            2 * (window if layer.is_sliding else tokens) * layer.num_key_value_heads * layer.head_dim for layer in config.layers
        )
        return elements * dtype.itemsize


def _rounded(slots: int) -> int:
    return -(-slots // BLOCK) * BLOCK


def _bytes(stored: KeysValues) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in stored)
