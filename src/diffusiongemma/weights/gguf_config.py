"""The metadata of a GGUF file of this architecture -> the content of a config.json and a generation_config.json.

Source: llama.cpp ``conversion/diffusion_gemma.py`` (commit c5fe75b), which wrote the published files.
"""

import json
import logging
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusiongemma.errors import CheckpointError
from diffusiongemma.weights.gguf import GGUFFile
from diffusiongemma.weights.gguf_names import ROPE_FREQS

__all__ = ["ARCHITECTURE", "GENERATION_KEY", "NOT_TURNING", "config_of", "generation_config_of"]

ARCHITECTURE = "diffusion-gemma"
STOP_TEXTS = ("<turn|>", "<|tool_response>")
"""What ends an answer besides the end of the text; a file has room for one end token only."""
PUBLISHED_STOP_IDS = (106, 50)
"""Their numbers in the released vocabulary (its generation_config.json)."""
GENERATION_KEY = "diffusiongemma.generation_config"
"""A whole generation_config.json, in files written here that have more to say of it than the published keys can."""
_IMAGE_TEXTS = {"boi_token_id": "<|image>", "eoi_token_id": "<image|>", "image_token_id": "<|image|>"}
NOT_TURNING = 1e30
"""The divisor in ``rope_freqs`` of a pair that does not turn."""
# Keys that would change the computation, each with the values under which it does not.
_MUST_BE = {
    "attention.causal": (False,),
    "attention.shared_kv_layers": (0,),
    "attn_logit_softcapping": (0.0,),
    "attention.scale": (1.0,),
    "embedding_length_per_layer_input": (0,),
    "expert_shared_count": (0,),
    "rope.scaling.type": ("none",),
}
_READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "expert_feed_forward_length", "expert_count",
    "expert_used_count", "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.key_length_swa", "attention.value_length_swa", "attention.sliding_window", "attention.sliding_window_pattern",
    "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count",
    "rope.dimension_count_swa", "final_logit_softcapping", "vocab_size",
}  # fmt: skip
log = logging.getLogger(__name__)


def config_of(file: GGUFFile) -> dict[str, Any]:
    """The content of a config.json, which ``ModelConfig.from_dict`` reads.

    Raises:
        CheckpointError: a file of another architecture, or a part of one; a key that is missing, of the wrong kind, or that
            asks for what this runtime does not compute.
    """
    keys = _Keys(file.metadata, file.path)
    keys.check()
    layers = keys.size("block_count")
    sliding = _sliding(keys, layers)
    kv_heads = keys.each_layer("attention.head_count_kv", layers)
    head_dims = {True: keys.head_size("_swa"), False: keys.head_size("")}
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "canvas_length": keys.size("diffusion.canvas_length", prefix=""),
        "eos_token_id": list(_stop_ids(file.metadata, tokens)),
        **{name: tokens.index(text) if text in tokens else None for name, text in _IMAGE_TEXTS.items()},
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "diffusion_gemma_text",
            "hidden_size": keys.size("embedding_length"),
            "intermediate_size": keys.same_everywhere("feed_forward_length", layers),
            "num_hidden_layers": layers,
            "num_attention_heads": keys.same_everywhere("attention.head_count", layers),
            **_layer_sizes(sliding, kv_heads, head_dims),
            "layer_types": ["sliding_attention" if slides else "full_attention" for slides in sliding],
            "num_experts": keys.size("expert_count"),
            "top_k_experts": keys.size("expert_used_count"),
            "moe_intermediate_size": keys.size("expert_feed_forward_length"),
            "vocab_size": _vocab_size(file, keys),
            "max_position_embeddings": keys.size("context_length"),
            "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
            "sliding_window": keys.size("attention.sliding_window"),
            "final_logit_softcapping": keys.number("final_logit_softcapping"),
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa")},
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": keys.number("rope.freq_base"),
                    "partial_rotary_factor": _turning_part(file, head_dims[False]),
                },
            },
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
            "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id", 0),
            "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
            "use_bidirectional_attention": "vision",
            "tie_word_embeddings": True,
        },
    }


def generation_config_of(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The content of a generation_config.json: the sampler's defaults where a file has them, and the stop tokens.

    Args:
        metadata: of the file.
        path: of the file, for messages.

    Raises:
        CheckpointError: a content that cannot be read.
    """
    names = {
        "eb_max_steps": "max_denoising_steps",
        "eb_t_min": "t_min",
        "eb_t_max": "t_max",
        "eb_stability_threshold": "stability_threshold",
        "eb_confidence_threshold": "confidence_threshold",
    }
    if (whole := metadata.get(GENERATION_KEY)) is not None:
        return _whole_generation(whole, path)
    result = {theirs: _plain(metadata[f"diffusion.{key}"]) for key, theirs in names.items() if f"diffusion.{key}" in metadata}
    if "diffusion.eb_entropy_bound" in metadata:
        result["sampler_config"] = {"entropy_bound": _plain(metadata["diffusion.eb_entropy_bound"])}
    tokens = metadata.get("tokenizer.ggml.tokens")
    return {**result, "eos_token_id": list(_stop_ids(metadata, tokens if isinstance(tokens, list) else []))}


def _whole_generation(content: object, path: Path) -> dict[str, Any]:
    try:
        result = json.loads(content) if isinstance(content, str) else None
    except (ValueError, RecursionError):
        result = None
    stops = result.get("eos_token_id") if isinstance(result, dict) else None
    if not isinstance(result, dict) or not isinstance(stops, list) or not all(isinstance(token, int) for token in stops):
        raise CheckpointError(f"{path}: the metadata key {GENERATION_KEY} is no generation_config.json with eos_token_id as a list")
    return result


class _Keys:
    """Reads this architecture's keys; each error names the key."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self._metadata = metadata
        self._path = path

    def check(self) -> None:
        """The architecture, the number of parts, and the keys that must not say otherwise."""
        result = self._metadata.get("general.architecture")
        if result != ARCHITECTURE:
            raise CheckpointError(
                f"{self._path} is a GGUF file of the architecture {result!r}; this runtime runs {ARCHITECTURE!r} (DiffusionGemma)"
            )
        if (parts := self._metadata.get("split.count", 1)) not in (0, 1):
            raise CheckpointError(
                f"{self._path} is one of {parts} parts of a split GGUF; only whole files are read. "
                "Put the parts together with llama-gguf-split --merge"
            )
        prefix = ARCHITECTURE + "."
        own = {key.removeprefix(prefix): value for key, value in self._metadata.items() if key.startswith(prefix)}
        for key, allowed in _MUST_BE.items():
            if key in own and own[key] not in allowed:
                raise self._error(prefix + key, f"{own[key]!r}; this runtime computes only {' or '.join(map(repr, allowed))}")
        if unknown := sorted(set(own) - _READ - set(_MUST_BE)):
            log.warning(
                "%s: the metadata %s is not followed by this runtime", self._path, ", ".join(prefix + key for key in unknown)
            )

    def size(self, key: str, prefix: str = ARCHITECTURE + ".") -> int:
        """An integer of at least 1."""
        value = self._get(prefix + key)
        if not _is_size(value):
            raise self._error(prefix + key, f"{value!r}; it must be an integer of at least 1")
        return int(value)

    def number(self, key: str) -> float:
        """A number above 0, as it was before it was rounded to float32."""
        value = self._get(f"{ARCHITECTURE}.{key}")
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self._error(f"{ARCHITECTURE}.{key}", f"{value!r}; it must be a number above 0")
        return float(_plain(value))

    def each_layer(self, key: str, layers: int) -> list[int]:
        """A size for each layer, from a list or from one for all."""
        value = self._get(f"{ARCHITECTURE}.{key}")
        sizes = value if isinstance(value, list) else [value] * layers
        if len(sizes) != layers or not all(map(_is_size, sizes)):
            raise self._error(
                f"{ARCHITECTURE}.{key}", f"{value!r}; it must be an integer of at least 1, or one for each of {layers} layers"
            )
        return sizes

    def same_everywhere(self, key: str, layers: int) -> int:
        """A size that must be the same in all layers."""
        sizes = self.each_layer(key, layers)
        if len(set(sizes)) > 1:
            raise self._error(f"{ARCHITECTURE}.{key}", f"{sizes}; it must be the same in all layers")
        return sizes[0]

    def head_size(self, suffix: str) -> int:
        """The head size of one layer type, which keys, values and rotation must share."""
        size = self.size("attention.key_length" + suffix)
        for key in ("attention.value_length", "rope.dimension_count"):
            value = self._metadata.get(f"{ARCHITECTURE}.{key}{suffix}", size)
            if value != size:
                raise self._error(f"{ARCHITECTURE}.{key}{suffix}", f"{value!r}; it must be attention.key_length{suffix}, {size}")
        return size

    def pattern(self) -> Any:
        """Which layers slide, as it is written."""
        return self._get(f"{ARCHITECTURE}.attention.sliding_window_pattern")

    def pattern_error(self, value: object, layers: int) -> CheckpointError:
        return self._error(
            f"{ARCHITECTURE}.attention.sliding_window_pattern",
            f"{value!r}; it must be a bool for each of {layers} layers, the last one false (a full layer)",
        )

    def _get(self, key: str) -> Any:
        if key not in self._metadata:
            raise CheckpointError(f"{self._path} lacks the metadata key {key}; convert the model again with a current llama.cpp")
        return self._metadata[key]

    def _error(self, key: str, rest: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: the metadata key {key} is {rest}")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _plain(value: Any) -> Any:
    """A float32 as the shortest number that rounds to it: 1e-6, not 9.99999997e-07."""
    if not isinstance(value, float):
        return value
    short = float(f"{value:.7g}")
    return short if struct.pack("<f", short) == struct.pack("<f", value) else value


def _sliding(keys: _Keys, layers: int) -> list[bool]:
    pattern = keys.pattern()
    if not isinstance(pattern, list) or len(pattern) != layers or not all(isinstance(one, bool) for one in pattern) or pattern[-1]:
        raise keys.pattern_error(pattern, layers)
    return pattern


def _layer_sizes(sliding: list[bool], kv_heads: list[int], head_dims: Mapping[bool, int]) -> dict[str, Any]:
    """Head sizes and key-value heads: spelled as in the released config.json, or for each layer where a type has several."""
    of_type = {slides: {heads for slid, heads in zip(sliding, kv_heads, strict=True) if slid == slides} for slides in set(sliding)}
    if len(of_type) == 2 and all(len(heads) == 1 for heads in of_type.values()):
        return {
            "num_key_value_heads": of_type[True].pop(),
            "num_global_key_value_heads": of_type[False].pop(),
            "head_dim": head_dims[True],
            "global_head_dim": head_dims[False],
        }
    layers = enumerate(zip(sliding, kv_heads, strict=True))
    return {
        "num_key_value_heads": kv_heads[0],
        "head_dim": head_dims[sliding[0]],
        "per_layer_config": {
            str(i): {"head_dim": head_dims[slides], "num_key_value_heads": heads} for i, (slides, heads) in layers
        },
    }


def _vocab_size(file: GGUFFile, keys: _Keys) -> int:
    """Rows of the embedding; ``vocab_size``, where it is there, must say the same."""
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise CheckpointError(f"{file.path} lacks the tensor token_embd.weight")
    rows = table.shape[0]
    if file.metadata.get(f"{ARCHITECTURE}.vocab_size", rows) != rows:
        raise CheckpointError(f"{file.path}: vocab_size is {keys.size('vocab_size')}, and token_embd.weight has {rows} rows")
    return rows


def _turning_part(file: GGUFFile, head_dim: int) -> float:
    """The part of a full layer's pairs that turn: ones in ``rope_freqs``, before pairs that do not."""
    tensor = file.tensors.get(ROPE_FREQS)
    if tensor is None:
        raise CheckpointError(f"{file.path} lacks the tensor {ROPE_FREQS}, which says how much of a full layer's head turns")
    divisors = tensor.block.dequantize(file.blocks(ROPE_FREQS)).flatten()
    turning = int((divisors == 1).sum())
    expected = torch.full((head_dim // 2,), NOT_TURNING)
    expected[:turning] = 1
    if tensor.shape != expected.shape or not torch.equal(divisors, expected):
        raise CheckpointError(
            f"{file.path}: {ROPE_FREQS} of shape {list(tensor.shape)} must hold {head_dim // 2} divisors, first ones, "
            f"then {NOT_TURNING:g}; other rotary embeddings are not computed"
        )
    part = 2 * turning / head_dim
    while int(part * head_dim // 2) < turning:  # as the model counts them; the quotient may be one rounding too small
        part = math.nextafter(part, math.inf)
    return part


def _stop_ids(metadata: Mapping[str, Any], tokens: Sequence[str]) -> tuple[int, ...]:
    """What ends an answer: the end token, and others by their texts; without those in the vocabulary, the published numbers."""
    end = metadata.get("tokenizer.ggml.eos_token_id")
    others = tuple(tokens.index(text) for text in STOP_TEXTS if text in tokens)
    if not others:
        others = tuple(token for token in PUBLISHED_STOP_IDS if token < len(tokens))
    return tuple(dict.fromkeys((*([] if end is None else [end]), *others)))
