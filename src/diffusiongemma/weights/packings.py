"""Layouts in which writers keep codes, zero points and scales, turned into those of the records.

Shapes: N rows, K columns, G groups of columns.
"""

import torch
from torch import Tensor

__all__ = [
    "awq_codes",
    "awq_zeros",
    "fill_rows",
    "gptq_codes",
    "gptq_zeros",
    "packed_rows",
    "repeat_rows",
    "signed_bytes",
    "transposed",
]

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word AutoAWQ keeps each of eight channels. Source: compressed-tensors 0.20 ``converters/autoawq.py``."""


def fill_rows(value: Tensor, rows: int) -> Tensor:
    """One number, once for each row: ``[N]``."""
    return value.reshape(1).expand(rows)


def repeat_rows(blocks: Tensor, rows: int, height: int) -> Tensor:
    """What stands for ``height`` rows, once for each row: ``[N / height, G]`` to ``[N, G]``; the last block may be short."""
    flat = blocks.reshape(1, 1) if blocks.numel() == 1 else blocks
    return flat.repeat_interleave(height, 0)[:rows]


def transposed(values: Tensor) -> Tensor:
    """``[G, N]`` to ``[N, G]``."""
    return values.T


def signed_bytes(words: Tensor) -> Tensor:
    """int32 ``[N, K / 4]`` of bytes ``code + 128`` to int8 ``[N, K]``."""
    return words.view(torch.uint8).bitwise_xor(128).view(torch.int8)


def packed_rows(words: Tensor, rows: int, bits: int) -> Tensor:
    """int32 ``[N / (32 / bits), G]`` of zero points packed along the rows, to ``[N, G]``: uint8 of 4 bits, int8 of 8."""
    each = _unpacked(words, bits).permute(0, 2, 1).reshape(-1, words.shape[1])[:rows]
    return each if bits == 4 else (each - 128).to(torch.int8)


def gptq_codes(words: Tensor) -> Tensor:
    """int32 ``[K / 8, N]`` to uint8 ``[N, K / 2]``: a byte of a word is a byte of the row, two columns, low nibble first."""
    groups, rows = words.shape
    return words.view(torch.uint8).view(groups, rows, 4).permute(1, 0, 2).reshape(rows, -1)


def gptq_zeros(words: Tensor, offset: int) -> Tensor:
    """int32 ``[G, N / 8]`` to uint8 ``[N, G]``; ``offset`` is what the first version of the format took off before packing."""
    return (_unpacked(words, 4).flatten(1) + offset).to(torch.uint8).T


def awq_codes(words: Tensor) -> Tensor:
    """int32 ``[K, N / 8]`` to uint8 ``[N, K / 2]``."""
    codes_NK = _awq_unpacked(words).T
    return codes_NK[:, ::2] | codes_NK[:, 1::2] << 4


def awq_zeros(words: Tensor, offset: int) -> Tensor:
    """int32 ``[G, N / 8]`` to uint8 ``[N, G]``."""
    return (_awq_unpacked(words) + offset).T


def _awq_unpacked(words: Tensor) -> Tensor:
    return _unpacked(words, 4)[..., list(_AWQ_ORDER)].flatten(1).to(torch.uint8)


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """The codes of each word, lowest first: ``[..., 32 / bits]`` int32."""
    return words.unsqueeze(-1) >> torch.arange(0, 32, bits, dtype=torch.int32) & (1 << bits) - 1
