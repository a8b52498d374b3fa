"""What a pass attends to: rows of any lengths laid one after another, each with its own cache; or a training batch.

Shapes: B batch, T new tokens, S keys, N heads, K key-value heads, H head size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma import kernels
from diffusiongemma.diffusion import CanvasWindow
from diffusiongemma.kernels import KeysValues
from diffusiongemma.model.cache import RowCache
from diffusiongemma.model.config import TextConfig
from diffusiongemma.model.masks import Masks, denoise_masks, encode_masks

__all__ = ["AttentionBackend", "AttentionContext", "PromptCanvases", "RaggedBatch", "Role", "RowLoop", "Segment", "SharedPrompt"]


class Role(Enum):
    """Which of its two roles the stack plays in a pass."""

    ENCODE = "encode"
    DENOISE = "denoise"


class AttentionContext(ABC):
    """What a layer's attention needs besides the new tokens."""

    @abstractmethod
    def attend(self, layer: int, role: Role, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
        """Attention of new tokens over the context and themselves, ``[B, T, N * H]``; encoding stores their keys and values."""


class Segment(NamedTuple):
    """One row's part in a pass.

    Attributes:
        cache: the row's own; several canvases of one pass may share it.
        tokens: how many are new.
        masks: layer type to mask (``masks.encode_masks``, ``masks.denoise_masks``).
    """

    cache: RowCache
    tokens: int
    masks: Masks


class AttentionBackend(ABC):
    """How attention of rows that each have a cache is computed."""

    @abstractmethod
    def encoding(self, cache: RowCache, tokens: int) -> Segment:
        """A row that gains tokens."""

    @abstractmethod
    def denoising(self, cache: RowCache, tokens: int, window: CanvasWindow) -> Segment:
        """A canvas after a row's context; it is the same for all passes over that canvas."""

    @abstractmethod
    def prepare(self, segments: Sequence[Segment]) -> AttentionContext:
        """What all layers of one pass over these segments share."""


class RowLoop(AttentionBackend):
    """Each row's attention by a call of its own: plain, and with the same shapes whatever a row's neighbours are.

    Args:
        config: layer types and window.
    """

    def __init__(self, config: TextConfig) -> None:
        self._config = config

    def encoding(self, cache: RowCache, tokens: int) -> Segment:
        """See ``AttentionBackend``."""
        device = cache.device
        return Segment(cache, tokens, encode_masks(self._config, cache.length, tokens, device, joined=cache.joined(tokens)))

    def denoising(self, cache: RowCache, tokens: int, window: CanvasWindow) -> Segment:
        """See ``AttentionBackend``."""
        return Segment(cache, tokens, denoise_masks(self._config, cache.length, tokens, cache.device, window))

    def prepare(self, segments: Sequence[Segment]) -> AttentionContext:
        """See ``AttentionBackend``."""
        return RaggedBatch(self._config.layer_types, segments)


class RaggedBatch(AttentionContext):
    """Rows laid one after another in one sequence ``[1, T]``: only attention looks at each apart, with its own cache.

    Nothing is padded to the longest row.

    Args:
        layer_types: of the layers.
        segments: the rows, in order. Tokens of the sequence after the last of them are filler, attended to by nothing.
    """

    def __init__(self, layer_types: Sequence[str], segments: Sequence[Segment]) -> None:
        self._layer_types, self._segments = layer_types, segments

    def attend(self, layer: int, role: Role, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
        """Each row's own attention."""
        kind, keep = self._layer_types[layer], role is Role.ENCODE
        out, at = [], 0
        for cache, tokens, masks in self._segments:
            q, k, v = (x[:, at : at + tokens] for x in (q_BTNH, k_BTKH, v_BTKH))
            out.append(kernels.attention(q, cache.extended(layer, k, v, keep=keep), masks[kind]))
            at += tokens
        if at < q_BTNH.shape[1]:
            out.append(q_BTNH[:, at:].flatten(2))
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)


class SharedPrompt(AttentionContext):
    """The context of a training pass that encodes: keys and values are kept as they are, so that gradients flow through them.

    Args:
        prompt_length: tokens of the prompt; what is encoded after them (the answer, for the causal loss) is not shown to canvases.
        masks: a mask a layer, ``[1 or B, 1, T, T]``.
    """

    def __init__(self, prompt_length: int, masks: Sequence[Tensor | None]) -> None:
        self._prompt_length, self._masks = prompt_length, masks
        self._kv: list[KeysValues] = []

    def attend(self, layer: int, role: Role, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
        """Each layer comes once, in order."""
        if layer == len(self._kv):  # a layer that is computed again for its gradient has been here
            self._kv.append((k_BTKH[:, : self._prompt_length], v_BTKH[:, : self._prompt_length]))
        return kernels.attention(q_BTNH, [(k_BTKH, v_BTKH)], self._masks[layer])

    def canvases(self, masks: Sequence[Tensor | None]) -> "PromptCanvases":
        """The context of canvases after the prompt, the same number for each of its rows.

        Args:
            masks: a mask a layer over the prompt's tokens and the canvas's, None: everything is seen.
        """
        return PromptCanvases(self._kv, masks)


class PromptCanvases(AttentionContext):
    """The context of a training pass that denoises; see ``SharedPrompt.canvases``."""

    def __init__(self, kv: Sequence[KeysValues], masks: Sequence[Tensor | None]) -> None:
        self._kv, self._masks = kv, masks

    def attend(self, layer: int, role: Role, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
        """Canvases attend to their prompt and to themselves."""
        k_ctx, v_ctx = self._kv[layer]
        copies = k_BTKH.shape[0] // k_ctx.shape[0]
        k = torch.cat((k_ctx.repeat_interleave(copies, 0), k_BTKH), dim=1)
        v = torch.cat((v_ctx.repeat_interleave(copies, 0), v_BTKH), dim=1)
        return kernels.attention(q_BTNH, [(k, v)], self._masks[layer])
