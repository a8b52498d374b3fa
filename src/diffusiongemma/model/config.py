"""The configuration of a DiffusionGemma checkpoint: both published spellings in, one frozen object out.

Field names and defaults are those of transformers 5.23 ``configuration_diffusion_gemma.py``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from diffusiongemma.errors import ConfigError

__all__ = ["FULL", "SLIDING", "LayerConfig", "ModelConfig", "RopeConfig", "TextConfig"]

SLIDING = "sliding_attention"
FULL = "full_attention"
_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "silu", "relu")

# Fields that transformers writes into any config and that say nothing about the computation.
_BOOKKEEPING = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "auto_map",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary embedding of one layer type.

    ``default`` turns the whole head; ``proportional`` turns the first ``partial_rotary_factor`` of each half and leaves
    the rest alone (frequency 0), with the whole head size in the exponent; ``linear`` divides the positions by ``factor``.
    """

    rope_type: str = "default"
    rope_theta: float = 10_000.0
    partial_rotary_factor: float = 1.0
    factor: float = 1.0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> "RopeConfig":
        """Read one entry of ``rope_parameters``; an unknown type or field raises ConfigError."""
        _want_mapping(where, data)
        _refuse_unknown(data, {f.name for f in fields(cls)}, where, bookkeeping=frozenset())
        rope = cls(**data)
        for name in ("rope_theta", "factor"):
            _want_positive(f"{where}: {name}", getattr(rope, name))
        if not _is_number(rope.partial_rotary_factor) or not 0 <= rope.partial_rotary_factor <= 1:
            raise ConfigError(f"{where}: partial_rotary_factor is {rope.partial_rotary_factor!r}; it must be a number from 0 to 1")
        if rope.rope_type not in ("default", "proportional", "linear"):
            raise ConfigError(f"{where}: rope_type {rope.rope_type!r} is not supported; allowed: default, proportional, linear")
        if rope.rope_type == "default" and rope.factor != 1.0:
            raise ConfigError(
                f"{where}: factor {rope.factor} has no meaning with rope_type 'default'; allowed: linear, proportional"
            )
        if rope.rope_type != "proportional" and rope.partial_rotary_factor != 1.0:
            raise ConfigError(
                f"{where}: partial_rotary_factor {rope.partial_rotary_factor} needs rope_type 'proportional', "
                f"not {rope.rope_type!r}"
            )
        return rope

    def to_dict(self) -> dict[str, Any]:
        """The entry as transformers reads it; fields at their default are left out."""
        out: dict[str, Any] = {"rope_type": self.rope_type, "rope_theta": self.rope_theta}
        if self.rope_type == "proportional":
            out["partial_rotary_factor"] = self.partial_rotary_factor
        if self.factor != 1.0:
            out["factor"] = self.factor
        return out


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What differs from layer to layer."""

    layer_type: str
    head_dim: int
    num_key_value_heads: int

    @property
    def is_sliding(self) -> bool:
        """Whether the layer sees only a window of the context."""
        return self.layer_type == SLIDING


def _default_rope() -> dict[str, RopeConfig]:
    return {
        SLIDING: RopeConfig(),
        FULL: RopeConfig(rope_type="proportional", rope_theta=1_000_000.0, partial_rotary_factor=0.25),
    }


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The shape of the transformer stack that both roles share."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    layers: tuple[LayerConfig, ...]
    vocab_size: int = 262_144
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-6
    pad_token_id: int = 0
    eos_token_id: tuple[int, ...] = (1,)
    bos_token_id: int | None = 2
    attention_bias: bool = False
    sliding_window: int = 512
    final_logit_softcapping: float = 30.0
    use_bidirectional_attention: str | None = None
    rope: Mapping[str, RopeConfig] = field(default_factory=_default_rope)

    @property
    def layer_types(self) -> tuple[str, ...]:
        """The type of each layer, in order."""
        return tuple(layer.layer_type for layer in self.layers)

    def head_dim_of(self, layer_type: str) -> int:
        """The head size that all layers of one type share."""
        return next(layer.head_dim for layer in self.layers if layer.layer_type == layer_type)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole checkpoint: the text stack, the canvas, and the vision part as it was written."""

    text: TextConfig
    canvas_length: int = 256
    boi_token_id: int | None = 255_999
    eoi_token_id: int | None = 258_882
    image_token_id: int | None = 258_880
    vision: Mapping[str, Any] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """Read the content of a ``config.json``, flat or nested spelling.

        Raises:
            ConfigError: another model type, an unknown field, a value of the wrong kind, sizes that do not fit together,
                or untied embeddings.
        """
        if data.get("model_type") != "diffusion_gemma":
            raise ConfigError(f"config.json has model_type {data.get('model_type')!r}; this runtime reads 'diffusion_gemma'")
        if data.get("quantization_config") is not None:
            quantisation = data["quantization_config"]
            method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, Mapping) else quantisation
            raise ConfigError(
                f"the checkpoint is quantised ({method}); quantised checkpoints are not read yet. "
                "Use the bfloat16 checkpoint, for example google/diffusiongemma-26B-A4B-it"
            )
        own = {"canvas_length", "boi_token_id", "eoi_token_id", "image_token_id"}
        allowed = own | {"text_config", "vision_config", "tie_word_embeddings", "initializer_range", "quantization_config"}
        _refuse_unknown(data, allowed, "config.json")
        if not data.get("tie_word_embeddings", True):
            raise ConfigError(
                "config.json has tie_word_embeddings false; this runtime keeps one stack of weights for both roles "
                "and reads only tied checkpoints"
            )
        if not isinstance(data.get("text_config"), Mapping):
            raise ConfigError("config.json has no text_config; it must hold the sizes of the text stack")
        given = {key: data[key] for key in own if key in data}
        if (vision := data.get("vision_config")) is not None:
            _want_mapping("config.json vision_config", vision)
        config = cls(text=_text_from_dict(data["text_config"]), vision=vision, **given)
        _want_size("config.json: canvas_length", config.canvas_length)
        for name in ("boi_token_id", "eoi_token_id", "image_token_id"):
            _want_token(f"config.json: {name}", getattr(config, name))
        return config

    def to_dict(self) -> dict[str, Any]:
        """The content of a ``config.json`` in the nested spelling, which transformers loads."""
        text, first = self.text, self.text.layers[0]
        per_layer = {}
        for i, layer in enumerate(text.layers):
            override = {}
            if layer.head_dim != first.head_dim:
                override["head_dim"] = layer.head_dim
            if layer.num_key_value_heads != first.num_key_value_heads:
                override["num_key_value_heads"] = layer.num_key_value_heads
            if override:
                per_layer[str(i)] = override
        skip = {"layers", "rope", "eos_token_id"}
        return {
            "architectures": ["DiffusionGemmaForBlockDiffusion"],
            "model_type": "diffusion_gemma",
            "canvas_length": self.canvas_length,
            "boi_token_id": self.boi_token_id,
            "eoi_token_id": self.eoi_token_id,
            "image_token_id": self.image_token_id,
            "tie_word_embeddings": True,
            "text_config": {
                "model_type": "diffusion_gemma_text",
                **{f.name: getattr(text, f.name) for f in fields(text) if f.name not in skip},
                "eos_token_id": list(text.eos_token_id),
                "head_dim": first.head_dim,
                "num_key_value_heads": first.num_key_value_heads,
                "layer_types": list(text.layer_types),
                "per_layer_config": per_layer,
                "rope_parameters": {kind: rope.to_dict() for kind, rope in text.rope.items()},
                "tie_word_embeddings": True,
            },
            **({"vision_config": dict(self.vision)} if self.vision is not None else {}),
        }


_REQUIRED = ("num_experts", "top_k_experts", "moe_intermediate_size")
_TEXT_DEFAULTS: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_global_key_value_heads": None,
    "layer_types": None,
    "per_layer_config": None,
    "rope_parameters": None,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
}
# Read, checked, and without effect on inference.
_TEXT_PASSIVE = {"initializer_range", "attention_dropout", "tie_word_embeddings", "attention_k_eq_v"}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _want_positive(what: str, value: Any) -> None:
    if not _is_number(value) or value <= 0:
        raise ConfigError(f"{what} is {value!r}; it must be a number > 0")


def _want_size(what: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{what} is {value!r}; it must be an integer >= 1")


def _want_token(what: str, value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ConfigError(f"{what} is {value!r}; it must be a token id or null")


def _want_mapping(what: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} is {value!r}; it must be an object")


def _refuse_unknown(data: Mapping[str, Any], allowed: set[str], where: str, bookkeeping: frozenset[str] = _BOOKKEEPING) -> None:
    unknown = sorted(set(data) - allowed - bookkeeping)
    if unknown:
        raise ConfigError(
            f"{where} has the unknown field{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; "
            f"allowed: {', '.join(sorted(allowed))}"
        )


def _text_from_dict(data: Mapping[str, Any]) -> TextConfig:
    own = {f.name for f in fields(TextConfig)} - {"layers", "rope"}
    _refuse_unknown(data, own | set(_TEXT_DEFAULTS) | _TEXT_PASSIVE, "config.json text_config")
    shape = {**_TEXT_DEFAULTS, **{key: data[key] for key in _TEXT_DEFAULTS if key in data}}
    missing = [name for name in _REQUIRED if shape[name] is None]
    if missing:
        raise ConfigError(f"config.json text_config lacks {', '.join(missing)}: every layer has experts, so they are needed")
    if data.get("attention_k_eq_v", True) is not True:
        raise ConfigError("config.json text_config has attention_k_eq_v false; full layers take V from the keys here")
    if not data.get("tie_word_embeddings", True):
        raise ConfigError("config.json text_config has tie_word_embeddings false; only tied checkpoints are read")

    given = {key: data[key] for key in own if key in data}
    eos = given.pop("eos_token_id", 1)
    for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "global_head_dim"):
        _want_size(f"config.json text_config: {name}", shape[name])
    text = TextConfig(
        **{key: value for key, value in shape.items() if key in own},
        **{key: value for key, value in given.items() if key not in shape},
        eos_token_id=tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (eos,),
        layers=_layers_from_dict(shape),
        rope=_rope_from_dict(shape["rope_parameters"]),
    )
    _check_text(text)
    return text


def _layers_from_dict(shape: Mapping[str, Any]) -> tuple[LayerConfig, ...]:
    count = shape["num_hidden_layers"]
    named = shape["layer_types"]
    if named is not None and not (isinstance(named, list | tuple) and all(isinstance(kind, str) for kind in named)):
        raise ConfigError(f"config.json layer_types is {named!r}; it must be a list of layer types")
    # Source: the default pattern is five sliding layers and one full layer; the last layer is always full.
    types = list(named or [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(count)])
    unknown = sorted(set(types) - {SLIDING, FULL})
    if unknown:
        raise ConfigError(f"config.json layer_types has {', '.join(unknown)}; allowed: {SLIDING}, {FULL}")
    if len(types) != count:
        raise ConfigError(f"config.json layer_types has {len(types)} entries for num_hidden_layers {count}")
    types[-1] = FULL
    per_layer = shape["per_layer_config"]
    if per_layer is None:
        override = {"head_dim": shape["global_head_dim"]}
        if shape["num_global_key_value_heads"] is not None:
            override["num_key_value_heads"] = shape["num_global_key_value_heads"]
        per_layer = {i: override for i, kind in enumerate(types) if kind == FULL}
    _want_mapping("config.json per_layer_config", per_layer)
    overrides: dict[int, dict[str, Any]] = {}
    for key, entry in per_layer.items():
        if not str(key).isdecimal():
            raise ConfigError(f"config.json per_layer_config has the key {key!r}; keys are layer indices")
        _want_mapping(f"config.json per_layer_config[{key}]", entry)
        overrides[int(key)] = dict(entry)
    for i, entry in overrides.items():
        if not 0 <= i < count:
            raise ConfigError(f"config.json per_layer_config names layer {i}; the model has layers 0 to {count - 1}")
        _refuse_unknown(entry, {"head_dim", "num_key_value_heads"}, f"config.json per_layer_config[{i}]")
    base = {"head_dim": shape["head_dim"], "num_key_value_heads": shape["num_key_value_heads"]}
    return tuple(LayerConfig(layer_type=kind, **{**base, **overrides.get(i, {})}) for i, kind in enumerate(types))


def _rope_from_dict(data: Mapping[str, Any] | None) -> dict[str, RopeConfig]:
    if data is None:
        return _default_rope()
    _want_mapping("config.json rope_parameters", data)
    _refuse_unknown(data, {SLIDING, FULL}, "config.json rope_parameters")
    return {kind: RopeConfig.from_dict(entry, f"config.json rope_parameters[{kind}]") for kind, entry in data.items()}


def _check_text(text: TextConfig) -> None:
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                 "num_experts", "top_k_experts", "moe_intermediate_size", "sliding_window", "max_position_embeddings"):  # fmt: skip
        _want_size(f"config.json text_config: {name}", getattr(text, name))
    for name, token in (("pad_token_id", text.pad_token_id), ("bos_token_id", text.bos_token_id)):
        _want_token(f"config.json text_config: {name}", token)
    for token in text.eos_token_id:
        _want_token("config.json text_config: eos_token_id", token)
    _want_positive("config.json text_config: rms_norm_eps", text.rms_norm_eps)
    _want_positive("config.json text_config: final_logit_softcapping", text.final_logit_softcapping)
    if not isinstance(text.attention_bias, bool):
        raise ConfigError(f"config.json text_config: attention_bias is {text.attention_bias!r}; it must be true or false")
    if text.top_k_experts > text.num_experts:
        raise ConfigError(f"config.json: top_k_experts {text.top_k_experts} exceeds num_experts {text.num_experts}")
    if text.hidden_activation not in _ACTIVATIONS:
        raise ConfigError(
            f"config.json: hidden_activation {text.hidden_activation!r} is not known; allowed: {', '.join(_ACTIVATIONS)}"
        )
    if text.use_bidirectional_attention not in (None, "vision"):
        raise ConfigError(
            f"config.json: use_bidirectional_attention {text.use_bidirectional_attention!r} is not supported: with it the "
            "encoder is no longer causal, so a prompt could not be cached in parts; allowed: null, 'vision'"
        )
    for i, layer in enumerate(text.layers):
        _want_size(f"config.json: head_dim of layer {i}", layer.head_dim)
        _want_size(f"config.json: num_key_value_heads of layer {i}", layer.num_key_value_heads)
        if layer.head_dim % 2:
            raise ConfigError(f"config.json: layer {i} has head_dim {layer.head_dim}; it must be even")
        if text.num_attention_heads % layer.num_key_value_heads:
            raise ConfigError(
                f"config.json: layer {i} has {layer.num_key_value_heads} key-value heads, which do not divide "
                f"num_attention_heads {text.num_attention_heads}"
            )
    for kind in set(text.layer_types):
        if kind not in text.rope:
            raise ConfigError(f"config.json rope_parameters lacks {kind}, which layer_types uses")
        if len({layer.head_dim for layer in text.layers if layer.layer_type == kind}) > 1:
            raise ConfigError(f"config.json gives {kind} layers different head_dim; one rotary table serves each type")
