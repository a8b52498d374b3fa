"""Which fields of a config.json are known, which values of them are refused, and which nulls stand for a default.

A field that changes the computation and is not followed is refused by name, unless its value says what is done anyway. A field
that nobody here knows is named in one log line and kept for saving: transformers, vLLM and mlx pass over it as well.
"""

from collections.abc import Callable, Mapping
from typing import Any

from diffusiongemma.errors import ConfigError

__all__ = [
    "FULL",
    "MAX_LAYERS",
    "MAX_SIZE",
    "SLIDING",
    "is_number",
    "refuse_unfollowed",
    "refuse_unknown",
    "unknown_fields",
    "want_mapping",
    "want_positive",
    "want_size",
    "want_token",
]

SLIDING = "sliding_attention"
FULL = "full_attention"
MAX_SIZE = 2**31 - 1
"""Largest size of any kind: a typing error must not become an allocation."""
MAX_LAYERS = 1_024

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
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "tie_last_hidden_states",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
# Read by nothing here, and met in released and re-saved files: token ids of other kinds of input, notes of tools.
_TOP = _BOOKKEEPING | {
    "audio_config",
    "audio_token_id",
    "boa_token_id",
    "bos_token_id",
    "eoa_token_id",
    "eoa_token_index",
    "generation_config",
    "pad_token_id",
    "quantization",
    "quantization_config",
    "text_config",
    "unsloth_fixed",
    "unsloth_version",
    "video_token_id",
    "vision_config",
    "vision_soft_tokens_per_image",
}
_VISION = _BOOKKEEPING | {
    "attention_bias",
    "attention_dropout",
    "default_output_length",
    "global_head_dim",
    "head_dim",
    "hidden_activation",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "patch_size",
    "pooling_kernel_size",
    "position_embedding_size",
    "rms_norm_eps",
    "rope_parameters",
    "standardize",
    "use_clipped_linears",
}
_TEXT = _BOOKKEEPING | {"attention_dropout"}


def _one_of(*values: Any) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda value, _: any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in values)


def _rope_of(kind: str, name: str, default: float) -> Callable[[Any, Mapping[str, Any]], bool]:
    def agrees(value: Any, text: Mapping[str, Any]) -> bool:
        rope = text.get("rope_parameters")
        entry = rope.get(kind) if isinstance(rope, Mapping) else None
        return bool(value == (entry.get(name, default) if isinstance(entry, Mapping) else default))

    return agrees


def _all_zero(value: Any, _: Mapping[str, Any]) -> bool:
    return not any(value) if isinstance(value, list | tuple) else value == 0


# Fields of the Gemma family that change the computation: when a value says what is done here anyway, and what that is. Null
# always does. Sources: transformers 5.24 configurations of gemma2, gemma3, gemma3n, gemma4, embeddinggemma.
_UNFOLLOWED: dict[str, tuple[Callable[[Any, Mapping[str, Any]], bool], str]] = {
    "is_causal": (_one_of(True), "true: the encoder role is causal"),
    "num_kv_shared_layers": (_one_of(0), "0: every layer has keys and values of its own"),
    "use_double_wide_mlp": (_one_of(False), "false"),
    "hidden_size_per_layer_input": (_one_of(0), "0: there are no embeddings a layer"),
    "attn_logit_softcapping": (_one_of(), "null: attention scores are not capped"),
    "query_pre_attn_scalar": (_one_of(1), "1: queries are normalised and not scaled"),
    "attention_chunk_size": (_one_of(), "null: no layer attends in chunks"),
    "rope_scaling": (_one_of(), "null: write it as rope_parameters"),
    "rope_theta": (_rope_of(FULL, "rope_theta", 1e6), "what rope_parameters[full_attention] says"),
    "rope_local_base_freq": (_rope_of(SLIDING, "rope_theta", 1e4), "what rope_parameters[sliding_attention] says"),
    "partial_rotary_factor": (_rope_of(FULL, "partial_rotary_factor", 1.0), "what rope_parameters[full_attention] says"),
    "sliding_window_pattern": (lambda value, text: value == 6 or text.get("layer_types") is not None, "6; write layer_types"),
    "activation_sparsity_pattern": (_all_zero, "zeros: no activation is dropped"),
    "altup_num_inputs": (_one_of(0, 1), "1: there is one residual stream"),
    "laurel_rank": (_one_of(0), "0: there are no low-rank residuals"),
    "num_experts_per_tok": (lambda value, text: value == text.get("top_k_experts"), "what top_k_experts says"),
    "num_local_experts": (lambda value, text: value == text.get("num_experts"), "what num_experts says"),
}  # fmt: skip


def refuse_unfollowed(text: Mapping[str, Any]) -> None:
    """Refuse a text_config with a value that changes the computation in a way that is not followed.

    Raises:
        ConfigError: naming the field and what is allowed.
    """
    for name, (agrees, allowed) in _UNFOLLOWED.items():
        value = text.get(name)
        if value is not None and not agrees(value, text):
            raise ConfigError(f"config.json text_config: {name} is {value!r}, which is not supported; allowed: {allowed}")


def unknown_fields(data: Mapping[str, Any], top: set[str], text: set[str]) -> list[str]:
    """Names, with their place, of the fields of a config.json that nothing here knows.

    Args:
        data: the content of a config.json whose text_config is a mapping.
        top: fields that are read at the top.
        text: fields that are read in text_config.
    """
    parts = (
        ("", data, _TOP | top),
        ("text_config.", data["text_config"], _TEXT | text | set(_UNFOLLOWED)),
        ("vision_config.", data.get("vision_config") or {}, _VISION),
    )
    return [place + str(name) for place, part, known in parts for name in sorted(set(part) - known, key=str)]


def refuse_unknown(data: Mapping[str, Any], allowed: set[str], where: str) -> None:
    """Refuse fields of a part in which every field changes the computation.

    Raises:
        ConfigError: a field that is not allowed and not null.
    """
    unknown = sorted(str(name) for name, value in data.items() if name not in allowed and value is not None)
    if unknown:
        raise ConfigError(
            f"{where} has the unknown field{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; "
            f"allowed: {', '.join(sorted(allowed))}"
        )


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    # An integer above the largest float is finite and no number that a computation here could use.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def want_positive(what: str, value: Any) -> None:
    """Raise ConfigError unless a value is a number above 0."""
    if not is_number(value) or value <= 0:
        raise ConfigError(f"{what} is {value!r}; it must be a number > 0")


def want_size(what: str, value: Any, most: int = MAX_SIZE) -> None:
    """Raise ConfigError unless a value is an integer from 1 to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{what} is {value!r}; it must be an integer >= 1")
    if value > most:
        raise ConfigError(f"{what} is {value}; it must be at most {most}")


def want_token(what: str, value: Any) -> None:
    """Raise ConfigError unless a value is a token id or None."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ConfigError(f"{what} is {value!r}; it must be a token id or null")


def want_mapping(what: str, value: Any) -> None:
    """Raise ConfigError unless a value is a mapping."""
    if not isinstance(value, Mapping):
        shown = repr(value)
        raise ConfigError(f"{what} is {shown[:60] + '...' if len(shown) > 60 else shown}; it must be an object")
