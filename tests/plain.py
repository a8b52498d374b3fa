"""Both passes as they would be without a cache: all tokens in memory, every layer under a mask drawn token by token."""

import torch
from torch import Tensor

from diffusiongemma.model.attention import Role, SharedPrompt
from diffusiongemma.model.config import SLIDING
from diffusiongemma.model.transformer import Transformer


def plain_encode(model: Transformer, ids_1T: Tensor) -> tuple[Tensor, SharedPrompt]:
    """Hidden states ``[1, T, D]`` of a prompt in one pass, and the prompt as a context."""
    config, tokens = model.config.text, ids_1T.shape[1]
    masks = {
        kind: torch.tensor(
            [
                [key <= query and (kind != SLIDING or key > query - config.sliding_window) for key in range(tokens)]
                for query in range(tokens)
            ]
        )[None, None]
        for kind in set(config.layer_types)
    }
    context = SharedPrompt(tokens, [masks[kind] for kind in config.layer_types])
    tables = model.rotary(torch.arange(tokens)[None], model.dtype)
    return model.stack(model.embed(ids_1T), Role.ENCODE, tables, context), context


def plain_denoise(
    model: Transformer, tokens: int, context: SharedPrompt, canvas_1L: Tensor, soft_1LD: Tensor | None = None, rule: str = "shared"
) -> Tensor:
    """Hidden states ``[1, L, D]`` of a canvas after a prompt of so many tokens."""
    config, length = model.config.text, canvas_1L.shape[1]

    def seen(kind: str, position: int, key: int) -> bool:
        if kind != SLIDING:
            return True
        if rule == "shared":
            return key >= tokens - (config.sliding_window - 1)
        return abs(tokens + position - key) < config.sliding_window

    masks = {
        kind: torch.tensor([[seen(kind, position, key) for key in range(tokens + length)] for position in range(length)])[
            None, None
        ]
        for kind in set(config.layer_types)
    }
    tables = model.rotary(torch.arange(tokens, tokens + length)[None], model.dtype)
    canvases = context.canvases([masks[kind] for kind in config.layer_types])
    return model.stack(model.canvas_embeds(canvas_1L, soft_1LD), Role.DENOISE, tables, canvases)
