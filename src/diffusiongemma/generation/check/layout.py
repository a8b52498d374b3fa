"""Which tensors the published formats hold for a configuration: names, dtypes and shapes, from config.json alone.

It is a second opinion: the loader decides by what it finds in the files (``weights.checkpoint``), this by what config.json says.
Sources: headers of the published files (google, RedHatAI, nvidia, cyankiwi); compressed-tensors 0.20 and modelopt 0.45.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.expected import text_shapes, vision_shapes
from diffusiongemma.weights.names import VISION_PREFIXES, to_checkpoint

__all__ = ["Asked", "Layout", "layout_of"]

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_EXPERT_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_MAX_WILDCARDS = 8  # in one pattern of the config, and what a matcher may be asked for


@dataclass(frozen=True)
class Asked:
    """A tensor that config.json asks for.

    Attributes:
        dtypes: those it may have, as safetensors spells them.
        shapes: those it may have.
    """

    dtypes: frozenset[str]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Layout:
    """All tensors of a checkpoint.

    Attributes:
        format: for people, such as ``bfloat16`` or ``NVFP4 (modelopt)``.
        kind: ``plain``, ``fp8``, ``int8``, ``nvfp4`` or ``int4``.
        tensors: by name; None: the format is not known here.
        quantised: number of quantised matrices.
        why: why ``tensors`` is None.
    """

    format: str
    kind: str
    tensors: Mapping[str, Asked] | None
    quantised: int = 0
    why: str = ""


_Suffixes = Callable[[int, int], dict[str, tuple[str, tuple[tuple[int, ...], ...]]]]
_SCALAR = ((), (1,))
_SCALE = "BF16 F16 F32"


def layout_of(config: ModelConfig) -> Layout:
    """The layout of a configuration's checkpoint."""
    stated = str(config.source.get("dtype") or config.source.get("torch_dtype") or "float32").removeprefix("torch.")
    plain = {_DTYPES.get(stated, "F32")}
    vision = config.vision or {}
    seen = str(vision.get("dtype") or vision.get("torch_dtype") or stated).removeprefix("torch.")
    tower = {_DTYPES.get(seen, "F32")}
    shapes = {to_checkpoint(name): shape for name, shape in text_shapes(config.text).items()}
    # transformers ties weights and not biases: the encoder's are stored too.
    shapes |= {_encoder(name): shape for name, shape in shapes.items() if name.endswith(".bias")}
    if config.vision is not None:
        shapes |= vision_shapes(config.vision, config.text.hidden_size)
    if config.quantization is None:
        result = {name: _asked(tower if name.startswith(VISION_PREFIXES) else plain, shape) for name, shape in shapes.items()}
        return Layout(stated, "plain", result)
    format, kind, suffixes, ignored, why = _format(config.quantization)
    if suffixes is None or ignored is None:
        return Layout(format, kind, None, why=why)
    # What is not quantised may be in the other 16-bit type: cyankiwi's checkpoint has float16 in a bfloat16 model.
    plain, tower = (sides | {"BF16", "F16"} for sides in (plain, tower))
    tensors: dict[str, Asked] = {}
    quantised = 0
    for module, shape in _modules(shapes).items():
        if shape is not None and not ignored(module):
            quantised += 1
            for suffix, (dtypes, allowed) in suffixes(*shape).items():
                tensors[f"{module}.{suffix}"] = Asked(frozenset(dtypes.split()), allowed)
    left = {name for name in shapes if not _is_linear(name)}
    left |= {name for name in shapes if _is_linear(name) and not _quantised_name(name, tensors)}
    for name in sorted(left):
        tensors[name] = _asked(tower if name.startswith(VISION_PREFIXES) else plain, shapes[name])
    return Layout(format, kind, tensors, quantised)


def _asked(dtypes: set[str], *shapes: tuple[int, ...]) -> Asked:
    return Asked(frozenset(dtypes), shapes)


def _encoder(name: str) -> str:
    return name.replace("model.decoder.", "model.encoder.language_model.", 1)


def _is_linear(name: str) -> bool:
    """Whether a tensor is the weight of a linear or a stack of experts."""
    return name.endswith(("_proj.weight", ".proj.weight", ".linear.weight", "embedding_projection.weight")) or _is_stack(name)


def _is_stack(name: str) -> bool:
    return name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def _modules(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int] | None]:
    """Every linear by its module's name, experts one by one, with rows and columns."""
    result: dict[str, tuple[int, int] | None] = {}
    for name, shape in shapes.items():
        if _is_stack(name):
            base, _, leaf = name.rpartition(".")
            parts = _EXPERT_PARTS[leaf]
            for expert in range(shape[0]):
                result |= {f"{base}.{expert}.{part}": (shape[1] // len(parts), shape[2]) for part in parts}
        elif _is_linear(name):
            result[name.removesuffix(".weight")] = (shape[0], shape[1])
    return result


def _quantised_name(name: str, tensors: Mapping[str, Asked]) -> bool:
    """Whether a plain tensor is stored as quantised ones instead."""
    base, _, leaf = name.rpartition(".")
    module = f"{base}.0.{_EXPERT_PARTS[leaf][0]}" if _is_stack(name) else base
    return any(f"{module}.{suffix}" in tensors for suffix in ("weight", "weight_packed"))


# -- formats: name, kind, the tensors of a linear of so many rows and columns, which modules stay as they are, why none of it -----

_Format = tuple[str, str, _Suffixes | None, Callable[[str], bool] | None, str]


def _format(how: Mapping[str, Any]) -> _Format:
    method = how.get("quant_method", "modelopt" if "quant_algo" in how else None)
    if method == "compressed-tensors":
        return _compressed_tensors(how)
    if method == "modelopt":
        return _modelopt(how)
    if method is None and "bits" in how:
        method = "mlx"
    return str(method), "other", None, None, f"the layout of {method} is not among those that this check knows"


def _compressed_tensors(how: Mapping[str, Any]) -> _Format:
    name = f"{how.get('format')} (compressed-tensors)"
    groups = how.get("config_groups")
    entries = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = entries[0].get("weights") if len(entries) == 1 and isinstance(entries[0], Mapping) else None
    if not isinstance(weights, Mapping):
        return name, "other", None, None, "this check knows configurations with one group of weights"
    if entries[0].get("targets") != ["Linear"]:
        return name, "other", None, None, 'this check knows "targets": ["Linear"] alone'
    form, width, strategy = how.get("format"), weights.get("group_size"), weights.get("strategy")
    static = bool(entries[0].get("input_activations")) and how.get("format") == "nvfp4-pack-quantized"
    suffixes: _Suffixes | None = None
    kind = "other"
    if form in ("float-quantized", "int-quantized") and strategy == "channel":
        kind, codes = ("fp8", "F8_E4M3") if form == "float-quantized" else ("int8", "I8")
        suffixes = lambda n, k: {"weight": (codes, ((n, k),)), "weight_scale": (_SCALE, ((n, 1), (n,)))}  # noqa: E731
    elif form == "nvfp4-pack-quantized":
        kind = "nvfp4"
        extra = {"input_global_scale": ("F32", _SCALAR)} if static else {}
        suffixes = lambda n, k: {  # noqa: E731
            "weight_packed": ("U8", ((n, k // 2),)),
            "weight_scale": ("F8_E4M3", ((n, k // 16),)),
            "weight_global_scale": ("F32", _SCALAR),
            **extra,
        }
    elif form == "pack-quantized" and weights.get("num_bits") == 4 and isinstance(width, int) and weights.get("symmetric"):
        kind = "int4"
        suffixes = lambda n, k: {  # noqa: E731
            "weight_packed": ("I32", ((n, -(-k // 8)),)),
            "weight_scale": (_SCALE, ((n, -(-k // width)),)),
            "weight_shape": ("I64 I32", ((2,),)),
        }
    if suffixes is None:
        return name, kind, None, None, f"this check does not know {form} with weights of strategy {strategy!r}"
    ignored = _ignoring(how.get("ignore"), lambda one: _simple(one[3:]) if one.startswith("re:") else _exact(one))
    return name, kind, suffixes, ignored, "a pattern of its ignore list is more than letters and wildcards"


def _modelopt(how: Mapping[str, Any]) -> _Format:
    algorithm = how.get("quant_algo")
    name = f"{algorithm} (modelopt)"
    ignored = _ignoring(how.get("ignore") or how.get("exclude_modules"), _glob)
    why = "a pattern of its ignore list is more than letters and wildcards"
    if algorithm == "NVFP4":
        return name, "nvfp4", _modelopt_nvfp4, ignored, why
    if algorithm == "FP8":
        return name, "fp8", _modelopt_fp8, ignored, why
    return name, "other", None, None, f"the layout of {algorithm} is not among those that this check knows"


def _modelopt_nvfp4(n: int, k: int) -> dict[str, tuple[str, tuple[tuple[int, ...], ...]]]:
    return {
        "weight": ("U8", ((n, k // 2),)),
        "weight_scale": ("F8_E4M3", ((n, k // 16),)),
        "weight_scale_2": ("F32", _SCALAR),
        "input_scale": ("F32", _SCALAR),
    }


def _modelopt_fp8(n: int, k: int) -> dict[str, tuple[str, tuple[tuple[int, ...], ...]]]:
    return {"weight": ("F8_E4M3", ((n, k),)), "weight_scale": ("F32", _SCALAR), "input_scale": ("F32", _SCALAR)}


# -- which modules stay as they are: no pattern of a file is run by an engine that tries again ------------------------------


def _ignoring(names: Any, read: Callable[[str], re.Pattern[str] | None]) -> Callable[[str], bool] | None:
    """Whether a module's name is on a list; None: the list has a pattern that is not read."""
    if names is None:
        return lambda _: False
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        return None
    exact = {one for one in names if not set(one) & set("*?[]:\\^$|(){}+")}
    patterns = [read(one) for one in sorted(set(names) - exact)]
    if None in patterns:
        return None
    whole = re.compile("|".join(one.pattern for one in patterns if one is not None) or r"(?!)")
    # Both stacks are one here: an exporter may name the encoder's module, the decoder's, or both.
    return lambda module: any(one in exact or whole.match(one) is not None for one in (module, _encoder(module)))


def _exact(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name) + r"\Z")


def _glob(pattern: str) -> re.Pattern[str] | None:
    """A shell wildcard; Python compiles it so that each ``*`` is decided once."""
    sound = pattern.count("*") <= _MAX_WILDCARDS and len(pattern) < 200 and "[" not in pattern
    return re.compile(fnmatch.translate(pattern)) if sound else None


def _simple(expression: str) -> re.Pattern[str] | None:
    """A regular expression of letters, ``\\.``, ``.``, ``.*`` and ``^ $`` at its ends, as the wildcard that means the same."""
    body, ended = expression.removeprefix("^"), expression.endswith("$") and not expression.endswith("\\$")
    body = body.removesuffix("$") if ended else body
    if not re.fullmatch(r"(?:[\w\-]|\\\.|\.\*|\.)*", body):
        return None
    tokens = re.findall(r"\\\.|\.\*|\.|[\w\-]", body)
    glob = "".join({"\\.": ".", ".*": "*", ".": "?"}.get(token, token) for token in tokens)
    return _glob(glob if ended else glob + "*")
