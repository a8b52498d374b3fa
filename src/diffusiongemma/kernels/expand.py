"""Packed codes to rows of int8, for products that expand a weight each time they use it.

Expanding is most of what a packed expert costs on a CPU: torch's own operations reach 0.6 thousand million weights a second, the
loops here 2 to 5 a thread (docs/lab-log.md). They are plain loops, written so that numba's compiler vectorises them: over whole
rows or at least 16 neighbours, no table, a factor for each element. numba is optional; where it is not installed, callers
have another way.
Shapes: N rows, K columns, G groups of columns.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["can_expand", "expand_halves", "expand_pairs", "expand_q4_k"]

Value = Literal["fp4", "integer"]
"""What a 4-bit code stands for: E2M1 of OCP Microscaling, or 0 to 15."""


def can_expand() -> bool:
    """Whether numba is here."""
    return _compiled() is not None


def expand_pairs(codes: Tensor, scale: Tensor, decode: Tensor | None, zero: Tensor | None, value: Value) -> tuple[Tensor, Tensor]:
    """Rows ``(value(code) - zero) * scale`` rounded to int8, each by the largest value that its scales allow.

    Args:
        codes: uint8 ``[N, K / 2]``, the even column in the low nibble.
        scale: of each group of an even number of columns, ``[N, G]`` float32, or uint8 codes of 0 and more, in the order
            of what they stand for.
        decode: float32 ``[256]``, what the codes of scales stand for; None: they are no codes.
        zero: float32 ``[N, G]``; None: 0.
        value: of a code.

    Returns:
        Codes ``[N, K]`` int8 and scales ``[N]`` float32; a row whose scales are all 0 has scale 1.
    """
    blank = torch.zeros(1, 1)
    given = (codes, scale, blank[0] if decode is None else decode, blank if zero is None else zero)
    return _run(f"pairs of {value}", given, zero is not None, columns=2 * codes.shape[1])


def expand_q4_k(blocks: Tensor, scale: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """GGUF's Q4_K, ``code * scale - least``, as rows of int8 (see ``expand_pairs``).

    Args:
        blocks: uint8 ``[N, K / 256, 144]``.
        scale: float32 ``[N, K / 32]``.
        least: float32 ``[N, K / 32]``.
    """
    return _run("q4_k", (blocks, scale, least), columns=256 * blocks.shape[1])


def expand_halves(blocks: Tensor, scale: Tensor, start: int, fifth: int) -> tuple[Tensor, Tensor]:
    """GGUF's symmetric blocks of 32, Q4_0 and Q5_0, ``(code - middle) * scale``, as rows of int8 (see ``expand_pairs``).

    Args:
        blocks: uint8 ``[N, K / 32, bytes]``.
        scale: float32 ``[N, K / 32]``.
        start: of the 16 bytes of codes, the low nibbles being the first half of the block.
        fifth: of the 4 bytes with a fifth bit for each code; 0: there are none.
    """
    return _run("halves", (blocks, scale), start, fifth, columns=32 * blocks.shape[1])


def _run(kernel: str, given: tuple[Tensor, ...], *settings: Any, columns: int) -> tuple[Tensor, Tensor]:
    """Run a loop over all rows, shared among torch's number of threads."""
    kernels = _compiled()
    assert kernels is not None
    expand, rows = kernels[kernel], len(given[0])
    out, scale_N = torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows)
    arrays = [tensor.contiguous().numpy() for tensor in given]
    results = (out.numpy(), scale_N.numpy())
    parts = torch.get_num_threads()
    step = max(1, -(-rows // parts))
    spans = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    others = [_pool(parts).submit(expand, *arrays, *settings, *results, *span) for span in spans[1:]]
    for span in spans[:1]:
        expand(*arrays, *settings, *results, *span)
    for other in others:
        other.result()
    return out, scale_N


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="expand")


_LOCK = threading.Lock()


def _compiled() -> dict[str, Callable[..., None]] | None:
    with _LOCK:  # numba's compiler and the cache are not to be entered twice
        return _compile()


@cache
def _compile() -> dict[str, Callable[..., None]] | None:
    """The loops; each is compiled at its first call, in a second or so."""
    try:
        import numba
    except ImportError:
        return None
    compile_ = numba.njit(nogil=True, error_model="numpy")
    inline = numba.njit(nogil=True, error_model="numpy", inline="always")
    loops = {f"pairs of {name}": _pairs(numba, inline(value)) for name, value in _values().items()}
    return {name: compile_(loop) for name, loop in {**loops, "q4_k": _q4_k(inline), "halves": _halves(inline)}.items()}


def _values() -> dict[Value, Callable[[Any], Any]]:
    """Twice what a code stands for, as float32: so that FP4 is whole numbers too."""
    import numpy

    float32, int32, uint32 = numpy.float32, numpy.int32, numpy.uint32
    magnitudes = uint32(0xC8643210)  # of E2M1, four bits each: 0, 1, 2, 3, 4, 6, 8, 12

    def fp4(code: Any) -> Any:
        twice = float32(int32((magnitudes >> uint32((code & 7) << 2)) & uint32(15)))
        return -twice if code & 8 else twice

    def integer(code: Any) -> Any:
        return float32(2 * code)

    return {"fp4": fp4, "integer": integer}


def _row_scale(inline: Any) -> Any:
    """The scale of a row from the largest value it may hold."""
    import numpy

    float32 = numpy.float32

    def row_scale(largest: Any) -> Any:
        scale = largest / float32(127)
        return scale if scale > float32(0) else float32(1)

    return inline(row_scale)


def _pairs(numba: Any, value: Any) -> Callable[..., None]:
    import numpy
    from numba.extending import overload

    float32, int32, int8 = numpy.float32, numpy.int32, numpy.int8
    inline = numba.njit(nogil=True, error_model="numpy", inline="always")
    row_scale = _row_scale(inline)
    most, least = (
        max(value.py_func(int32(code)) for code in range(16)) / 2,
        min(value.py_func(int32(code)) for code in range(16)) / 2,
    )
    most, least = float32(most), float32(least)

    def factors(scale_G: Any, decode: Any, zero_G: Any, shifted: Any, factor_G: Any) -> Any:
        """Fill in the factors of a row; return the largest value they allow."""

    @overload(factors)  # type: ignore[untyped-decorator]
    def _factors(scale_G: Any, decode: Any, zero_G: Any, shifted: Any, factor_G: Any) -> Any:
        def decoded(scale_G: Any, decode: Any, zero_G: Any, shifted: Any, factor_G: Any) -> Any:
            # Bytes have a maximum in registers; floats, which may be NaN, do not.
            largest = scale_G[0]
            for group in range(len(scale_G)):
                largest = max(largest, scale_G[group])
            for group in range(len(scale_G)):
                factor_G[group] = decode[scale_G[group]]
            return decode[largest] * max(-least, most)

        def plain(scale_G: Any, decode: Any, zero_G: Any, shifted: Any, factor_G: Any) -> Any:
            largest = float32(0)
            for group in range(len(scale_G)):
                zero = zero_G[group] if shifted else float32(0)
                factor_G[group] = scale_G[group]
                largest = max(largest, abs(scale_G[group]) * max(zero - least, most - zero))
            return largest

        return decoded if scale_G.dtype == numba.types.uint8 else plain

    @inline  # type: ignore[untyped-decorator]
    def spread(of_G: Any, factor: Any, out: Any, width: int) -> None:
        """Each group's number for each of its elements, by eight: a loop of unknown length costs more than what it writes."""
        if width % 8:
            for group in range(len(of_G)):
                for at in range(group * width, (group + 1) * width):
                    out[at] = of_G[group] * factor
        else:
            for group in range(len(of_G)):
                number = of_G[group] * factor
                for eight in range(group * width, (group + 1) * width, 8):
                    for at in range(8):
                        out[eight + at] = number

    def expand(
        codes: Any, scale: Any, decode: Any, zero: Any, shifted: bool, out: Any, scale_N: Any, first: int, last: int
    ) -> None:
        half, groups = codes.shape[1], scale.shape[1]
        width = half // groups
        factor, shift = numpy.empty(half, float32), numpy.zeros(half, float32)
        low, high, factor_G = numpy.empty(half, int8), numpy.empty(half, int8), numpy.empty(groups, float32)
        for row in range(first, last):
            zero_G = zero[row] if shifted else zero[0]
            scale_N[row] = row_scale(factors(scale[row], decode, zero_G, shifted, factor_G))
            inverse = float32(0.5) / scale_N[row]
            spread(factor_G, inverse, factor, width)
            if shifted:
                spread(zero_G, float32(2), shift, width)
            codes_row, out_row = codes[row], out[row]
            for at in range(half):
                code = int32(codes_row[at])
                low[at] = int8(int32(numpy.rint((value(code & 15) - shift[at]) * factor[at])))
                high[at] = int8(int32(numpy.rint((value(code >> 4) - shift[at]) * factor[at])))
            # Apart from the above, which the compiler would not vectorise with every other element to write.
            for at in range(half):
                out_row[2 * at] = low[at]
                out_row[2 * at + 1] = high[at]

    return expand


def _q4_k(inline: Any) -> Callable[..., None]:
    import numpy

    float32, int32, int8 = numpy.float32, numpy.int32, numpy.int8
    row_scale = _row_scale(inline)

    def expand(blocks: Any, scale: Any, least: Any, out: Any, scale_N: Any, first: int, last: int) -> None:
        for row in range(first, last):
            largest = float32(0)
            for group in range(scale.shape[1]):
                ends = scale[row, group] * float32(15) - least[row, group], least[row, group]
                largest = max(largest, abs(ends[0]), abs(ends[1]))
            scale_N[row] = row_scale(largest)
            inverse = float32(1) / scale_N[row]
            for piece in range(4 * blocks.shape[1]):
                source = blocks[row, piece // 4, 16 + 32 * (piece % 4) : 48 + 32 * (piece % 4)]
                low, high = out[row, 64 * piece : 64 * piece + 32], out[row, 64 * piece + 32 : 64 * piece + 64]
                low_factor, high_factor = scale[row, 2 * piece] * inverse, scale[row, 2 * piece + 1] * inverse
                low_least, high_least = least[row, 2 * piece] * inverse, least[row, 2 * piece + 1] * inverse
                for at in range(32):
                    code = int32(source[at])
                    low[at] = int8(int32(numpy.rint(float32(code & 15) * low_factor - low_least)))
                    high[at] = int8(int32(numpy.rint(float32(code >> 4) * high_factor - high_least)))

    return expand


def _halves(inline: Any) -> Callable[..., None]:
    import numpy

    float32, int32, int8, uint32 = numpy.float32, numpy.int32, numpy.int8, numpy.uint32
    row_scale = _row_scale(inline)

    def expand(blocks: Any, scale: Any, start: int, fifth: int, out: Any, scale_N: Any, first: int, last: int) -> None:
        middle = int32(16 if fifth else 8)
        for row in range(first, last):
            largest = float32(0)
            for block in range(scale.shape[1]):
                largest = max(largest, abs(scale[row, block]))
            scale_N[row] = row_scale(largest * float32(middle))
            inverse = float32(1) / scale_N[row]
            for block in range(scale.shape[1]):
                factor, bits = scale[row, block] * inverse, uint32(0)
                if fifth:
                    for byte in range(4):
                        bits |= uint32(blocks[row, block, fifth + byte]) << uint32(8 * byte)
                source = blocks[row, block, start : start + 16]
                low, high = out[row, 32 * block : 32 * block + 16], out[row, 32 * block + 16 : 32 * block + 32]
                for at in range(16):
                    code = int32(source[at])
                    above = int32(((bits >> uint32(at)) & uint32(1)) << uint32(4))
                    low[at] = int8(int32(numpy.rint(float32(((code & 15) | above) - middle) * factor)))
                    above = int32(((bits >> uint32(at + 16)) & uint32(1)) << uint32(4))
                    high[at] = int8(int32(numpy.rint(float32(((code >> 4) | above) - middle) * factor)))

    return expand
