"""Which tensors a configuration asks for, with their shapes; no module is built."""

from collections.abc import Mapping
from typing import Any

from diffusiongemma.model.config import TextConfig
from diffusiongemma.model.config_fields import MAX_LAYERS, MAX_SIZE, want_size

__all__ = ["text_shapes", "vision_shapes"]

Shapes = dict[str, tuple[int, ...]]
_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
_EXPERTS_NORMS = ("pre_feedforward_layernorm_2", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2")
# Source: transformers 5.24 Gemma4VisionConfig.
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
    "patch_size": 16,
    "position_embedding_size": 10 * 1024,
    "use_clipped_linears": False,
    "standardize": False,
}


def text_shapes(text: TextConfig) -> Shapes:
    """The parameters and buffers of ``Transformer`` by name.

    Args:
        text: the stack.
    """
    D, V, E, M = text.hidden_size, text.vocab_size, text.num_experts, text.moe_intermediate_size
    shapes: Shapes = {"embed_tokens.weight": (V, D), "norm.weight": (D,), "self_conditioning.pre_norm.weight": (D,)}
    dense = _mlp(D, text.intermediate_size)
    shapes |= {f"self_conditioning.{name}.weight": shape for name, shape in dense.items()}
    for i, layer in enumerate(text.layers):
        base = f"layers.{i}."
        query, kv = text.num_attention_heads * layer.head_dim, layer.num_key_value_heads * layer.head_dim
        sides = {"q_proj": (query, D), "k_proj": (kv, D), "o_proj": (D, query)}
        if layer.is_sliding or not text.attention_k_eq_v:  # else full layers take their values from the keys
            sides["v_proj"] = (kv, D)
        for name, shape in sides.items():
            shapes[f"{base}self_attn.{name}.weight"] = shape
            if text.attention_bias:
                shapes[f"{base}self_attn.{name}.bias"] = shape[:1]
        shapes |= {f"{base}self_attn.{name}_norm.weight": (layer.head_dim,) for name in "qk"}
        shapes |= {f"{base}{name}.weight": (D,) for name in (*_NORMS, *(_EXPERTS_NORMS if text.enable_moe_block else ()))}
        shapes |= {f"{base}mlp.{name}.weight": shape for name, shape in dense.items()}
        if text.enable_moe_block:
            shapes |= {f"{base}router.proj.weight": (E, D), f"{base}router.scale": (D,), f"{base}router.per_expert_scale": (E,)}
            shapes |= {f"{base}experts.gate_up_proj": (E, 2 * M, D), f"{base}experts.down_proj": (E, D, M)}
        shapes |= {f"{base}layer_scalar": (1,), f"{base}encoder_layer_scalar": (1,)}
    return shapes


def vision_shapes(vision: Mapping[str, Any], text_hidden: int) -> Shapes:
    """The tensors of the vision tower and of its projection, by their names in a checkpoint.

    Args:
        vision: ``vision_config`` of a ``gemma4_vision``.
        text_hidden: hidden size of the text stack.

    Raises:
        ConfigError: a size that is no whole number above 0, or too large.
    """
    of = {**_VISION_DEFAULTS, **{name: value for name, value in vision.items() if value is not None}}
    for name, default in _VISION_DEFAULTS.items():
        if not isinstance(default, bool):
            want_size(f"config.json vision_config: {name}", of[name], MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE)
    D, inner, head = of["hidden_size"], of["intermediate_size"], of["head_dim"]
    query, kv = of["num_attention_heads"] * head, of["num_key_value_heads"] * head
    tower = "model.encoder.vision_tower."
    shapes: Shapes = {
        "model.encoder.embed_vision.embedding_projection.weight": (text_hidden, D),
        f"{tower}patch_embedder.input_proj.weight": (D, 3 * of["patch_size"] ** 2),
        f"{tower}patch_embedder.position_embedding_table": (2, of["position_embedding_size"], D),
    }
    if of["standardize"]:
        shapes |= {f"{tower}std_bias": (D,), f"{tower}std_scale": (D,)}
    for i in range(of["num_hidden_layers"]):
        base = f"{tower}encoder.layers.{i}."
        shapes |= {f"{base}{name}_layernorm.weight": (D,) for name in (
            "input", "post_attention", "pre_feedforward", "post_feedforward")}  # fmt: skip
        shapes |= {f"{base}self_attn.{name}_norm.weight": (head,) for name in "qk"}
        linears = {f"mlp.{name}": shape for name, shape in _mlp(D, inner).items()}
        linears |= {"self_attn.q_proj": (query, D), "self_attn.k_proj": (kv, D), "self_attn.v_proj": (kv, D)}
        linears["self_attn.o_proj"] = (D, query)
        for name, shape in linears.items():
            shapes[f"{base}{name}.linear.weight"] = shape
            if of["use_clipped_linears"]:
                shapes |= {f"{base}{name}.{side}_{end}": () for side in ("input", "output") for end in ("min", "max")}
    return shapes


def _mlp(hidden: int, inner: int) -> Shapes:
    return {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
