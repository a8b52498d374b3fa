"""Weights made fast on a CPU by int8 products, one by one as they are loaded."""

import re
from collections.abc import Iterable, Iterator

from diffusiongemma.quant import StoredWeight, fast_int8

__all__ = ["TABLE", "rounded_to_int8", "rounds_to_int8"]

TABLE = "embed_tokens.weight"
_ROUNDED = re.compile(r"layers\.\d+\.((self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.weight|experts\.\w+)")
"""Router, norms and self-conditioning stay as they are, as in the published recipes."""


def rounded_to_int8(weights: Iterable[tuple[str, StoredWeight]]) -> Iterator[tuple[str, StoredWeight]]:
    """The same weights, with attention, dense MLP, experts and the tied head as int8 records; one is held at a time.

    Args:
        weights: by our names.
    """
    for name, weight in weights:
        yield name, fast_int8(weight, table=name == TABLE) if rounds_to_int8(name) else weight


def rounds_to_int8(name: str) -> bool:
    """Whether ``rounded_to_int8`` rounds a weight."""
    return name == TABLE or _ROUNDED.fullmatch(name) is not None
