"""From one stored linear to the tensors of its record: what each is, how it is read, and whether config.json agrees.

Nothing is read here; a ``Field`` says how to. Shapes: N rows, K columns, G groups of columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.errors import CheckpointError
from diffusiongemma.quant import Fp8Weight, Int4Weight, Int8Weight, Mxfp4Weight, Nvfp4Weight, PackedWeight
from diffusiongemma.quant.four_bit import MXFP4_GROUP, NVFP4_GROUP
from diffusiongemma.weights import packings
from diffusiongemma.weights.headers import FLOATS, Stored
from diffusiongemma.weights.linears import Linear
from diffusiongemma.weights.schemes import Group, Scheme
from diffusiongemma.weights.tensor_bytes import DTYPES, TensorBytes

__all__ = ["Field", "Planned", "plan"]


@dataclass(frozen=True)
class Field:
    """One tensor of a record, of one stored linear.

    Attributes:
        shape: its first dimension is the rows, or 1 for what a linear has once.
        dtype: in the record.
        stored: the tensor in the file that it is made from.
        make: makes it of the stored one; None: it is the stored one, in this shape.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: Stored
    make: Callable[[Tensor], Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the record."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count

    def load(self, data: TensorBytes) -> Tensor:
        """The tensor; a view of the mapped file where it is stored as it is."""
        if self.make is None:
            return data.view(self.stored).view(self.dtype).view(self.shape)
        return self.make(data.read(self.stored)).to(self.dtype).contiguous().view(self.shape)

    def load_into(self, data: TensorBytes, out: Tensor) -> None:
        """Put it into memory that is already there, in one copy where it is stored as it is."""
        if self.make is None and out.is_contiguous():
            data.read(self.stored, out)
        else:
            out.copy_(self.load(data))


@dataclass(frozen=True)
class Planned:
    """A stored linear that will fit its place.

    Attributes:
        linear: as it is stored.
        fields: the tensors of its record (of a plain one, the matrix itself, as ``weight``).
        build: shape and tensors -> record, or plain tensor.
        key: what linears must share to be stacked.
        expected: small tensors that have no place in the record: name, tensor, what it must hold.
    """

    linear: Linear
    fields: dict[str, Field]
    build: Callable[..., PackedWeight | Tensor]
    key: tuple[Any, ...]
    expected: tuple[tuple[str, Stored, Tensor], ...] = ()

    def check(self, data: TensorBytes) -> None:
        """Hold the small tensors against what they must be.

        Raises:
            CheckpointError: they are something else.
        """
        for name, stored, wanted in self.expected:
            if not torch.equal(data.read(stored).to(wanted.dtype), wanted):
                told = f"{wanted.tolist()}" if wanted.numel() < 5 else "the columns in order, as config.json says"
                raise CheckpointError(f"{name} does not hold {told}; the weights and config.json do not belong together")


def plan(linear: Linear, shape: tuple[int, ...], scheme: Scheme | None) -> Planned:
    """How a stored linear becomes a weight of a shape.

    Raises:
        CheckpointError: the tensors have other shapes or dtypes than the format asks for, or config.json says something else.
    """
    if linear.kind == "plain":
        stored = linear.parts["weight"]
        _want_shape(linear.name, stored, shape)
        fields = {"weight": Field(shape, DTYPES[stored.dtype], stored)}
        return Planned(linear, fields, lambda shape, weight: weight, ("plain", stored.dtype))
    assert scheme is not None
    if foreign := sorted(scheme.foreign.intersection(linear.parts)):
        raise CheckpointError(
            f"{linear.base} has {foreign[0]}, which checkpoints of {scheme.method} do not have, as which config.json's "
            "quantization_config describes this one; the weights and config.json do not belong together"
        )
    if len(shape) != 2:
        raise CheckpointError(f"{linear.name} is quantised, but config.json asks for {list(shape)} there; only matrices are")
    if linear.kind in ("fp8", "int8"):
        return _eight_bit(linear, shape[0], shape[1], scheme)
    if linear.kind in ("nvfp4", "mxfp4"):
        return _fp4(linear, shape[0], shape[1], scheme)
    return (
        _qweight(linear, shape[0], shape[1], scheme) if "qweight" in linear.parts else _packed(linear, shape[0], shape[1], scheme)
    )


def _want_shape(name: str, stored: Stored, *allowed: tuple[int, ...]) -> None:
    if stored.shape not in allowed:
        shapes = " or ".join(str(list(shape)) for shape in allowed)
        raise CheckpointError(
            f"{name} has shape {list(stored.shape)}; config.json asks for {shapes}. "
            "The weights and config.json are not of the same model"
        )


def _want_dtype(name: str, stored: Stored, *allowed: str) -> None:
    if stored.dtype not in allowed:
        raise CheckpointError(f"{name} has dtype {stored.dtype}; allowed: {', '.join(allowed)}")


def _groups_of(linear: Linear, kind: str, scheme: Scheme) -> tuple[Group, ...]:
    result = scheme.of_kind(kind)
    if not result:
        said = ", ".join(sorted({group.kind for group in scheme.groups}))
        raise CheckpointError(
            f"{linear.name} is stored as {kind}, but config.json's quantization_config ({scheme.method}) says {said}; "
            "the weights and config.json do not belong together"
        )
    return result


def _floats(name: str, stored: Stored) -> torch.dtype:
    _want_dtype(name, stored, *sorted(FLOATS - {"F64"}))
    return DTYPES[stored.dtype]


def _width(linear: Linear, name: str, count: int, columns: int, groups: tuple[Group, ...]) -> int:
    """Columns that share a scale, of ``count`` scales a row, as one of the config's groups has it."""
    for one in groups:
        width = columns if one.width is None else one.width
        if -(-columns // width) == count:
            return width
    said = ", ".join("a whole row" if one.width is None else str(one.width) for one in groups)
    raise CheckpointError(
        f"{name} has {count} groups of {columns} columns; config.json's quantization_config gives a scale to groups of {said}"
    )


def _eight_bit(linear: Linear, rows: int, columns: int, scheme: Scheme) -> Planned:
    groups = _groups_of(linear, linear.kind, scheme)
    suffix = "weight_scale_inv" if "weight_scale_inv" in linear.parts else "weight_scale"
    codes, scale, name = linear.parts["weight"], linear.parts[suffix], f"{linear.base}.{suffix}"
    _want_shape(linear.name, codes, (rows, columns))
    dtype = _floats(name, scale)
    block = next((one.block for one in groups if one.block), None)
    in_blocks = all(one.block for one in groups)
    count = 1
    if scale.shape in ((), (1,), (1, 1)) and not in_blocks:
        width, make = columns, partial(packings.repeat_rows, rows=rows, height=rows)
    elif scale.shape in ((rows,), (rows, 1)) and not in_blocks:
        width, make = columns, None
    elif len(scale.shape) == 2 and scale.shape[0] == rows and not block:
        count = scale.shape[1]
        width, make = _width(linear, name, count, columns, groups), None
    elif block:
        height, width = block
        count = -(-columns // width)
        _want_shape(name, scale, (-(-rows // height), count))
        make = partial(packings.repeat_rows, rows=rows, height=height)
    else:
        _want_shape(name, scale, (rows, 1), (1,))
        raise AssertionError
    fields = {"codes": Field((rows, columns), DTYPES[codes.dtype], codes), "scale": Field((rows, count), dtype, scale, make)}
    if (zero := linear.parts.get("weight_zero_point")) is not None:
        _want_dtype(f"{linear.base}.weight_zero_point", zero, "I8")
        _want_shape(f"{linear.base}.weight_zero_point", zero, scale.shape)
        fields["zero"] = Field((rows, count), torch.int8, zero, make)
    else:
        _want_zero(linear, groups, "weight_zero_point")
    record = Fp8Weight if linear.kind == "fp8" else Int8Weight
    return Planned(linear, fields, partial(record, width=width), (linear.kind, width, dtype, "zero" in fields))


def _want_zero(linear: Linear, groups: tuple[Group, ...], suffix: str) -> None:
    if all(one.symmetric is False for one in groups):
        raise CheckpointError(
            f"{linear.name} has no {suffix}, though config.json's quantization_config says that weights have zero points; "
            "download the checkpoint again"
        )


def _fp4(linear: Linear, rows: int, columns: int, scheme: Scheme) -> Planned:
    _groups_of(linear, linear.kind, scheme)
    parts, base = linear.parts, linear.base
    width = NVFP4_GROUP if linear.kind == "nvfp4" else MXFP4_GROUP
    if columns % width:
        raise CheckpointError(f"{linear.name} has {columns} columns, no multiple of {width}, which {linear.kind} needs")
    codes = parts["weight_packed"] if "weight_packed" in parts else parts["weight"]
    _want_shape(linear.name, codes, (rows, columns // 2))
    scale, name = parts["weight_scale"], f"{base}.weight_scale"
    _want_dtype(name, scale, *(("F8_E4M3",) if linear.kind == "nvfp4" else ("U8", "F8_E8M0")))
    _want_shape(name, scale, (rows, columns // width))
    fields = {
        "codes": Field((rows, columns // 2), torch.uint8, codes),
        "scale": Field((rows, columns // width), DTYPES[scale.dtype], scale),
    }
    if linear.kind == "mxfp4":
        return Planned(linear, fields, Mxfp4Weight, ("mxfp4",))
    divides = "weight_global_scale" in parts
    suffix = "weight_global_scale" if divides else "weight_scale_2"
    _want_dtype(f"{base}.{suffix}", parts[suffix], "F32")
    _want_shape(f"{base}.{suffix}", parts[suffix], (), (1,))
    fields["second"] = Field((rows,), torch.float32, parts[suffix], partial(packings.fill_rows, rows=rows))
    return Planned(linear, fields, partial(Nvfp4Weight, divides=divides), ("nvfp4", divides))


def _packed(linear: Linear, rows: int, columns: int, scheme: Scheme) -> Planned:
    """compressed-tensors ``pack-quantized``: 4 or 8 bits in int32 words along a row."""
    parts, base = linear.parts, linear.base
    codes, scale, zero = parts["weight_packed"], parts["weight_scale"], parts.get("weight_zero_point")
    bits = 8 if codes.shape == (rows, columns // 4) else 4
    groups = _groups_of(linear, f"int{bits}", scheme)
    if columns % 8:
        raise CheckpointError(f"{linear.name} has {columns} columns, no multiple of 8; other widths are not read")
    _want_shape(linear.name, codes, (rows, columns * bits // 32))
    name = f"{base}.weight_scale"
    dtype = _floats(name, scale)
    if len(scale.shape) != 2 or scale.shape[0] != rows:
        _want_shape(name, scale, (rows, 1))
    count = scale.shape[1]
    width = _width(linear, name, count, columns, groups)
    _want_dtype(f"{base}.weight_shape", parts["weight_shape"], "I64", "I32")
    _want_shape(f"{base}.weight_shape", parts["weight_shape"], (2,))
    fields = {"scale": Field((rows, count), dtype, scale)}
    if bits == 4:
        fields["codes"] = Field((rows, columns // 2), torch.uint8, codes)
    else:
        fields["codes"] = Field((rows, columns), torch.int8, codes, packings.signed_bytes)
    if zero is not None:
        _want_dtype(f"{base}.weight_zero_point", zero, "I32")
        _want_shape(f"{base}.weight_zero_point", zero, (-(-rows * bits // 32), count))
        unpack = partial(packings.packed_rows, rows=rows, bits=bits)
        fields["zero"] = Field((rows, count), torch.uint8 if bits == 4 else torch.int8, zero, unpack)
    else:
        _want_zero(linear, groups, "weight_zero_point")
    order = _order(linear, parts.get("weight_g_idx"), "weight_g_idx", columns)
    if order is not None:
        if bits == 8:
            raise CheckpointError(f"{base}.weight_g_idx orders the columns of 8-bit weights, which is not read")
        fields["order"] = order
    record = partial(Int4Weight if bits == 4 else Int8Weight, width=width)
    shape = (f"{base}.weight_shape", parts["weight_shape"], torch.tensor([rows, columns]))
    return Planned(linear, fields, record, (f"int{bits}", width, dtype, tuple(sorted(fields))), (shape,))


def _order(linear: Linear, stored: Stored | None, suffix: str, columns: int) -> Field | None:
    if stored is None:
        return None
    _want_dtype(f"{linear.base}.{suffix}", stored, "I32")
    _want_shape(f"{linear.base}.{suffix}", stored, (columns,))
    return Field((1, columns), torch.int32, stored, lambda result: result)


def _qweight(linear: Linear, rows: int, columns: int, scheme: Scheme) -> Planned:
    """GPTQ, AutoRound and AutoAWQ: everything is transposed, words run along the columns or (AutoAWQ) along the rows."""
    parts, base = linear.parts, linear.base
    groups = _groups_of(linear, "int4", scheme)
    if columns % 8 or rows % 8:
        raise CheckpointError(f"{linear.name} is of {rows} rows and {columns} columns; both must be multiples of 8")
    awq = scheme.packing == "awq"
    _want_shape(linear.name, parts["qweight"], (columns, rows // 8) if awq else (columns // 8, rows))
    scale, name = parts["scales"], f"{base}.scales"
    dtype = _floats(name, scale)
    if len(scale.shape) != 2 or scale.shape[1] != rows:
        _want_shape(name, scale, (1, rows))
    count = scale.shape[0]
    width = _width(linear, name, count, columns, groups)
    codes = packings.awq_codes if awq else packings.gptq_codes
    fields = {
        "codes": Field((rows, columns // 2), torch.uint8, parts["qweight"], codes),
        "scale": Field((rows, count), dtype, scale, packings.transposed),
    }
    zero = parts.get("qzeros")
    if zero is not None:
        _want_dtype(f"{base}.qzeros", zero, "I32")
        _want_shape(f"{base}.qzeros", zero, (count, rows // 8))
    if not all(one.symmetric for one in groups):
        if zero is None:
            raise CheckpointError(f"{linear.name} has no qzeros, which only weights need not that config.json says are symmetric")
        unpack = partial(packings.awq_zeros if awq else packings.gptq_zeros, offset=scheme.zero_offset)
        fields["zero"] = Field((rows, count), torch.uint8, zero, unpack)
    order = _order(linear, parts.get("g_idx"), "g_idx", columns)
    expected: tuple[tuple[str, Stored, Tensor], ...] = ()
    if order is not None and scheme.desc_act:
        fields["order"] = order
    elif order is not None:
        expected = ((f"{base}.g_idx", order.stored, torch.arange(columns) // width),)
    elif scheme.desc_act:
        raise CheckpointError(f"{linear.name} has no g_idx, though config.json's quantization_config has desc_act true")
    return Planned(linear, fields, partial(Int4Weight, width=width), ("int4", width, dtype, tuple(sorted(fields))), expected)
