"""The configuration of a DiffusionGemma checkpoint: both published spellings in, one frozen object out.

Field names and defaults are those of transformers 5.23 ``configuration_diffusion_gemma.py``.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from diffusiongemma.errors import ConfigError
from diffusiongemma.model.config_fields import (
    FULL,
    MAX_LAYERS,
    SLIDING,
    is_number,
    refuse_unfollowed,
    refuse_unknown,
    unknown_fields,
    want_mapping,
    want_positive,
    want_size,
    want_token,
)
from diffusiongemma.options.sampling import OWN_FIELD

__all__ = ["FULL", "SLIDING", "LayerConfig", "ModelConfig", "RopeConfig", "TextConfig"]

log = logging.getLogger(__name__)
_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "silu", "relu")


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
        want_mapping(where, data)
        own = {f.name for f in fields(cls)}
        # "type" is the older name of rope_type; the length before a stretch is used by types that are refused below.
        refuse_unknown(data, own | {"type", "original_max_position_embeddings"}, where)
        if data.get("type") not in (None, data.get("rope_type", cls.rope_type)):
            raise ConfigError(f"{where}: type {data['type']!r} and rope_type {data.get('rope_type')!r} contradict each other")
        rope = cls(**{name: value for name, value in data.items() if name in own and value is not None})
        for name in ("rope_theta", "factor"):
            want_positive(f"{where}: {name}", getattr(rope, name))
        if not is_number(rope.partial_rotary_factor) or not 0 <= rope.partial_rotary_factor <= 1:
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
    """The shape of the transformer stack that both roles share.

    DiffusionGemma's own, and those of the Gemma models that a checkpoint can be made from (``generation.converting``), in Gemma 4's
    names where it has them. transformers' DiffusionGemma runs only the first.

    Attributes:
        num_experts, top_k_experts, moe_intermediate_size: 0 where there are no experts.
        enable_moe_block: whether every layer has experts beside its dense MLP.
        attention_k_eq_v: whether full layers take their values from the keys; else they have values of their own.
        value_norm: whether values are normalised (Gemma 4), or not (Gemma 3).
        final_logit_softcapping: cap of the logits; None: they have none.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layers: tuple[LayerConfig, ...]
    num_experts: int = 0
    top_k_experts: int = 0
    moe_intermediate_size: int = 0
    enable_moe_block: bool = True
    attention_k_eq_v: bool = True
    value_norm: bool = True
    vocab_size: int = 262_144
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-6
    pad_token_id: int = 0
    eos_token_id: tuple[int, ...] = (1,)
    bos_token_id: int | None = 2
    attention_bias: bool = False
    sliding_window: int = 512
    final_logit_softcapping: float | None = 30.0
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
    """A whole checkpoint: the text stack, the canvas, and the parts that only other readers use, as they were written.

    Attributes:
        text: the stack that both roles share.
        canvas_length: positions of a canvas.
        boi_token_id: begin of an image.
        eoi_token_id: end of an image.
        image_token_id: one soft token of an image.
        eos_token_id: stop tokens named beside text_config; None where only text_config names them.
        vision: vision_config.
        quantization: quantization_config (mlx: quantization), how the weights are stored; None for plain weights.
        process: of diffusion, as ``diffusion.make_process`` takes it; from the ``process`` of our own field.
        source: the content this was read from; ``to_dict`` gives its fields back.
    """

    text: TextConfig
    canvas_length: int = 256
    boi_token_id: int | None = 255_999
    eoi_token_id: int | None = 258_882
    image_token_id: int | None = 258_880
    eos_token_id: tuple[int, ...] | None = None
    vision: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    process: Mapping[str, Any] = field(default_factory=lambda: {"name": "uniform"})
    source: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The stop tokens of config.json: those at the top, which speak for the whole model, else those of text_config."""
        return self.text.eos_token_id if self.eos_token_id is None else self.eos_token_id

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """Read the content of a ``config.json``, flat or nested spelling.

        A null stands for the default. Fields that nothing here knows are named in one warning and kept for saving.

        Raises:
            ConfigError: another model type, a value of the wrong kind, sizes that do not fit together, or a value that changes
                the computation and is not supported (untied embeddings, an unknown rope type, ...).
        """
        config = cls._read(data)
        own = {f.name for f in fields(TextConfig)} - {"layers", "rope"} | set(_TEXT_DEFAULTS)
        if unknown := unknown_fields(data, {OWN_FIELD, *(f.name for f in fields(cls))} - {"process"}, own):
            log.warning("config.json: unknown, kept for saving and without effect: %s", ", ".join(unknown))
        if nulls := [name for name in sorted(_NOT_NULL) if name in data["text_config"] and data["text_config"][name] is None]:
            log.warning("config.json text_config: null, read as the default: %s", ", ".join(nulls))
        return config

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> "ModelConfig":
        if data.get("model_type") != "diffusion_gemma":
            raise ConfigError(f"config.json has model_type {data.get('model_type')!r}; this runtime reads 'diffusion_gemma'")
        _want_tied("config.json", data)
        if not isinstance(data.get("text_config"), Mapping):
            raise ConfigError("config.json has no text_config; it must hold the sizes of the text stack")
        given = {key: data[key] for key in ("canvas_length", "boi_token_id", "eoi_token_id", "image_token_id") if key in data}
        for name in ("vision_config", "audio_config", "generation_config", "quantization_config", "quantization"):
            if data.get(name) is not None:
                want_mapping(f"config.json {name}", data[name])
        data = copy.deepcopy(dict(data))
        config = cls(
            text=_text_from_dict(data["text_config"]),
            eos_token_id=None if data.get("eos_token_id") is None else _tokens(data["eos_token_id"]),
            vision=data.get("vision_config"),
            quantization=data.get("quantization_config") or data.get("quantization") or None,
            source=data,
            process=_process_from_dict(data.get(OWN_FIELD)),
            **given,
        )
        want_size("config.json: canvas_length", config.canvas_length)
        for name in ("boi_token_id", "eoi_token_id", "image_token_id"):
            want_token(f"config.json: {name}", getattr(config, name))
        for name in ("pad_token_id", "bos_token_id", "video_token_id"):
            want_token(f"config.json: {name}", data.get(name))
        for token in config.eos_token_id or ():
            want_token("config.json: eos_token_id", token)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The content of a ``config.json``, which transformers loads.

        As it was read where it still says the same; with every field that it does not know otherwise.
        """
        content = {**self._unread(), **self._canonical()}
        if self.source and replace(self._read(self.source), quantization=None) == replace(self, quantization=None):
            content = {"architectures": content["architectures"], **copy.deepcopy(dict(self.source))}
            content["tie_word_embeddings"] = True
            # transformers takes no null for these, and a null is_causal for false.
            text = {name: value for name, value in content["text_config"].items() if name not in _NOT_NULL or value is not None}
            content["text_config"] = text
        content = {name: value for name, value in content.items() if name not in ("quantization_config", "quantization")}
        return content if self.quantization is None else {**content, "quantization_config": copy.deepcopy(dict(self.quantization))}

    def _unread(self) -> dict[str, Any]:
        """What the source has and nothing here reads."""
        return {name: copy.deepcopy(value) for name, value in self.source.items() if name not in ("eos_token_id", "vision_config")}

    def _canonical(self) -> dict[str, Any]:
        """The fields that are read, in the nested spelling."""
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
        skip = {"layers", "rope", "eos_token_id", *(name for name in _SHAPES if getattr(text, name))}
        skip |= set() if text.enable_moe_block else set(_REQUIRED)
        flat = {"global_head_dim", "num_global_key_value_heads"}
        unread = {name: value for name, value in self.source.get("text_config", {}).items() if name not in flat}
        return {
            "architectures": ["DiffusionGemmaForBlockDiffusion"],
            "model_type": "diffusion_gemma",
            "canvas_length": self.canvas_length,
            "boi_token_id": self.boi_token_id,
            "eoi_token_id": self.eoi_token_id,
            "image_token_id": self.image_token_id,
            **({"eos_token_id": list(self.eos_token_id)} if self.eos_token_id is not None else {}),
            "tie_word_embeddings": True,
            "text_config": {
                **unread,
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
            **({OWN_FIELD: {"process": dict(self.process)}} if self.process["name"] != "uniform" else {}),
        }


_REQUIRED = ("num_experts", "top_k_experts", "moe_intermediate_size")
_SHAPES = ("enable_moe_block", "attention_k_eq_v", "value_norm")
"""What DiffusionGemma itself always has; written where a stack has it not."""
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
# Fields of text_config that transformers refuses a null in, or takes one for something else than the default.
_NOT_NULL = frozenset(
    {
        "attention_bias", "attention_k_eq_v", "enable_moe_block", "global_head_dim", "head_dim", "hidden_activation", "hidden_size",
        "initializer_range", "intermediate_size", "is_causal", "max_position_embeddings", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "sliding_window", "tie_word_embeddings", "value_norm",
        "vocab_size",
    }
)  # fmt: skip


def _tokens(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)


def _process_from_dict(own: Any) -> Mapping[str, Any]:
    want_mapping(f"config.json {OWN_FIELD}", own := own or {})
    refuse_unknown(own, {"process"}, f"config.json {OWN_FIELD}")
    process = own.get("process") or {"name": "uniform"}
    want_mapping(f"config.json {OWN_FIELD}.process", process)
    if not isinstance(process.get("name"), str):
        raise ConfigError(f"config.json {OWN_FIELD}.process has no name; it must be that of a diffusion process, 'uniform' say")
    return process


def _want_tied(where: str, data: Mapping[str, Any]) -> None:
    if data.get("tie_word_embeddings") not in (None, True):
        raise ConfigError(
            f"{where} has tie_word_embeddings {str(data['tie_word_embeddings']).lower()}; this runtime keeps one stack of weights "
            "for both roles and reads only tied checkpoints"
        )


def _text_from_dict(data: Mapping[str, Any]) -> TextConfig:
    own = {f.name for f in fields(TextConfig)} - {"layers", "rope"}
    data = {name: value for name, value in data.items() if name not in _NOT_NULL or value is not None}
    refuse_unfollowed(data)
    shape = {**_TEXT_DEFAULTS, **{key: data[key] for key in _TEXT_DEFAULTS if key in data}}
    for name in _SHAPES:
        if not isinstance(data.get(name, True), bool):
            raise ConfigError(f"config.json text_config: {name} is {data[name]!r}; it must be true or false")
    if not data.get("enable_moe_block", True):
        if unused := [name for name in _REQUIRED if shape[name]]:
            raise ConfigError(f"config.json text_config has {', '.join(unused)}, but enable_moe_block is false: no experts")
        shape |= dict.fromkeys(_REQUIRED, 0)
    elif missing := [name for name in _REQUIRED if shape[name] is None]:
        raise ConfigError(
            f"config.json text_config lacks {', '.join(missing)}: every layer has experts, so they are needed; "
            "a stack without has enable_moe_block false"
        )
    _want_tied("config.json text_config", data)

    given = {key: data[key] for key in own if key in data}
    eos = given.pop("eos_token_id", 1)
    if given.get("use_bidirectional_attention") is False:  # as Gemma 3 writes it
        given["use_bidirectional_attention"] = None
    want_size("config.json text_config: num_hidden_layers", shape["num_hidden_layers"], MAX_LAYERS)
    for name in ("num_attention_heads", "num_key_value_heads", "head_dim", "global_head_dim"):
        want_size(f"config.json text_config: {name}", shape[name])
    text = TextConfig(
        **{key: value for key, value in shape.items() if key in own},
        **{key: value for key, value in given.items() if key not in shape},
        eos_token_id=_tokens(eos),
        layers=_layers_from_dict(shape, data),
        rope=_rope_from_dict(shape["rope_parameters"]),
    )
    _check_text(text)
    return text


def _layers_from_dict(shape: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[LayerConfig, ...]:
    count = shape["num_hidden_layers"]
    named = shape["layer_types"]
    if named is not None and not (isinstance(named, list | tuple) and all(isinstance(kind, str) for kind in named)):
        raise ConfigError(f"config.json layer_types is {str(named)[:60]!r}; it must be a list of layer types")
    # Source: the default pattern is five sliding layers and one full layer; the last layer is always full.
    types = list(named or [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(count)])
    unknown = sorted(set(types) - {SLIDING, FULL})
    if unknown:
        raise ConfigError(f"config.json layer_types has {', '.join(unknown[:5])}; allowed: {SLIDING}, {FULL}")
    if len(types) != count:
        raise ConfigError(f"config.json layer_types has {len(types)} entries for num_hidden_layers {count}")
    if named is None or given.get("enable_moe_block", True):
        types[-1] = FULL
    per_layer = shape["per_layer_config"]
    # Source: transformers takes a null for "no overrides" whatever the flat fields say; where a file has those, they are meant.
    flat = "global_head_dim" in given or "num_global_key_value_heads" in given
    if per_layer is None and "per_layer_config" in given and not flat:
        per_layer = {}
    if per_layer is None:
        override = {"head_dim": shape["global_head_dim"]}
        if shape["num_global_key_value_heads"] is not None:
            override["num_key_value_heads"] = shape["num_global_key_value_heads"]
        per_layer = {i: override for i, kind in enumerate(types) if kind == FULL}
    want_mapping("config.json per_layer_config", per_layer)
    overrides: dict[int, dict[str, Any]] = {}
    for key, entry in per_layer.items():
        if not str(key).isdecimal():
            raise ConfigError(f"config.json per_layer_config has the key {key!r}; keys are layer indices")
        want_mapping(f"config.json per_layer_config[{key}]", entry)
        overrides[int(key)] = {name: value for name, value in entry.items() if value is not None}
    for i, entry in overrides.items():
        if not 0 <= i < count:
            raise ConfigError(f"config.json per_layer_config names layer {i}; the model has layers 0 to {count - 1}")
        refuse_unknown(entry, {"head_dim", "num_key_value_heads"}, f"config.json per_layer_config[{i}]")
    base = {"head_dim": shape["head_dim"], "num_key_value_heads": shape["num_key_value_heads"]}
    return tuple(LayerConfig(layer_type=kind, **{**base, **overrides.get(i, {})}) for i, kind in enumerate(types))


def _rope_from_dict(data: Mapping[str, Any] | None) -> dict[str, RopeConfig]:
    if data is None:
        return _default_rope()
    want_mapping("config.json rope_parameters", data)
    refuse_unknown(data, {SLIDING, FULL}, "config.json rope_parameters")
    return {kind: RopeConfig.from_dict(entry, f"config.json rope_parameters[{kind}]") for kind, entry in data.items()}


def _check_text(text: TextConfig) -> None:
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                 *(_REQUIRED if text.enable_moe_block else ()), "sliding_window", "max_position_embeddings"):  # fmt: skip
        want_size(f"config.json text_config: {name}", getattr(text, name))
    for name, token in (("pad_token_id", text.pad_token_id), ("bos_token_id", text.bos_token_id)):
        want_token(f"config.json text_config: {name}", token)
    for token in text.eos_token_id:
        want_token("config.json text_config: eos_token_id", token)
    want_positive("config.json text_config: rms_norm_eps", text.rms_norm_eps)
    if text.final_logit_softcapping is not None:
        want_positive("config.json text_config: final_logit_softcapping", text.final_logit_softcapping)
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
        want_size(f"config.json: head_dim of layer {i}", layer.head_dim)
        want_size(f"config.json: num_key_value_heads of layer {i}", layer.num_key_value_heads)
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
