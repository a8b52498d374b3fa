"""A model's configuration, sampling defaults and tokenizer -> the metadata of a GGUF file; what ``weights.gguf_config`` reads.

Keys are those of the published files (llama.cpp ``conversion/diffusion_gemma.py``, commit c5fe75b). What those have no room for
stands whole in a key of its own, and only then: the tokenizer in ``tokenizer.huggingface.json``, the sampling defaults in
``GENERATION_KEY``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from torch import Tensor

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import CheckpointError, ConfigError, OptionError
from diffusiongemma.model.config import FULL, SLIDING, ModelConfig, TextConfig
from diffusiongemma.model.transformer import rotary_frequencies
from diffusiongemma.opened import gguf_config
from diffusiongemma.text.gguf_tokenizer import GGUFTokenizer
from diffusiongemma.text.tokenizer import Tokenizer
from diffusiongemma.weights.gguf import GGUFFile
from diffusiongemma.weights.gguf_config import ARCHITECTURE, GENERATION_KEY, NOT_TURNING, generation_config_of

__all__ = ["check_written", "metadata_of", "rope_freqs"]

# Token types of a file. Source: llama.cpp ``llama_token_type``.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6
_NOT_OF_THE_STACK = frozenset({"rope", "eos_token_id", "bos_token_id", "pad_token_id", "use_bidirectional_attention"})
"""Fields of a TextConfig that no pass reads, and the rotary embedding, which is compared by its frequencies."""


def metadata_of(
    config: ModelConfig, tokenizer: Tokenizer, defaults: SamplingParams, stop_ids: Sequence[int], name: str
) -> dict[str, Any]:
    """Key -> number, bool, string, or list of them.

    Args:
        config: of the model.
        tokenizer: of the checkpoint.
        defaults: of its sampler.
        stop_ids: token ids that end an answer.
        name: of the model, for people.
    """
    result = {"general.architecture": ARCHITECTURE, "general.name": name, "general.quantization_version": 2, **_shape(config)}
    result |= _tokenizer(tokenizer, config.text, stop_ids)
    sampling = defaults.to_generation_config()
    result |= {
        "diffusion.eb_max_steps": defaults.num_diffusion_steps,
        "diffusion.eb_t_min": float(defaults.t_min),
        "diffusion.eb_t_max": float(defaults.t_max),
        "diffusion.eb_entropy_bound": float(defaults.entropy_bound),
        "diffusion.eb_stability_threshold": defaults.stability,
        "diffusion.eb_confidence_threshold": float(defaults.confidence),
    }
    read = generation_config_of(result, Path(name))
    if SamplingParams.from_generation_config(read) != defaults or read["eos_token_id"] != list(stop_ids):
        result[GENERATION_KEY] = json.dumps({**sampling, "eos_token_id": list(stop_ids)})
    return result


def rope_freqs(text: TextConfig) -> Tensor:
    """The divisors of a full layer's rotary frequencies, float32 ``[H / 2]``: 1 for pairs that turn."""
    head_dim, rope = text.head_dim_of(FULL), text.rope[FULL]
    divisors = torch.full((head_dim // 2,), NOT_TURNING)
    divisors[: int(rope.partial_rotary_factor * head_dim // 2)] = 1
    return divisors


def check_written(path: Path, config: ModelConfig) -> None:
    """Refuse a file whose metadata does not describe the model: the format has no room for everything.

    Args:
        path: of a file with its metadata.
        config: of the model.

    Raises:
        OptionError: naming the fields.
    """
    try:
        read = gguf_config(GGUFFile(path))
    except CheckpointError as error:
        raise OptionError(f"a GGUF file cannot hold this model: {str(error).replace(str(path), 'the file')}") from error
    wanted, result = config.text, read.text
    names = [field.name for field in fields(TextConfig) if field.name not in _NOT_OF_THE_STACK]
    odd = [name for name in names if not _same(getattr(wanted, name), getattr(result, name))]
    odd += [f"rope_parameters of {kind}" for kind in sorted(set(wanted.layer_types)) if not _same_rope(wanted, result, kind)]
    if config.canvas_length != read.canvas_length:
        odd.append("canvas_length")
    if config.process != read.process:
        odd.append("diffusion process")
    if odd:
        raise OptionError(f"a GGUF file of this architecture cannot hold this model's {', '.join(odd)}; write another format")


def _same(wanted: object, result: object) -> bool:
    """Whether a value is what was written: numbers are float32 in a file."""
    if isinstance(wanted, float) and isinstance(result, float):
        return bool(np.float32(wanted) == np.float32(result))
    return wanted == result


def _same_rope(wanted: TextConfig, result: TextConfig, kind: str) -> bool:
    ours, theirs = (rotary_frequencies(text.rope[kind], text.head_dim_of(kind)) for text in (wanted, result))
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-6, atol=0)


def _shape(config: ModelConfig) -> dict[str, Any]:
    text = config.text
    if not (text.enable_moe_block and text.attention_k_eq_v and text.value_norm) or text.final_logit_softcapping is None:
        raise ConfigError(
            "this checkpoint has a stack of its own (no experts, values of its own in full layers, no norm of values, or no cap of "
            f"the logits), for which GGUF's {ARCHITECTURE!r} has no keys; write fp8, int8 or int4 instead"
        )
    sliding = SLIDING if SLIDING in text.layer_types else FULL
    full, window = text.head_dim_of(FULL), text.head_dim_of(sliding)
    own: dict[str, Any] = {
        "block_count": text.num_hidden_layers,
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "feed_forward_length": text.intermediate_size,
        "expert_feed_forward_length": text.moe_intermediate_size,
        "expert_count": text.num_experts,
        "expert_used_count": text.top_k_experts,
        "vocab_size": text.vocab_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": [layer.num_key_value_heads for layer in text.layers],
        "attention.key_length": full,
        "attention.value_length": full,
        "attention.key_length_swa": window,
        "attention.value_length_swa": window,
        "attention.sliding_window": text.sliding_window,
        "attention.sliding_window_pattern": [layer.is_sliding for layer in text.layers],
        "attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "attention.causal": False,
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "rope.freq_base": float(text.rope[FULL].rope_theta),
        "rope.freq_base_swa": float(text.rope[sliding].rope_theta),
        "rope.dimension_count": full,
        "rope.dimension_count_swa": window,
        "final_logit_softcapping": float(text.final_logit_softcapping),
    }
    return {"diffusion.canvas_length": config.canvas_length, **{f"{ARCHITECTURE}.{key}": value for key, value in own.items()}}


def _tokenizer(tokenizer: Tokenizer, text: TextConfig, stop_ids: Sequence[int]) -> dict[str, Any]:
    files = tokenizer.files()
    backend = Backend.from_str(files["tokenizer.json"].decode())
    content = json.loads(backend.to_str())
    merges = content["model"].get("merges", [])
    tokens, types = _tokens(backend, content["model"].get("byte_fallback", False))
    ids = {"bos": text.bos_token_id, "eos": next(iter(stop_ids), None), "padding": text.pad_token_id}
    ids["unknown"] = backend.token_to_id(str(content["model"].get("unk_token")))
    result: dict[str, Any] = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": types,
        **({"tokenizer.ggml.merges": [" ".join(merge) for merge in merges]} if merges else {}),
        **{f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items() if value is not None},
    }
    if tokenizer.template is not None:
        result["tokenizer.chat_template"] = tokenizer.template.source
    if not _rebuilt(result, content):
        # Of another kind: readers that know the lists alone must not take them for Gemma's.
        result |= {"tokenizer.ggml.model": "none", "tokenizer.huggingface.json": backend.to_str()}
    return result


def _tokens(backend: Backend, bytes_apart: bool) -> tuple[list[str], list[int]]:
    """Texts and types by id; numbers that no token has are filled up."""
    vocabulary = backend.get_vocab()
    texts = {index: text for text, index in vocabulary.items()}
    added = cast(Mapping[int, AddedToken], backend.get_added_tokens_decoder())
    tokens, types = [], []
    for index in range(max(texts, default=-1) + 1):
        token = texts.get(index)
        tokens.append(f"[UNUSED_{index}]" if token is None else token)
        if index in added:
            types.append(_CONTROL if added[index].special else _USER_DEFINED)
        elif bytes_apart and token is not None and len(token) == 6 and token.startswith("<0x"):
            types.append(_BYTE)
        else:
            types.append(_UNUSED if token is None else _NORMAL)
    return tokens, types


def _rebuilt(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> bool:
    """Whether the lists alone give the same tokenizer; what it puts before and after a text is not used here."""
    try:
        result = json.loads(GGUFTokenizer.from_metadata(metadata, Path("file")).files()["tokenizer.json"])
    except CheckpointError:
        return False
    return all(result.get(key) == content.get(key) for key in ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens"))
