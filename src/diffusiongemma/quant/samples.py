"""Weights of each kind with random codes, to measure products before a checkpoint is loaded.

Shapes: N rows, K columns, E experts.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusiongemma.quant.eight_bit import Fp8Weight, Int8Weight
from diffusiongemma.quant.four_bit import MXFP4_GROUP, NVFP4_GROUP, Int4Weight, Mxfp4Weight, Nvfp4Weight
from diffusiongemma.quant.gguf import GGUFWeight
from diffusiongemma.quant.gguf_blocks import BLOCK_TYPES
from diffusiongemma.quant.packed import StoredWeight

__all__ = ["sample"]

_BLOCK = 1 << 20
_INT4_GROUP = 32
_BLOCKS = {f"gguf-{block.name.lower()}": block for block in BLOCK_TYPES.values()}


def sample(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> StoredWeight:
    """A weight of a kind whose values are about ``K ** -0.5``; GGUF blocks are zeros.

    Args:
        kind: of a record (of several that are joined the first counts), or ``plain``.
        shape: ``[N, K]``, ``[E, N, K]``, or ``[N]`` of a plain one.
        dtype: of a plain one.
    """
    kind = kind.partition(" + ")[0]
    if kind == "plain":
        return _normal(shape).to(dtype)
    if kind in _BLOCKS:
        block = _BLOCKS[kind]
        count = -(-shape[-1] // block.weights)
        return GGUFWeight(shape=shape, blocks=torch.zeros(*shape[:-1], count, block.nbytes, dtype=torch.uint8), block=block)
    return _MADE[kind](shape, shape[-1] ** -0.5)


def _normal(shape: tuple[int, ...]) -> Tensor:
    """Normal draws of variance 1 / K, a block of them repeated."""
    count = math.prod(shape)
    drawn = torch.randn(min(count, _BLOCK)) * (shape[-1] ** -0.5 if len(shape) > 1 else 1)
    return drawn.repeat(-(-count // _BLOCK))[:count].view(shape) if count > _BLOCK else drawn.view(shape)


def _codes(*shape: int) -> Tensor:
    """Bytes that are a finite number in every format."""
    return torch.randint(0, 0x78, shape, dtype=torch.uint8)


def _groups(shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    return (*shape[:-1], -(-shape[-1] // width))


def _fp8(shape: tuple[int, ...], size: float) -> StoredWeight:
    scale = torch.full((*shape[:-1], 1), size / 100)
    return Fp8Weight(shape=shape, codes=_codes(*shape).view(torch.float8_e4m3fn), scale=scale, width=shape[-1])


def _int8(shape: tuple[int, ...], size: float) -> StoredWeight:
    scale = torch.full((*shape[:-1], 1), size / 64)
    return Int8Weight(shape=shape, codes=_codes(*shape).view(torch.int8), scale=scale, width=shape[-1])


def _int4(shape: tuple[int, ...], size: float) -> StoredWeight:
    scale = torch.full(_groups(shape, _INT4_GROUP), size / 4)
    return Int4Weight(shape=shape, codes=_codes(*_groups(shape, 2)), scale=scale, width=_INT4_GROUP)


def _nvfp4(shape: tuple[int, ...], size: float) -> StoredWeight:
    scale = torch.full(_groups(shape, NVFP4_GROUP), 1.0).to(torch.float8_e4m3fn)
    second = torch.full(shape[:-1], size / 3)
    return Nvfp4Weight(shape=shape, codes=_codes(*_groups(shape, 2)), scale=scale, second=second, divides=False)


def _mxfp4(shape: tuple[int, ...], size: float) -> StoredWeight:
    scale = torch.full(_groups(shape, MXFP4_GROUP), 127 + round(math.log2(size / 3)), dtype=torch.uint8)
    return Mxfp4Weight(shape=shape, codes=_codes(*_groups(shape, 2)), scale=scale)


_MADE: dict[str, Callable[[tuple[int, ...], float], StoredWeight]] = {
    "fp8": _fp8, "int8": _int8, "int4": _int4, "nvfp4": _nvfp4, "mxfp4": _mxfp4,
}  # fmt: skip
