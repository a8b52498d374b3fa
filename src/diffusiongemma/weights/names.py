"""Tensor names of a Hugging Face checkpoint <-> parameter names of ``model.Transformer``."""

import re

__all__ = ["DECODER", "ENCODER", "VISION_PREFIXES", "is_tied_copy", "to_checkpoint", "to_ours"]

DECODER = "model.decoder."
ENCODER = "model.encoder.language_model."
VISION_PREFIXES = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
_ENCODER_SCALAR = re.compile(r"layers\.(\d+)\.layer_scalar")


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
