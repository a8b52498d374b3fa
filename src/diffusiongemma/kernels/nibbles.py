"""4-bit codes to rows of int8, for products that expand a weight each time they use it.

Expanding is most of what a packed expert costs on a CPU: torch's own operations reach 0.6 thousand million weights a second on a
thread, the loop here 4 (docs/lab-log.md). It is compiled by numba, which is optional; where it is not installed, callers have
another way. With AVX-512 a table of 16 values is one register, and 32 codes are looked up, scaled, rounded and
interleaved in some ten instructions.
Shapes: N rows, K columns, G groups of columns.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["can_expand_nibbles", "expand_nibbles"]

AT_ONCE = 32
"""Codes that the loop takes at once."""
HALF_GROUP = 16
"""A group begins at a multiple of it, so that 32 codes lie in two groups at most."""


def can_expand_nibbles(columns: int, width: int) -> bool:
    """Whether ``expand_nibbles`` takes rows of so many columns in groups of ``width``, and numba is here."""
    return columns % AT_ONCE == 0 and width % HALF_GROUP == 0 and columns % width == 0 and _compiled() is not None


def expand_nibbles(
    codes: Tensor, scale: Tensor, decode: Tensor | None, zero: Tensor | None, table: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows ``(table[code] - zero) * scale`` rounded to int8, each by the largest value that its scales allow.

    Args:
        codes: uint8 ``[N, K / 2]``, the even column in the low nibble.
        scale: of each group, ``[N, G]`` float32, or uint8 codes of 0 and more in the order of what they stand for.
        decode: float32 ``[256]``, what the codes of scales stand for; None: they are no codes.
        zero: float32 ``[N, G]``; None: 0.
        table: float32 ``[16]``.

    Returns:
        Codes ``[N, K]`` int8 and scales ``[N]`` float32; a row whose scales are all 0 has scale 1.
    """
    expand = _compiled()
    assert expand is not None
    out, scale_N = torch.empty(len(codes), 2 * codes.shape[1], dtype=torch.int8), torch.empty(len(codes))
    blank = torch.zeros(1, 1)
    given = (codes, scale, blank[0] if decode is None else decode, blank if zero is None else zero, table, out, scale_N)
    arrays = [tensor.contiguous().numpy() for tensor in given]
    limits = (float(table.min()), float(table.max()), zero is not None)
    parts = torch.get_num_threads()
    step = -(-len(codes) // parts)
    spans = [(start, min(start + step, len(codes))) for start in range(0, len(codes), step)]
    others = [_pool(parts).submit(expand, *arrays, *limits, *span) for span in spans[1:]]
    expand(*arrays, *limits, *spans[0])
    for other in others:
        other.result()
    return out, scale_N


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="expand")


_LOCK = threading.Lock()


def _compiled() -> Callable[..., None] | None:
    with _LOCK:  # numba's compiler and the cache are not to be entered twice
        return _compile()


@cache
def _compile() -> Callable[..., None] | None:
    try:
        import numba
        from llvmlite import binding
    except ImportError:
        return None
    wide = bool(binding.get_host_cpu_features().get("avx512bw"))
    return _loop(numba, _vector_block(numba) if wide else _plain_block(numba))


def _loop(numba: Any, block: Any) -> Callable[..., None]:
    """The loop over rows, around a block of 32 codes."""
    import numpy
    from numba.extending import overload

    none = numpy.float32(0)

    def factors(scale_G: Any, decode: Any, zero_G: Any, shifted: Any, least: Any, most: Any, factor_G: Any) -> Any:
        """Fill in the factors of a row; return the largest value they allow."""

    @overload(factors)  # type: ignore[untyped-decorator]
    def _factors(scale_G: Any, decode: Any, zero_G: Any, shifted: Any, least: Any, most: Any, factor_G: Any) -> Any:
        def decoded(scale_G: Any, decode: Any, zero_G: Any, shifted: Any, least: Any, most: Any, factor_G: Any) -> Any:
            # Bytes have a maximum in registers; floats, which may be NaN, do not.
            largest = scale_G[0]
            for group in range(len(scale_G)):
                largest = max(largest, scale_G[group])
            for group in range(len(scale_G)):
                factor_G[group] = decode[scale_G[group]]
            return decode[largest] * max(-least, most)

        def plain(scale_G: Any, decode: Any, zero_G: Any, shifted: Any, least: Any, most: Any, factor_G: Any) -> Any:
            largest = none
            for group in range(len(scale_G)):
                zero = zero_G[group] if shifted else none
                factor_G[group] = scale_G[group]
                largest = max(largest, abs(scale_G[group]) * max(zero - least, most - zero))
            return largest

        return decoded if scale_G.dtype == numba.types.uint8 else plain

    def expand(
        codes: Any, scale: Any, decode: Any, zero: Any, table: Any, out: Any, scale_N: Any, least: Any, most: Any,
        shifted: bool, first: int, last: int,
    ) -> None:  # fmt: skip
        blocks, groups = out.shape[1] // 32, scale.shape[1]
        width, factor = out.shape[1] // groups, numpy.empty(groups, numpy.float32)
        least, most = numpy.float32(least), numpy.float32(most)
        for row in range(first, last):
            zero_G = zero[row] if shifted else zero[0]
            bound = factors(scale[row], decode, zero_G, shifted, least, most, factor) / numpy.float32(127)
            scale_N[row] = bound if bound > none else numpy.float32(1)
            inverse = numpy.float32(1) / scale_N[row]
            for at in range(blocks):
                left, right = 32 * at // width, (32 * at + 16) // width
                left_zero, right_zero = (zero_G[left], zero_G[right]) if shifted else (none, none)
                block(codes, table, out, row, at, factor[left] * inverse, factor[right] * inverse, left_zero, right_zero)

    compiled: Callable[..., None] = numba.njit(nogil=True, error_model="numpy")(expand)
    return compiled


def _plain_block(numba: Any) -> Any:
    """Sixteen bytes in a loop, which the compiler makes of what it can."""
    import numpy

    def block(codes: Any, table: Any, out: Any, row: int, at: int, left: Any, right: Any, left_zero: Any, right_zero: Any) -> None:
        for byte in range(16):
            factor = left if byte < 8 else right
            zero = left_zero if byte < 8 else right_zero
            code = codes[row, 16 * at + byte]
            out[row, 32 * at + 2 * byte] = numpy.int8(numpy.rint((table[code & 15] - zero) * factor))
            out[row, 32 * at + 2 * byte + 1] = numpy.int8(numpy.rint((table[code >> 4] - zero) * factor))

    return numba.njit(nogil=True, error_model="numpy", inline="always")(block)


def _vector_block(numba: Any) -> Any:
    """The same in registers of 16 floats: the table is looked up by ``vpermps``."""
    import numpy
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    int8, int32, float32 = ir.IntType(8), ir.IntType(32), ir.FloatType()
    ints, floats = ir.VectorType(int32, 16), ir.VectorType(float32, 16)

    def constants(values: list[int]) -> Any:
        return ir.Constant(ir.VectorType(int32, len(values)), [int32(value) for value in values])

    @intrinsic  # type: ignore[untyped-decorator]
    def expand32(context: Any, codes: Any, table: Any, out: Any, left: Any, right: Any, left_zero: Any, right_zero: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, table, out, left, right, left_zero, right_zero = arguments

            def call(name: str, *values: Any) -> Any:
                kind = ir.FunctionType(floats, [value.type for value in values])
                return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)

            def load(address: Any, kind: Any) -> Any:
                loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
                loaded.align = 1
                return loaded

            def two(first: Any, second: Any) -> Any:
                """One scalar for the first eight bytes, another for the others."""
                pair = builder.insert_element(ir.Constant(floats, ir.Undefined), first, int32(0))
                pair = builder.insert_element(pair, second, int32(1))
                return builder.shuffle_vector(pair, pair, constants([lane // 8 for lane in range(16)]))

            values, zero, factor = load(table, floats), two(left_zero, right_zero), two(left, right)

            def rounded(codes_of_lanes: Any) -> Any:
                # Of each lane's index the instruction reads the low four bits.
                found = call("llvm.x86.avx512.permvar.sf.512", values, codes_of_lanes)
                scaled = builder.fmul(builder.fsub(found, zero), factor)
                return builder.trunc(builder.fptosi(call("llvm.rint.v16f32", scaled), ints), ir.VectorType(int8, 16))

            loaded = builder.zext(load(codes, ir.VectorType(int8, 16)), ints)
            low, high = rounded(loaded), rounded(builder.lshr(loaded, constants([4] * 16)))
            order = constants([lane // 2 + 16 * (lane % 2) for lane in range(32)])
            both = builder.shuffle_vector(low, high, order)
            builder.store(both, builder.inttoptr(out, both.type.as_pointer())).align = 1
            return context.get_dummy_value()

        address, number = types.uintp, types.float32
        return types.void(address, address, address, number, number, number, number), generate

    def block(codes: Any, table: Any, out: Any, row: int, at: int, left: Any, right: Any, left_zero: Any, right_zero: Any) -> None:
        source = numpy.uintp(codes.ctypes.data) + numpy.uintp(row * codes.shape[1] + 16 * at)
        target = numpy.uintp(out.ctypes.data) + numpy.uintp(row * out.shape[1] + 32 * at)
        expand32(source, numpy.uintp(table.ctypes.data), target, left, right, left_zero, right_zero)

    return numba.njit(nogil=True, error_model="numpy", inline="always")(block)
