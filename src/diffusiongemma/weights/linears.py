"""Stored tensors grouped into linears, and what each of these is: decided by the suffixes and dtypes that are there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from diffusiongemma.errors import CheckpointError
from diffusiongemma.weights.headers import FLOATS, Stored

__all__ = ["Linear", "group"]

_SUFFIXES = frozenset(
    {
        "weight", "weight_packed", "weight_scale", "weight_scale_2", "weight_scale_inv", "weight_global_scale",
        "weight_zero_point", "weight_shape", "weight_g_idx", "qweight", "qzeros", "scales", "biases", "g_idx",
    }
)  # fmt: skip
# Of activations, which stay as they are (docs/quantisation.md), and of a cache in 8 bits.
_PASSIVE = frozenset({"input_scale", "input_global_scale", "input_zero_point", "output_scale"})
_OF_CACHE = re.compile(r".*\.self_attn\.(k_proj\.|v_proj\.)?[kqv]_scale")


@dataclass(frozen=True)
class Linear:
    """The tensors of one matrix as they are stored.

    Attributes:
        base: the module's name in the checkpoint.
        kind: ``plain`` or a quantised kind.
        parts: suffix -> tensor, without those that have no effect here.
        name: the checkpoint's name of its codes, for messages.
    """

    base: str
    kind: str
    parts: Mapping[str, Stored]
    name: str


@dataclass(frozen=True)
class _Layout:
    kind: str
    codes: str
    required: frozenset[str]
    optional: frozenset[str] = frozenset()


_FP8 = _Layout("fp8", "weight", frozenset({"weight_scale"}))
_FP8_INVERSE = _Layout("fp8", "weight", frozenset({"weight_scale_inv"}))
_INT8 = _Layout("int8", "weight", frozenset({"weight_scale"}), frozenset({"weight_zero_point"}))
_MODELOPT_NVFP4 = _Layout("nvfp4", "weight", frozenset({"weight_scale", "weight_scale_2"}))
_NVFP4 = _Layout("nvfp4", "weight_packed", frozenset({"weight_scale", "weight_global_scale"}))
_QUARK_MXFP4 = _Layout("mxfp4", "weight", frozenset({"weight_scale"}))
_MXFP4 = _Layout("mxfp4", "weight_packed", frozenset({"weight_scale"}))
_INT4 = _Layout(
    "int4", "weight_packed", frozenset({"weight_scale", "weight_shape"}), frozenset({"weight_zero_point", "weight_g_idx"})
)
_QWEIGHT = _Layout("int4", "qweight", frozenset({"scales"}), frozenset({"qzeros", "g_idx"}))


def group(stored: Mapping[str, Stored]) -> tuple[dict[str, Linear], list[str]]:
    """Group tensors into linears.

    Args:
        stored: the checkpoint's names (of the text part) -> tensors.

    Returns:
        The linears by module, plain ones among them; and the names of what has no effect here (scales of activations and of the
        cache). A name that is no linear's (a norm's scale, a bias) is a plain linear of its own, by its whole name.

    Raises:
        CheckpointError: a scale without its weight or the reverse, a tensor that its format has no place for, a dtype that is
            not read.
    """
    modules: dict[str, dict[str, Stored]] = {}
    passive = []
    for name, tensor in stored.items():
        base, _, suffix = name.rpartition(".")
        if suffix in _SUFFIXES or suffix in _PASSIVE:
            modules.setdefault(base, {})[suffix] = tensor
        elif _OF_CACHE.fullmatch(name):
            passive.append(name)
        else:
            modules[name] = {"": tensor}
    linears = {}
    for base, parts in modules.items():
        linear = _classify(base, {suffix: tensor for suffix, tensor in parts.items() if suffix not in _PASSIVE}, parts)
        linears[base] = linear
        if linear.kind == "plain" and len(parts) > 1:
            odd = next(suffix for suffix in parts if suffix in _PASSIVE)
            raise CheckpointError(f"{base}.{odd} is a scale of quantised activations, but {linear.name} is not quantised")
        passive += [f"{base}.{suffix}" for suffix in parts if suffix in _PASSIVE]
    return linears, passive


def _classify(base: str, parts: dict[str, Stored], all_parts: Mapping[str, Stored]) -> Linear:
    if not parts:
        raise CheckpointError(f"{base}.{next(iter(all_parts))} is a scale without its weight; download the checkpoint again")
    if "" in parts:
        return _plain(base, base, parts[""])
    weight = parts.get("weight")
    if weight is not None and weight.dtype in FLOATS:
        if len(parts) > 1:
            odd = next(suffix for suffix in parts if suffix != "weight")
            raise CheckpointError(
                f"{base}.{odd} belongs to quantised codes, but {base}.weight is {weight.dtype}; the checkpoint is damaged"
            )
        return _plain(base, f"{base}.weight", weight)
    layout = _layout(base, parts)
    for suffix in sorted(layout.required):
        if suffix not in parts:
            raise CheckpointError(f"{base}.{layout.codes} has no {suffix}: {layout.kind} needs it; download the checkpoint again")
    left = sorted(set(parts) - layout.required - layout.optional - {layout.codes})
    if left:
        raise CheckpointError(f"{base}.{left[0]} has no place in {layout.kind} weights; the checkpoint is damaged")
    return Linear(base, layout.kind, parts, f"{base}.{layout.codes}")


def _plain(base: str, name: str, tensor: Stored) -> Linear:
    if tensor.dtype not in FLOATS:
        raise CheckpointError(f"{name} has dtype {tensor.dtype}; a floating-point tensor is needed")
    return Linear(base, "plain", {"weight": tensor}, name)


def _layout(base: str, parts: Mapping[str, Stored]) -> _Layout:
    if "qweight" in parts:
        return _with_dtype(base, "qweight", parts, {"I32": _QWEIGHT})
    if "weight_packed" in parts:
        fp4 = _NVFP4 if _has_two_scales("weight_global_scale", parts) else _MXFP4
        return _with_dtype(base, "weight_packed", parts, {"I32": _INT4, "U8": fp4})
    if "weight" in parts:
        if parts["weight"].dtype == "U32":
            raise CheckpointError(
                f"{base}.weight is packed as MLX packs weights, which is not read; use a checkpoint in another format"
            )
        fp4 = _MODELOPT_NVFP4 if _has_two_scales("weight_scale_2", parts) else _QUARK_MXFP4
        fp8 = _FP8_INVERSE if "weight_scale_inv" in parts else _FP8
        return _with_dtype(base, "weight", parts, {"U8": fp4, "I8": _INT8, "F8_E4M3": fp8})
    raise CheckpointError(
        f"{base}.{next(iter(parts))} is there without the weight that it belongs to; download the checkpoint again"
    )


def _has_two_scales(second: str, parts: Mapping[str, Stored]) -> bool:
    """Whether 4-bit floats are NVFP4: also where its second scale is lost."""
    return second in parts or ("weight_scale" in parts and parts["weight_scale"].dtype == "F8_E4M3")


def _with_dtype(base: str, codes: str, parts: Mapping[str, Stored], layouts: Mapping[str, _Layout]) -> _Layout:
    dtype = parts[codes].dtype
    if dtype not in layouts:
        raise CheckpointError(f"{base}.{codes} has dtype {dtype}, which is not read; allowed: {', '.join(layouts)}")
    return layouts[dtype]
