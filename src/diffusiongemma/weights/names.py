"""Tensor names of a Hugging Face checkpoint <-> parameter names of ``model.Transformer``."""

import re
from typing import NamedTuple

__all__ = [
    "DECODER",
    "ENCODER",
    "VISION_PREFIXES",
    "ExpertPart",
    "expert_of",
    "expert_parts",
    "is_tied_copy",
    "to_checkpoint",
    "to_ours",
]

DECODER = "model.decoder."
ENCODER = "model.encoder.language_model."
VISION_PREFIXES = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
_ENCODER_SCALAR = re.compile(r"layers\.(\d+)\.layer_scalar")
_EXPERT = re.compile(r"(layers\.[0-9]+\.experts)\.(0|[1-9][0-9]{0,8})\.(gate_proj|up_proj|down_proj)")
_STACKS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class ExpertPart(NamedTuple):
    """Where a linear of one expert belongs in our stacks.

    Attributes:
        name: our name of the stack.
        expert: which.
        part: its place among the linears that lie on top of each other.
        parts: how many of those there are.
    """

    name: str
    expert: int
    part: int
    parts: int


def expert_parts(name: str) -> tuple[str, ...]:
    """The linears of one expert that our stack of that name holds on top of each other."""
    return _STACKS[name.rpartition(".")[2]]


def expert_of(module: str) -> ExpertPart | None:
    """Where the linear of one expert, as quantised checkpoints have them, belongs; None: it is none."""
    prefix = next((one for one in (DECODER, ENCODER) if module.startswith(one)), None)
    result = _EXPERT.fullmatch(module[len(prefix) :]) if prefix else None
    if result is None:
        return None
    for stack, parts in _STACKS.items():
        if result[3] in parts:
            return ExpertPart(f"{result[1]}.{stack}", int(result[2]), parts.index(result[3]), len(parts))
    raise AssertionError(module)


def to_ours(name: str) -> str | None:
    """Our name for a checkpoint's tensor, or None where it has none (vision, or unknown).

    The encoder's copies of tied tensors and ``lm_head.weight`` map onto the tensor they copy.
    """
    if name == "lm_head.weight":
        return "embed_tokens.weight"
    if name.startswith(DECODER):
        return name[len(DECODER) :]
    if name.startswith(ENCODER):
        rest = name[len(ENCODER) :]
        scalar = _ENCODER_SCALAR.fullmatch(rest)
        return f"layers.{scalar[1]}.encoder_layer_scalar" if scalar else rest
    return None


def is_tied_copy(name: str) -> bool:
    """Whether a checkpoint's tensor is a second copy of one stored under the decoder."""
    if name == "lm_head.weight":
        return True
    return name.startswith(ENCODER) and not _ENCODER_SCALAR.fullmatch(name[len(ENCODER) :])


def to_checkpoint(name: str) -> str:
    """The checkpoint's name for one of our tensors."""
    if name.endswith(".encoder_layer_scalar"):
        return ENCODER + name.removesuffix("encoder_layer_scalar") + "layer_scalar"
    return DECODER + name
