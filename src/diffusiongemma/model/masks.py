"""Who sees whom, as boolean masks (True: seen). Drawn for a sliding window of 3.

encode, row of length 2 gaining 2 tokens::            denoise, row of length 4, canvas of 2 (C), one slot unused::

    keys      0 1 2 3                                     keys         0 1 2 3 . C C
    query 2   1 1 1 .     full                            full         1 1 1 1 . 1 1    every canvas position
    query 3   1 1 1 1                                     sliding      . . 1 1 . 1 1    sees the same context
    query 2   1 1 1 .     sliding
    query 3   . 1 1 1

The window of a canvas is the last ``sliding_window - 1`` tokens before it, the same for all its positions (decision 0002).
Shapes: B batch, T tokens, S context slots, L canvas.
"""

import torch
from torch import Tensor

from diffusiongemma.model.config import SLIDING, TextConfig

__all__ = ["Masks", "denoise_masks", "encode_masks"]

Masks = dict[str, Tensor | None]
"""Layer type to mask, ``[B, 1, T, S]`` or broadcastable to it; None: everything is seen."""


def encode_masks(config: TextConfig, lengths_B: Tensor, tokens: int, slots: int) -> Masks:
    """Causal masks for ``tokens`` new tokens a row behind ``lengths_B`` stored ones."""
    key = torch.arange(slots, device=lengths_B.device)
    query_B1T1 = (lengths_B[:, None] + torch.arange(tokens, device=lengths_B.device))[:, None, :, None]
    causal = key <= query_B1T1
    masks: Masks = {}
    for kind in set(config.layer_types):
        masks[kind] = causal & (key > query_B1T1 - config.sliding_window) if kind == SLIDING else causal
    return masks


def denoise_masks(config: TextConfig, lengths_B: Tensor, canvas: int, slots: int, even: bool = False) -> Masks:
    """Bidirectional masks ``[B, 1, 1, S + L]`` for a canvas behind ``lengths_B`` stored tokens.

    Args:
        config: layer types and window.
        lengths_B: ``[B]`` int64.
        canvas: positions of the canvas.
        slots: of the context that attention reads.
        even: whether all rows fill all slots, so that only the window can hide any.
    """
    key = torch.arange(slots, device=lengths_B.device)
    length = lengths_B[:, None]
    stored = key < length
    masks: Masks = {}
    for kind in set(config.layer_types):
        if even and (kind != SLIDING or slots < config.sliding_window):
            masks[kind] = None
            continue
        seen = stored & (key >= length - (config.sliding_window - 1)) if kind == SLIDING else stored
        everything = torch.cat((seen, seen.new_ones(seen.shape[0], canvas)), dim=1)
        masks[kind] = everything[:, None, None, :]
    return masks
