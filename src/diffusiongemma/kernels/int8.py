"""Products of float rows with an int8 matrix: rows are rounded to 8 bits each by its own largest value, sums are exact integers.

What a row gives does not depend on its neighbours: its scale is its own and integer sums have no rounding to share.
Shapes: T rows, N outputs, K inputs.
"""

import logging
import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Int8Rows",
    "PreparedInt8",
    "int8_backend",
    "int8_mix",
    "int8_product",
    "largest_code",
    "prepare_int8",
    "product_of_rows",
    "quantize_rows",
]

log = logging.getLogger(__name__)
LARGEST = 127
"""Codes are -127 to 127: symmetric, as published INT8 files have them."""
LARGEST_WITHOUT_VNNI = 63
"""Of the rows, where a processor adds pairs of products in 16 bits: 2 x 127 x 127 is the most that fits."""


class Int8Rows(NamedTuple):
    """Rows rounded to int8.

    Attributes:
        codes: ``[..., K]`` int8.
        scale: ``[..., 1]`` float32.
    """

    codes: Tensor
    scale: Tensor

    def take(self, rows: slice | Tensor) -> "Int8Rows":
        """Some of the rows."""
        return Int8Rows(self.codes[rows], self.scale[rows])


def quantize_rows(x: Tensor, largest: int = LARGEST) -> Int8Rows:
    """Rows as int8 codes and one float32 scale each, from the largest absolute value; a row of zeros has scale 1.

    Args:
        x: ``[..., K]`` float.
        largest: code of a row's largest value.
    """
    wide = x.float()
    scale = wide.abs().amax(-1, keepdim=True) / largest
    scale = torch.where(scale > 0, scale, 1.0)
    return Int8Rows((wide / scale).round_().to(torch.int8), scale)


class PreparedInt8(NamedTuple):
    """An int8 matrix ``[N, K]`` in the layout of one backend.

    Attributes:
        backend: its name.
        matrix: the codes, in the backend's own layout.
        scale_N: ``[N]`` float32.
    """

    backend: str
    matrix: Tensor
    scale_N: Tensor

    @property
    def largest(self) -> int:
        """Largest code of rows that are multiplied with it."""
        return largest_code(self.backend)

    def codes(self) -> Tensor:
        """The codes ``[N, K]`` int8."""
        return self.matrix.to_dense().T if self.matrix.is_mkldnn else self.matrix


def largest_code(backend: str) -> int:
    """Largest code of the rows that a backend multiplies."""
    return _BACKENDS[backend].largest()


def prepare_int8(codes_NK: Tensor, scale_N: Tensor, backend: str | None = None) -> PreparedInt8:
    """Lay a matrix out for the backend of this machine.

    Args:
        codes_NK: ``[N, K]`` int8.
        scale_N: ``[N]`` float32.
        backend: its name; None: the fastest here.
    """
    name = int8_backend() if backend is None else backend
    return PreparedInt8(name, _BACKENDS[name].prepare(codes_NK), scale_N)


def int8_product(x_TK: Tensor, prepared: PreparedInt8) -> Tensor:
    """``x @ W.T``: ``[T, K]`` float to ``[T, N]`` float32, x rounded to 8 bits a row."""
    return product_of_rows(quantize_rows(x_TK, prepared.largest), prepared)


def product_of_rows(rows: Int8Rows, prepared: PreparedInt8) -> Tensor:
    """``x @ W.T`` for rows that are rounded already: ``[T, K]`` to float32 ``[T, N]``."""
    return _BACKENDS[prepared.backend].product(rows.codes, prepared.matrix, prepared.scale_N).mul_(rows.scale)


def int8_mix(weight_RT: Tensor, codes_TD: Tensor, scale_T: Tensor) -> Tensor:
    """The sum of a tile's rows by weights of 0 and more: ``weight @ (codes * scale)``, in float32 ``[R, D]``.

    Args:
        weight_RT: ``[R, T]`` float32.
        codes_TD: ``[T, D]`` int8.
        scale_T: ``[T]`` float32; goes into the weights, which are then rounded to 8 bits a row.
    """
    return int8_product(weight_RT * scale_T, prepare_int8(codes_TD.T.contiguous(), torch.ones(codes_TD.shape[1])))


# -- backends ----------------------------------------------------------------------------------------------------------


class _Backend(NamedTuple):
    """How codes are laid out, the largest code of a row, and the product of int8 rows with them, times the matrix's scales."""

    prepare: Callable[[Tensor], Tensor]
    largest: Callable[[], int]
    product: Callable[[Tensor, Tensor, Tensor], Tensor]


def _onednn_prepare(codes_NK: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes_NK, None)
    return packed


def _onednn_product(codes_TK: Tensor, packed: Tensor, scale_N: Tensor) -> Tensor:
    # Rows are unsigned with a zero point there.
    zero = _onednn_largest() + 1
    shifted = codes_TK.to(torch.int16).add_(zero).to(torch.uint8)
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        shifted, 1.0, zero, packed, scale_N, torch.zeros(len(scale_N), dtype=torch.int32),
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return out


def _onednn_largest() -> int:
    return LARGEST if torch.cpu._is_vnni_supported() else LARGEST_WITHOUT_VNNI


def _int_mm_product(codes_TK: Tensor, codes_NK: Tensor, scale_N: Tensor) -> Tensor:
    return torch._int_mm(codes_TK, codes_NK.T).float().mul_(scale_N)


def _float_product(codes_TK: Tensor, codes_NK: Tensor, scale_N: Tensor) -> Tensor:
    return (codes_TK.float() @ codes_NK.float().T).mul_(scale_N)


_BACKENDS = {
    "onednn": _Backend(_onednn_prepare, _onednn_largest, _onednn_product),
    "int_mm": _Backend(lambda codes: codes, lambda: LARGEST, _int_mm_product),
    "float": _Backend(lambda codes: codes, lambda: LARGEST, _float_product),
}


@cache
def int8_backend(*, once: bool = False) -> str:
    """The fastest of the backends that run here, by one product of 64 x 1024 x 1024 each; measured once.

    Args:
        once: for a matrix that is multiplied a single time, so that laying it out counts.
    """
    codes = torch.arange(1024 * 1024).remainder_(251).sub_(125).to(torch.int8).view(1024, 1024)
    rows, scale = codes[:64].clone(), torch.ones(1024)
    seconds: dict[str, float] = {}
    for name, backend in _BACKENDS.items():
        try:
            prepared = backend.prepare(codes)
            backend.product(rows, prepared, scale)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            log.info("int8 products by %s do not run here: %s", name, str(error).splitlines()[0])
            continue
        began = time.perf_counter()
        for _ in range(3):
            backend.product(rows, backend.prepare(codes) if once else prepared, scale)
        seconds[name] = (time.perf_counter() - began) / 3
    best = min(seconds, key=seconds.__getitem__)
    rates = ", ".join(f"{name} {2 * 64 * 1024**2 / spent / 1e9:.0f}" for name, spent in seconds.items())
    log.info("int8 products by %s (GFLOP/s here: %s)", best, rates)
    return best
