"""What config.json says of how the weights are quantised: the spellings of all writers in, one description out.

It never decides how a tensor is read, which its own dtypes and shapes do; it is what they are held against. Sources:
compressed-tensors 0.20 ``QuantizationConfig``, modelopt ``convert_hf_config.py``, gptqmodel 7.7, auto-round 0.16, AutoAWQ, Quark.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffusiongemma.errors import CheckpointError

__all__ = ["Group", "Scheme", "scheme_of"]


_OF_GPTQ = frozenset({"qweight", "qzeros", "scales"})
_OF_COMPRESSED = frozenset({"weight_packed", "weight_global_scale"})
_OF_MODELOPT = frozenset({"weight_scale_2"})
_ACTIVATIONS = "activations are not quantised, though the checkpoint allows it: products take them as they are"


@dataclass(frozen=True, kw_only=True)
class Group:
    """One way in which weights are quantised.

    Attributes:
        kind: ``fp8``, ``int8``, ``nvfp4``, ``mxfp4`` or ``int4``.
        width: columns that share a scale; None: the whole row.
        block: rows and columns that share a scale, where they are square blocks.
        symmetric: whether there are no zero points; None: the config does not say.
    """

    kind: str
    width: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What a ``quantization_config`` says.

    Attributes:
        method: as it is written, for messages.
        groups: the ways in which weights are quantised.
        packing: how ``qweight`` is packed: ``gptq``, or ``awq``.
        zero_offset: what a packed zero point of ``qzeros`` lacks (1 in GPTQ's first version).
        desc_act: whether GPTQ's columns may be in any order.
        signed_scales: whether a scale may be negative (auto-round's symmetric scheme uses the full range of codes, on either side).
        foreign: suffixes of tensors that the method never writes.
        notes: what is read and has no effect here, and why.
    """

    method: str
    groups: tuple[Group, ...]
    packing: str = "gptq"
    zero_offset: int = 0
    desc_act: bool = False
    signed_scales: bool = False
    foreign: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> tuple[Group, ...]:
        """The groups of a kind."""
        return tuple(group for group in self.groups if group.kind == kind)


def scheme_of(quantization: Mapping[str, Any]) -> Scheme:
    """Read a ``quantization_config`` (or the ``quantization`` of modelopt's own hf_quant_config.json).

    Raises:
        CheckpointError: a method, width or option that is not read.
    """
    method = quantization.get("quant_method")
    if method is None and "quant_algo" in quantization:
        method = "modelopt"
    reader = _READERS.get(str(method))
    if reader is None:
        raise _refused(f"quant_method {method!r}", f"allowed: {', '.join(sorted(set(_READERS)))}")
    scheme = reader(quantization)
    if "auto-round" in str(quantization.get("provider")) or "autoround_version" in quantization:
        # auto-round also writes the formats of others.
        scheme = replace(scheme, signed_scales=True)
    if not scheme.groups:
        raise _refused(f"no weights to quantise (quant_method {method!r})", "allowed: at least one group of weights")
    return scheme


def _refused(what: str, how: str) -> CheckpointError:
    return CheckpointError(f"config.json quantization_config has {what}, which is not read; {how}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json quantization_config: {where} is {str(value)[:60]!r}; it must be an object")
    return value


def _number(value: Any, where: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise CheckpointError(f"config.json quantization_config: {where} is {str(value)[:60]!r}; it must be an integer")


def _width(value: Any, where: str) -> int | None:
    """Columns of a group; -1 is the whole row."""
    width = _number(value, where)
    if width is not None and width != -1 and width < 1:
        raise CheckpointError(f"config.json quantization_config: {where} is {width}; it must be at least 1, or -1")
    return None if width == -1 else width


def _block(value: Any, where: str) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value):
        return value[0], value[1]
    raise CheckpointError(f"config.json quantization_config: {where} is {str(value)[:60]!r}; it must be a list of two sizes")


# -- compressed-tensors ------------------------------------------------------------------------------------------------


def _compressed_tensors(data: Mapping[str, Any]) -> Scheme:
    for name, why in (("sparsity_config", "sparse weights"), ("transform_config", "weights that need an online transform")):
        given = data.get(name)
        if given and not (name == "sparsity_config" and _mapping(given, name).get("format") == "dense"):
            raise _refused(f"a {name}", f"{why} are not supported")
    groups, notes = [], []
    for name, entry in _mapping(data.get("config_groups"), "config_groups").items():
        where = f"config_groups.{name}"
        entry = _mapping(entry, where)
        if entry.get("input_activations"):
            notes.append(_ACTIVATIONS)
        if entry.get("output_activations"):
            notes.append("outputs are not quantised, though the checkpoint allows it")
        if entry.get("weights"):
            groups.append(_compressed_group(_mapping(entry["weights"], f"{where}.weights"), f"{where}.weights"))
    notes += _cache_note(data.get("kv_cache_scheme"))
    foreign = _OF_GPTQ | _OF_MODELOPT
    return Scheme(method="compressed-tensors", groups=tuple(groups), foreign=foreign, notes=tuple(dict.fromkeys(notes)))


def _compressed_group(weights: Mapping[str, Any], where: str) -> Group:
    bits, kind, strategy = weights.get("num_bits"), weights.get("type"), weights.get("strategy")
    width = _width(weights.get("group_size"), f"{where}.group_size")
    symmetric = weights.get("symmetric", True) is not False
    if (kind, bits) == ("float", 4):
        if width not in (16, 32):
            raise _refused(f"{where} of 4-bit floats in groups of {width}", "allowed: 16 (nvfp4) and 32 (mxfp4)")
        return Group(kind="nvfp4" if width == 16 else "mxfp4", width=width, symmetric=symmetric)
    known = {("float", 8): "fp8", ("int", 8): "int8", ("int", 4): "int4"}
    result = known.get((str(kind), bits if isinstance(bits, int) else 0))
    if result is None:
        raise _refused(f"{where} of {bits} bits of type {kind!r}", "allowed: float 8, float 4, int 8, int 4")
    if strategy == "block":
        return Group(kind=result, block=_block(weights.get("block_structure"), f"{where}.block_structure"), symmetric=symmetric)
    if strategy not in ("channel", "tensor", "group", None):
        raise _refused(f"{where} of strategy {strategy!r}", "allowed: channel, tensor, group, block, tensor_group")
    if strategy == "group" and width is None:
        raise CheckpointError(f"config.json quantization_config: {where} has strategy 'group' and no group_size")
    return Group(kind=result, width=width if strategy == "group" else None, symmetric=symmetric)


def _cache_note(scheme: Any) -> list[str]:
    if not scheme:
        return []
    return ["the scheme for keys and values is ignored: the cache keeps them in the dtype of the computation, which is exact"]


# -- modelopt ------------------------------------------------------------------------------------------------------------

_ALGORITHMS = {
    "NVFP4": (Group(kind="nvfp4", width=16),),
    "FP8": (Group(kind="fp8"),),
    "MIXED_PRECISION": (Group(kind="nvfp4", width=16), Group(kind="fp8")),
}


def _modelopt(data: Mapping[str, Any]) -> Scheme:
    algorithm = data.get("quant_algo")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise _refused(f"quant_algo {algorithm!r}", f"allowed: {', '.join(_ALGORITHMS)}")
    groups = data.get("config_groups") or {}
    for name, entry in _mapping(groups, "config_groups").items():
        weights = _mapping(_mapping(entry, f"config_groups.{name}").get("weights") or {}, f"config_groups.{name}.weights")
        if weights.get("num_bits") == 4 and weights.get("group_size", 16) != 16:
            raise _refused(f"config_groups.{name}.weights in groups of {weights['group_size']}", "allowed: 16")
    if algorithm == "NVFP4" and data.get("group_size", 16) != 16:
        raise _refused(f"group_size {data['group_size']}", "allowed: 16")
    notes = [_ACTIVATIONS]
    notes += _cache_note(data.get("kv_cache_scheme") or data.get("kv_cache_quant_algo"))
    foreign = _OF_GPTQ | _OF_COMPRESSED
    return Scheme(method="modelopt", groups=_ALGORITHMS[algorithm], foreign=foreign, notes=tuple(notes))


# -- GPTQ, AutoRound, AutoAWQ --------------------------------------------------------------------------------------------


def _four_bits(data: Mapping[str, Any], method: str) -> Group:
    bits = data.get("bits", data.get("w_bit"))
    if bits != 4:
        raise _refused(f"bits {bits!r} (quant_method {method!r})", "allowed: 4")
    if data.get("data_type", "int") != "int":
        raise _refused(f"data_type {data['data_type']!r}", "allowed: int")
    if data.get("pack_dtype", "int32") != "int32":
        raise _refused(f"pack_dtype {data['pack_dtype']!r}", "allowed: int32")
    symmetric = data.get("sym")
    width = _width(data.get("group_size", data.get("q_group_size", -1)), "group_size")
    return Group(kind="int4", width=width, symmetric=symmetric if isinstance(symmetric, bool) else None)


def _gptq(data: Mapping[str, Any]) -> Scheme:
    form = data.get("checkpoint_format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise _refused(f"checkpoint_format {form!r}", "allowed: gptq, gptq_v2")
    group = _four_bits(data, "gptq")
    offset, order = int(form == "gptq"), bool(data.get("desc_act"))
    return Scheme(method=form, groups=(group,), zero_offset=offset, desc_act=order, foreign=_OF_COMPRESSED)


def _auto_round(data: Mapping[str, Any]) -> Scheme:
    packing = str(data.get("packing_format") or data.get("backend") or "auto_round:auto_gptq")
    group = _four_bits(data, "auto-round")
    foreign = _OF_GPTQ if "llm_compressor" in packing else _OF_COMPRESSED
    scheme = Scheme(method="auto-round", groups=(group,), signed_scales=True, foreign=foreign)
    if "awq" in packing:
        return replace(scheme, packing="awq")
    if "gptq" in packing:
        return replace(scheme, zero_offset=1)
    if packing.startswith("auto_round"):
        return scheme
    raise _refused(
        f"packing_format {packing!r}", "allowed: auto_round, auto_round:auto_gptq, auto_round:auto_awq, auto_round:llm_compressor"
    )


def _awq(data: Mapping[str, Any]) -> Scheme:
    version = str(data.get("version", "gemm")).lower()
    if version != "gemm":
        raise _refused(f"version {version!r}", "allowed: gemm")
    group = replace(_four_bits(data, "awq"), symmetric=data.get("zero_point") is False or None)
    return Scheme(method="awq", groups=(group,), packing="awq", foreign=_OF_COMPRESSED)


# -- others --------------------------------------------------------------------------------------------------------------


def _quark(data: Mapping[str, Any]) -> Scheme:
    whole = _mapping(data.get("global_quant_config") or {}, "global_quant_config")
    weight = whole.get("weight")
    weight = _mapping(weight[0] if isinstance(weight, list) and len(weight) == 1 else weight, "global_quant_config.weight")
    given = (weight.get("dtype"), weight.get("qscheme"), weight.get("group_size"), weight.get("scale_format"))
    if given != ("fp4", "per_group", 32, "e8m0"):
        raise _refused(f"Quark weights of {given}", "allowed: fp4, per_group, group_size 32, scale_format e8m0 (mxfp4)")
    for name in ("layer_quant_config", "layer_type_quant_config"):
        if data.get(name):
            raise _refused(f"a {name}", "allowed: one format for all layers")
    notes = [_ACTIVATIONS]
    group = Group(kind="mxfp4", width=32, symmetric=True)
    return Scheme(method="quark", groups=(group,), foreign=_OF_COMPRESSED, notes=tuple(notes))


def _fine_grained_fp8(data: Mapping[str, Any]) -> Scheme:
    group = Group(kind="fp8", block=_block(data.get("weight_block_size"), "weight_block_size"), symmetric=True)
    notes = (_ACTIVATIONS,)
    return Scheme(method="fp8", groups=(group,), notes=notes)


_READERS = {
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
    "gptq": _gptq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "awq": _awq,
    "quark": _quark,
    "fp8": _fine_grained_fp8,
}
