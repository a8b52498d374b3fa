"""The block types of GGUF files: how many bytes hold how many weights, and the float32 weights they stand for.

A row of a tensor is cut into blocks; a block is a few scales and the codes of its weights. In the 4- and 5-bit types of 32
weights the low nibbles of the code bytes are the first half of the block and the high ones the second: never even and odd
columns, as safetensors formats have them.

Every decoder gives the bits of ``gguf.quants.dequantize`` (package ``gguf`` 0.19): it multiplies and adds in the same order.
Codes are unpacked eight at a time, as int64 words. Shapes: n blocks. Source of the layouts: ggml ``ggml-quants.c``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from diffusiongemma.kernels.expand import can_expand, expand_halves, expand_q4_k
from diffusiongemma.kernels.int8 import Int8Rows

__all__ = ["BLOCK_TYPES", "BlockType", "block_type", "int8_of_blocks"]

_NIBBLES = 0x0F0F0F0F0F0F0F0F
_PAIRS = 0x0303030303030303
_BITS = 0x0101010101010101
_CHUNK = 1 << 20
"""Weights that are decoded at a time: 4 MiB of float32, so that the passes over them stay in the cache (docs/lab-log.md)."""
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1_TWICE = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_MXFP4_LARGEST = 252
"""The largest exponent byte of MXFP4 with which every code is finite in float32."""


@dataclass(frozen=True)
class BlockType:
    """One type of block.

    Attributes:
        name: as ggml spells it.
        id: its number in a file.
        weights: of a block.
        nbytes: of a block.
        halves: byte offsets of the block's float16 scales.
        decode: ``(uint8 [n, nbytes], out float32 [n, weights])``.
    """

    name: str
    id: int
    weights: int
    nbytes: int
    halves: tuple[int, ...]
    decode: Callable[[Tensor, Tensor], None]

    def dequantize(self, raw: Tensor) -> Tensor:
        """The weights of whole rows.

        Args:
            raw: uint8 ``[..., blocks, nbytes]``.

        Returns:
            float32 ``[..., blocks * weights]``.
        """
        blocks = raw.reshape(-1, self.nbytes)
        out = torch.empty(len(blocks), self.weights, dtype=torch.float32, device=raw.device)
        step = _CHUNK // self.weights
        for start in range(0, len(blocks), step):
            self.decode(blocks[start : start + step], out[start : start + step])
        return out.view(*raw.shape[:-2], raw.shape[-2] * self.weights)

    def scales_finite(self, raw: Tensor) -> bool:
        """Whether no scale of these blocks is NaN or infinite (``raw`` as for ``dequantize``)."""
        blocks = raw.reshape(-1, self.nbytes)
        if self.name == "MXFP4":
            return bool(blocks[:, 0].amax() <= _MXFP4_LARGEST)
        if self.name in ("BF16", "F32"):
            return _all_finite(blocks.view(torch.bfloat16 if self.name == "BF16" else torch.float32))
        return all(_all_finite(blocks[:, at : at + 2].view(torch.float16)) for at in self.halves)


def block_type(number: int) -> BlockType | None:
    """The type of a number in a file, or None where it is not one that is read."""
    return BLOCK_TYPES.get(number)


def int8_of_blocks(kind: BlockType, raw: Tensor) -> Int8Rows | None:
    """The weights of whole rows rounded to int8 a row, where there is a short way (Q4_0, Q5_0, Q4_K); None: there is none here.

    Args:
        kind: of the blocks.
        raw: uint8 ``[N, blocks, nbytes]``.
    """
    if kind.name not in ("Q4_0", "Q5_0", "Q4_K") or not can_expand():
        return None
    blocks = raw.reshape(-1, kind.nbytes)
    if kind.name == "Q4_K":
        codes, scale = expand_q4_k(raw, *(part.reshape(len(raw), -1) for part in _scale_min(blocks)))
    else:
        start, fifth = (2, 0) if kind.name == "Q4_0" else (6, 2)
        codes, scale = expand_halves(raw, _half(blocks, 0).view(len(raw), -1), start, fifth)
    return Int8Rows(codes, scale[:, None])


def _all_finite(values: Tensor) -> bool:
    """A sum that is finite has only finite terms, and costs a tenth of looking at each; one that is not may have overflowed."""
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(values.isfinite().all())


def _part(raw: Tensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Bytes of each block as wider numbers; always a copy, since the bytes may begin anywhere."""
    return raw[:, start:stop].clone(memory_format=torch.contiguous_format).view(dtype)


def _half(raw: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block, as float32 ``[n, 1]``."""
    return _part(raw, at, at + 2, torch.float16).float()


def _words(raw: Tensor, start: int, stop: int) -> Tensor:
    """Bytes of each block as int64 words."""
    return _part(raw, start, stop, torch.int64)


def _split(words: Tensor) -> Tensor:
    """Words ``[n, g, w]`` of code bytes to ``[n, g, 2, w]``: low nibbles, then high nibbles."""
    out = torch.empty(*words.shape[:2], 2, words.shape[2], dtype=torch.int64, device=words.device)
    torch.bitwise_and(words, _NIBBLES, out=out[:, :, 0])
    high = out[:, :, 1]
    torch.bitwise_right_shift(words, 4, out=high)
    high.bitwise_and_(_NIBBLES)
    return out


def _halves(raw: Tensor, start: int) -> Tensor:
    """The 4-bit codes of a block of 32, whose 16 bytes begin at ``start``: words ``[n, 4]``."""
    return _split(_words(raw, start, start + 16)[:, None]).view(len(raw), 4)


def _fifth_bits(raw: Tensor, start: int) -> Tensor:
    """The fifth bits of a block of 32, four bytes from ``start`` on, each at bit 4 of its byte: words ``[n, 4]``."""
    at = raw[:, start : start + 4].reshape(-1).int()
    return _spread_bits(raw.device).index_select(0, at).view(len(raw), 4)


def _table(values: tuple[int, ...], raw: Tensor, start: int, stop: int) -> Tensor:
    """Codes that stand for entries of a table: int8 ``[n, g, 32]``, each 16 bytes being a group of 32."""
    at = _part(raw, start, stop, torch.int16).reshape(-1).int().bitwise_and_(0xFFFF)
    result = _byte_pairs(values, raw.device).index_select(0, at).view(torch.int16).view(len(raw), -1, 8, 2)
    return result.transpose(2, 3).contiguous().view(torch.int8).view(len(raw), -1, 32)


@cache
def _spread_bits(device: torch.device) -> Tensor:
    """For each byte a word with its bits, each at bit 4 of a byte of its own: int64 ``[256]``."""
    byte, bit = torch.arange(256, dtype=torch.uint8, device=device), torch.arange(8, dtype=torch.uint8, device=device)
    return ((byte[:, None] >> bit & 1) << 4).view(torch.int64).squeeze(1)


@cache
def _byte_pairs(values: tuple[int, ...], device: torch.device) -> Tensor:
    """For each two bytes the four values of their nibbles, both low ones first: int32 ``[65536]``."""
    pair = torch.arange(1 << 16, device=device)
    codes = torch.stack((pair & 15, pair >> 8 & 15, pair >> 4 & 15, pair >> 12), 1)
    return torch.tensor(values, dtype=torch.int8, device=device)[codes].view(torch.int32).squeeze(1)


@cache
def _powers(device: torch.device) -> Tensor:
    """2^(e - 128) for each exponent byte e, float32 ``[256]``; the two smallest are subnormal."""
    exponent = torch.arange(256, dtype=torch.int32, device=device)
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return bits.view(torch.float32)


def _q8_0(raw: Tensor, out: Tensor) -> None:
    out.copy_(raw[:, 2:].view(torch.int8))
    out.mul_(_half(raw, 0))


def _q4_0(raw: Tensor, out: Tensor) -> None:
    out.copy_(_halves(raw, 2).view(torch.int8).sub_(8))
    out.mul_(_half(raw, 0))


def _q4_1(raw: Tensor, out: Tensor) -> None:
    out.copy_(_halves(raw, 4).view(torch.uint8))
    out.mul_(_half(raw, 0)).add_(_half(raw, 2))


def _q5_0(raw: Tensor, out: Tensor) -> None:
    codes = _halves(raw, 6).bitwise_or_(_fifth_bits(raw, 2))
    out.copy_(codes.view(torch.int8).sub_(16))
    out.mul_(_half(raw, 0))


def _q5_1(raw: Tensor, out: Tensor) -> None:
    codes = _halves(raw, 8).bitwise_or_(_fifth_bits(raw, 4))
    out.copy_(codes.view(torch.uint8))
    out.mul_(_half(raw, 0)).add_(_half(raw, 2))


def _scale_min(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The eight scales and minima of Q4_K and Q5_K: float32 ``[n, 8, 1]`` each. Four bytes are unpacked at a time."""
    head = _part(raw, 0, 16, torch.int32)
    factors = head.view(torch.float16)[:, :2].float()
    _, first, second, both = head.unbind(1)
    packed = torch.stack(
        (
            first & 0x3F3F3F3F,
            (both & 0x0F0F0F0F) | (first >> 2 & 0x30303030),
            second & 0x3F3F3F3F,
            (both >> 4 & 0x0F0F0F0F) | (second >> 2 & 0x30303030),
        ),
        1,
    )
    scaled = packed.view(torch.uint8).float().view(-1, 2, 8) * factors[:, :, None]
    return scaled[:, 0, :, None], scaled[:, 1, :, None]


def _q4_k(raw: Tensor, out: Tensor) -> None:
    scale, least = _scale_min(raw)
    words = _words(raw, 16, 144)
    low = words & _NIBBLES
    high = words.bitwise_right_shift_(4).bitwise_and_(_NIBBLES)
    halves = out.view(-1, 4, 2, 32)
    halves[:, :, 0] = low.view(torch.uint8).view(-1, 4, 32)
    halves[:, :, 1] = high.view(torch.uint8).view(-1, 4, 32)
    out.view(-1, 8, 32).mul_(scale).sub_(least)


def _q5_k(raw: Tensor, out: Tensor) -> None:
    scale, least = _scale_min(raw)
    codes = _split(_words(raw, 48, 176).view(-1, 4, 4)).view(-1, 8, 4)
    shift = torch.arange(8, device=raw.device)[:, None]
    codes |= (_words(raw, 16, 48)[:, None] >> shift & _BITS) << 4
    out.copy_(codes.view(torch.uint8).view(-1, 256))
    out.view(-1, 8, 32).mul_(scale).sub_(least)


def _q6_k(raw: Tensor, out: Tensor) -> None:
    codes = _split(_words(raw, 0, 128).view(-1, 2, 8)).view(-1, 2, 4, 4)
    shift = torch.arange(0, 8, 2, device=raw.device)[:, None]
    codes |= (_words(raw, 128, 192).view(-1, 2, 1, 4) >> shift & _PAIRS) << 4
    out.copy_(codes.view(torch.int8).view(-1, 256).sub_(32))
    scale = _half(raw, 208) * raw[:, 192:208].view(torch.int8)
    out.view(-1, 16, 16).mul_(scale[:, :, None])


def _iq4_nl(raw: Tensor, out: Tensor) -> None:
    out.copy_(_table(_IQ4, raw, 2, 18).view(-1, 32))
    out.mul_(_half(raw, 0))


def _iq4_xs(raw: Tensor, out: Tensor) -> None:
    high = _part(raw, 2, 4, torch.int16).int()
    low = torch.stack((raw[:, 4:8] & 15, raw[:, 4:8] >> 4), 2).view(-1, 8).int()
    shift = torch.arange(0, 16, 2, dtype=torch.int32, device=raw.device)
    scale = _half(raw, 0) * ((low | (high >> shift & 3) << 4) - 32)
    out.copy_(_table(_IQ4, raw, 8, 136).view(-1, 256))
    out.view(-1, 8, 32).mul_(scale[:, :, None])


def _mxfp4(raw: Tensor, out: Tensor) -> None:
    out.copy_(_table(_E2M1_TWICE, raw, 1, 17).view(-1, 32))
    out.mul_(_powers(raw.device).index_select(0, raw[:, 0].int())[:, None])


def _bf16(raw: Tensor, out: Tensor) -> None:
    out.copy_(raw.view(torch.bfloat16))


def _f16(raw: Tensor, out: Tensor) -> None:
    out.copy_(raw.view(torch.float16))


def _f32(raw: Tensor, out: Tensor) -> None:
    out.copy_(raw.view(torch.float32))


BLOCK_TYPES = {
    kind.id: kind
    for kind in (
        BlockType("F32", 0, 1, 4, (), _f32),
        BlockType("F16", 1, 1, 2, (0,), _f16),
        BlockType("Q4_0", 2, 32, 18, (0,), _q4_0),
        BlockType("Q4_1", 3, 32, 20, (0, 2), _q4_1),
        BlockType("Q5_0", 6, 32, 22, (0,), _q5_0),
        BlockType("Q5_1", 7, 32, 24, (0, 2), _q5_1),
        BlockType("Q8_0", 8, 32, 34, (0,), _q8_0),
        BlockType("Q4_K", 12, 256, 144, (0, 2), _q4_k),
        BlockType("Q5_K", 13, 256, 176, (0, 2), _q5_k),
        BlockType("Q6_K", 14, 256, 210, (208,), _q6_k),
        BlockType("IQ4_NL", 20, 32, 18, (0,), _iq4_nl),
        BlockType("IQ4_XS", 23, 256, 136, (0,), _iq4_xs),
        BlockType("BF16", 30, 1, 2, (), _bf16),
        BlockType("MXFP4", 39, 32, 17, (), _mxfp4),
    )
}
"""The types that are read, by their number in a file."""
