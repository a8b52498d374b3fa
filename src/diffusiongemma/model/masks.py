"""Who sees whom. Drawn for a sliding window of 3; a layer is given only keys that somebody sees (``.`` is not in memory any more).

encode, row of length 4 gaining 2 tokens::            denoise, row of length 4, canvas of 3 (C)::

    keys      0 1 2 3 4 5                                 keys         0 1 2 3 C C C
    query 4   1 1 1 1 1       full                        full         1 1 1 1 1 1 1    every canvas position
    query 5   1 1 1 1 1 1                                 shared       . . 1 1 1 1 1    sliding: every canvas position
    query 4   . . 1 1 1       sliding
    query 5   . .   1 1 1                                 position 0   . . 1 1 1 1 1    sliding, per_position
                                                          position 1   . .   1 1 1 1
                                                          position 2   . .     1 1 1

``shared`` (transformers) gives all positions of a canvas the last ``sliding_window - 1`` tokens before it, and the whole canvas.
``per_position`` (vLLM, SGLang) gives each position what is less than ``sliding_window`` away from it (decision 0002).
Shapes: B batch, T tokens, S keys, L canvas.
"""

import torch
from torch import Tensor

from diffusiongemma.diffusion import CanvasWindow
from diffusiongemma.kernels import Mask
from diffusiongemma.model.config import SLIDING, TextConfig

__all__ = ["Masks", "denoise_masks", "encode_masks", "plain_denoise_masks", "plain_encode_masks"]

Masks = dict[str, Mask]
"""Layer type to mask, of the new tokens' keys and of what lies in one piece with them."""


def encode_masks(config: TextConfig, length: int, tokens: int, device: torch.device, *, joined: bool) -> Masks:
    """Causal masks for new tokens of one row.

    Args:
        config: layer types and window.
        length: tokens before them.
        tokens: T of them.
        device: of the masks.
        joined: whether the keys of full layers lie in one piece with those before them.
    """
    masks: Masks = {}
    for kind in set(config.layer_types):
        before = min(length, config.sliding_window - 1) if kind == SLIDING else length if joined else 0
        # The first of the new tokens sees all that is there; a single one therefore needs no mask.
        if tokens == 1:
            masks[kind] = None
        elif not before and (kind != SLIDING or tokens <= config.sliding_window):
            masks[kind] = "causal"
        else:
            seen = torch.ones(tokens, before + tokens, dtype=torch.bool, device=device).tril(before)
            masks[kind] = (seen.triu(before - config.sliding_window + 1) if kind == SLIDING else seen)[None, None]
    return masks


def denoise_masks(config: TextConfig, length: int, canvas: int, device: torch.device, rule: CanvasWindow = "shared") -> Masks:
    """Bidirectional masks for a canvas after ``length`` tokens: none, but for windows that move with the position."""
    masks: Masks = dict.fromkeys(config.layer_types)
    before, window = min(length, config.sliding_window - 1), config.sliding_window
    # Position 0 sees all of the context that is there, the last one sees the whole canvas where it is no longer than a window.
    if SLIDING in masks and rule == "per_position" and before + canvas > window:
        everything = torch.ones(canvas, before + canvas, dtype=torch.bool, device=device)
        masks[SLIDING] = everything.triu(before - window + 1).tril(before + window - 1)[None, None]
    return masks


def plain_encode_masks(config: TextConfig, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """Causal masks ``[1, 1, T, T]`` for a whole sequence at a time, as training encodes it."""
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()[None, None]
    return {kind: causal.triu(1 - config.sliding_window) if kind == SLIDING else causal for kind in set(config.layer_types)}


def plain_denoise_masks(config: TextConfig, length: int, canvas: int, device: torch.device) -> dict[str, Tensor]:
    """Masks ``[1, 1, 1, S + L]`` for a canvas after ``length`` tokens that are all in memory, as training denoises it."""
    everything = torch.ones(1, 1, 1, length + canvas, dtype=torch.bool, device=device)
    windowed = everything.clone()
    windowed[..., : max(0, length - config.sliding_window + 1)] = False
    return {kind: windowed if kind == SLIDING else everything for kind in set(config.layer_types)}
