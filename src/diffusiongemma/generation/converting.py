"""An autoregressive Gemma -> a checkpoint of two roles: its weights, and a block for the canvas that still has to be trained.

The causal role of the result computes what the source computes. What differs between the families is folded into weights where it
can be (Gemma 3's norms hold ``w`` of ``1 + w``, its queries are scaled), and said in text_config where it cannot (``TextConfig``).
Sources: transformers 5.24 ``modeling_gemma3.py`` and ``modeling_gemma4.py``; llama.cpp ``conversion/gemma.py`` for GGUF files.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.errors import CheckpointError, ConfigError, OptionError
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.config_fields import FULL, SLIDING, want_mapping, want_size
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.text.files import is_there, read_json
from diffusiongemma.text.gguf_tokenizer import GGUFTokenizer
from diffusiongemma.weights.companions import companions
from diffusiongemma.weights.gguf import GGUFFile
from diffusiongemma.weights.gguf_names import ROPE_FREQS, UNTIED_HEAD, to_ours
from diffusiongemma.weights.load import save
from diffusiongemma.weights.stream import json_bytes, stored_tensors, stream_tensors

__all__ = ["DTYPES", "Conversion", "convert_checkpoint"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FAMILIES = ("gemma3_text", "gemma3", "gemma4_text", "gemma4")
# Defaults of the families' own configurations, which files leave out. Source: transformers 5.24 configuration_gemma3, _gemma4.
_SHARED = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "attention_bias": False,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
_GEMMA3 = {**_SHARED, "vocab_size": 262_208, "num_hidden_layers": 26, "sliding_window": 4096}
_GEMMA4 = {**_SHARED, "vocab_size": 262_144, "num_hidden_layers": 30, "sliding_window": 512}
_GEMMA4_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}
# Values that change the computation in a way that no checkpoint here can hold.
_MUST_BE = {
    "attn_logit_softcapping": (None,),
    "hidden_size_per_layer_input": (0, None),
    "num_kv_shared_layers": (0, None),
    "use_double_wide_mlp": (False, None),
    "tie_word_embeddings": (True, None),
}
_OURS = re.compile(r"(?:model\.)?(?:language_model\.)?(?:model\.)?(embed_tokens\.weight|norm\.weight|layers\.[0-9]+\..+)")
_OTHER_INPUTS = re.compile(r"(?:model\.)?(?:vision_tower|multi_modal_projector|embed_vision|audio_tower|embed_audio)\..+")
_HEAD = re.compile(r"(?:language_model\.)?lm_head\.weight")
_INITIAL = 0.02
"""Standard deviation of new matrices. Source: the families' ``initializer_range``."""


@dataclass(frozen=True)
class Conversion:
    """What was made of a source.

    Attributes:
        config: of the new checkpoint.
        dtype: of its weights.
        left_out: tensors of the source for images and sound, which the new one does not have.
        new: parameters that the source does not have: the self-conditioning block.
    """

    config: ModelConfig
    dtype: str
    left_out: tuple[str, ...]
    new: int


def convert_checkpoint(
    source: Path,
    out: Path,
    *,
    canvas_length: int = 256,
    dtype: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Conversion:
    """Write a checkpoint of two roles. All weights are in memory once.

    The causal role is the source's. The self-conditioning block adds nothing at first (its last matrix is zeros); the canvas's
    role has learnt nothing and wants training.

    Args:
        source: a folder of safetensors of Gemma 3 or 4 (of one with images the text stack), or a GGUF file of Gemma 3.
        out: a folder that is not there, or is empty.
        canvas_length: positions of a canvas.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None: the source's, and float32 of a GGUF file. Gemma 3's norms hold
            ``1 + w`` here, which float32 holds exactly and the others round.
        seed: of the new matrices.
        progress: called with tensors done and in all.

    Raises:
        OptionError: an unknown dtype, or a canvas length that is none.
        CheckpointError: a source that is damaged, or whose tensors are not those of its config; a target with something in it.
        ConfigError: another family, or a configuration that cannot be followed (embeddings a layer, shared keys, capped scores).
    """
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}", "dtype")
    if not isinstance(canvas_length, int) or isinstance(canvas_length, bool) or canvas_length < 1:
        raise OptionError(f"canvas_length is {canvas_length!r}; it must be an integer >= 1", "canvas_length")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} is there and not an empty folder; give a new one")
    read = _gguf(source) if source.is_file() else _folder(source)
    config = ModelConfig.from_dict(
        {
            "architectures": ["DiffusionGemmaForBlockDiffusion"], "model_type": "diffusion_gemma", "canvas_length": canvas_length,
            "eos_token_id": list(read.stop_ids), "tie_word_embeddings": True, "text_config": read.text_config,
            **dict.fromkeys(("boi_token_id", "eoi_token_id", "image_token_id")),
        }
    )  # fmt: skip
    shapes = text_shapes(config.text)
    tensors: dict[str, Tensor] = {}
    kinds = set()
    for name, tensor in read.tensors():
        if name not in shapes or tuple(tensor.shape) != shapes[name]:
            wanted = f"the configuration asks for {list(shapes[name])}" if name in shapes else "it has no place in this stack"
            raise CheckpointError(f"{source}: {name} has shape {list(tensor.shape)}; {wanted}")
        kinds.add(tensor.dtype)
        tensors[name] = read.adapted(name, tensor)
        progress(len(tensors), len(shapes))
    kind = DTYPES[dtype] if dtype else torch.float32 if source.is_file() or len(kinds) > 1 else kinds.pop()
    if kind not in DTYPES.values():
        raise CheckpointError(f"{source} has weights in {kind}; say which dtype the new ones have: {', '.join(DTYPES)}")
    new = _self_conditioning(shapes, seed)
    tensors |= new | {name: torch.ones(1) for name in shapes if name.endswith("layer_scalar") and name not in tensors}
    for name in [name for name in tensors if name.endswith(".layer_scalar")]:
        tensors[name.replace(".layer_scalar", ".encoder_layer_scalar")] = tensors[name].clone()
    if missing := sorted(set(shapes) - set(tensors)):
        raise CheckpointError(f"{source} lacks {', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}")
    generation = {"eos_token_id": list(read.stop_ids), "pad_token_id": config.text.pad_token_id}
    files = {**read.files(out), "generation_config.json": json_bytes(generation | SamplingParams().to_generation_config())}
    save(out, {name: tensor.to(kind) for name, tensor in tensors.items()}, config.to_dict(), {}, files)
    return Conversion(config, str(kind).removeprefix("torch."), read.left_out, sum(one.numel() for one in new.values()))


@dataclass(frozen=True)
class _Source:
    """An open source: its shape in our fields, and its tensors by our names."""

    text_config: Mapping[str, Any]
    stop_ids: tuple[int, ...]
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    files: Callable[[Path], Mapping[str, Path | bytes]]
    left_out: tuple[str, ...] = ()
    norm_offset: float = 0.0
    query_scale: float = 1.0

    def adapted(self, name: str, tensor: Tensor) -> Tensor:
        """A weight as this runtime computes with it."""
        if name.endswith("norm.weight") and self.norm_offset:
            tensor = tensor.float() + self.norm_offset
        return tensor.float() * self.query_scale if name.endswith("q_norm.weight") and self.query_scale != 1.0 else tensor


def _folder(folder: Path) -> _Source:
    config = read_json(folder / "config.json")
    family = config.get("model_type")
    if family == "diffusion_gemma":
        raise ConfigError(f"{folder} is a DiffusionGemma already; there is nothing to convert")
    if family not in _FAMILIES:
        raise ConfigError(f"{folder / 'config.json'} has model_type {family!r}; converted are {', '.join(_FAMILIES)}")
    text: Any = config if family.endswith("_text") else config.get("text_config")
    want_mapping(f"{folder / 'config.json'}: text_config", text)
    ours = _gemma3(text) if family.startswith("gemma3") else _gemma4(text)
    generation = read_json(folder / "generation_config.json") if is_there(folder / "generation_config.json") else {}
    named_stops = (one.get("eos_token_id") for one in (generation, config, text))
    stops: Any = next((one for one in named_stops if one is not None), 1)
    named, left_out, heads = {}, [], []
    for name in stored_tensors(folder):
        if match := _OURS.fullmatch(name):
            named[name] = match[1]
        elif _OTHER_INPUTS.fullmatch(name):
            left_out.append(name)
        elif _HEAD.fullmatch(name):
            heads.append(name)
        else:
            raise CheckpointError(f"{folder}: {name} has no place in a checkpoint of two roles")
    table = next((name for name, our in named.items() if our == "embed_tokens.weight"), None)
    for head in heads:
        two = dict(stream_tensors(folder, lambda name: name in (head, table)))  # noqa: B023
        if len(two) == 2 and not torch.equal(two[head], two[str(table)]):
            raise CheckpointError(f"{folder}: {head} is not the embedding; only models whose head is the embedding are converted")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        return ((named[name], tensor) for name, tensor in stream_tensors(folder, named.__contains__))

    return _Source(
        ours, tuple(stops) if isinstance(stops, list) else (stops,), tensors, lambda out: companions(folder, out),
        tuple(left_out), *((1.0, _query_scale(text)) if family.startswith("gemma3") else ()),
    )  # fmt: skip


def _query_scale(text: Mapping[str, Any]) -> float:
    scalar = text.get("query_pre_attn_scalar", 256)
    want_size("query_pre_attn_scalar", scalar)
    return float(scalar**-0.5)


def _fields(text: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    for name, allowed in _MUST_BE.items():
        if text.get(name) not in allowed:
            raise ConfigError(f"{name} is {text[name]!r}, which no checkpoint of two roles can hold; converted is {allowed[0]!r}")
    if text.get("use_bidirectional_attention") not in (None, False, "vision"):
        raise ConfigError(
            f"use_bidirectional_attention is {text['use_bidirectional_attention']!r}; an autoregressive model has none"
        )
    given = {name: default if text.get(name) is None else text[name] for name, default in defaults.items()}
    return {**given, "final_logit_softcapping": text.get("final_logit_softcapping")}


def _gemma3(text: Mapping[str, Any]) -> dict[str, Any]:
    given = _fields(text, _GEMMA3)
    count = given["num_hidden_layers"]
    want_size("num_hidden_layers", count, 1024)
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern") or 6
    want_size("sliding_window_pattern", pattern)
    types = text.get("layer_types") or [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(count)]
    rope = text.get("rope_parameters")
    if not isinstance(rope, Mapping) or not ({SLIDING, FULL} & set(rope)):
        # As files of before transformers 5 have it: a factor holds for full layers alone.
        rope = {
            SLIDING: {"rope_type": "default", "rope_theta": text.get("rope_local_base_freq") or 1e4},
            FULL: {"rope_type": "default", "rope_theta": text.get("rope_theta") or 1e6, **_scaling(text.get("rope_scaling"))},
        }
    return {
        **given, "model_type": "diffusion_gemma_text", "layer_types": types, "rope_parameters": rope, "per_layer_config": {},
        "enable_moe_block": False, "attention_k_eq_v": False, "value_norm": False,
    }  # fmt: skip


def _scaling(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    want_mapping("rope_scaling", given)
    return {"rope_type": given.get("rope_type", given.get("type")), "factor": given.get("factor", 1.0)}


def _gemma4(text: Mapping[str, Any]) -> dict[str, Any]:
    given = _fields(text, _GEMMA4)
    moe, shared = bool(text.get("enable_moe_block")), bool(text.get("attention_k_eq_v"))
    heads = text.get("num_global_key_value_heads") if shared else None
    layers = text.get("per_layer_config")
    sizes = {"per_layer_config": layers} if layers is not None else {
        "global_head_dim": text.get("global_head_dim") or 512, "num_global_key_value_heads": heads or given["num_key_value_heads"],
    }  # fmt: skip
    experts = ("num_experts", "top_k_experts", "moe_intermediate_size")
    types = text.get("layer_types")
    return {
        **given, **sizes, "model_type": "diffusion_gemma_text", "rope_parameters": text.get("rope_parameters") or _GEMMA4_ROPE,
        "layer_types": None if types is None else [*types[:-1], FULL], "enable_moe_block": moe, "attention_k_eq_v": shared,
        **({name: text.get(name) for name in experts} if moe else {}),
    }  # fmt: skip


def _gguf(path: Path) -> _Source:
    file = GGUFFile(path)
    metadata, family = file.metadata, file.metadata.get("general.architecture")
    if family != "gemma3":
        raise ConfigError(f"{path} is a GGUF file of the architecture {family!r}; converted is 'gemma3'")

    def size(key: str) -> Any:
        if (value := metadata.get(f"gemma3.{key}")) is None:
            raise CheckpointError(f"{path} has no metadata key gemma3.{key}; download it again")
        return value

    head_dim = size("attention.key_length")
    text = {
        "hidden_size": size("embedding_length"), "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"), "num_attention_heads": size("attention.head_count"),
        "num_key_value_heads": size("attention.head_count_kv"), "head_dim": head_dim,
        "max_position_embeddings": size("context_length"), "sliding_window": size("attention.sliding_window"),
        "rms_norm_eps": size("attention.layer_norm_rms_epsilon"), "rope_theta": size("rope.freq_base"),
        "rope_local_base_freq": metadata.get("gemma3.rope.freq_base_swa"),
        "final_logit_softcapping": metadata.get("gemma3.final_logit_softcapping"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else None,
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"), "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
    }  # fmt: skip
    if metadata.get("gemma3.rope.scaling.type") not in (None, "none"):
        text["rope_scaling"] = {"rope_type": size("rope.scaling.type"), "factor": size("rope.scaling.factor")}
    # 27B's queries are scaled by hidden size and heads; no key says so. Source: llama.cpp src/models/gemma3.cpp, by 62 layers.
    scalar = text["hidden_size"] // text["num_attention_heads"] if text["num_hidden_layers"] == 62 else head_dim
    tokenizer = GGUFTokenizer.from_metadata(metadata, path)
    named = {name: ours for name in file.tensors if name not in (ROPE_FREQS, UNTIED_HEAD) and (ours := to_ours(name))}
    if odd := sorted(set(file.tensors) - set(named) - {ROPE_FREQS, UNTIED_HEAD}):
        raise CheckpointError(f"{path}: {odd[0]} has no place in a checkpoint of two roles")
    if UNTIED_HEAD in file.tensors:
        raise CheckpointError(f"{path} has {UNTIED_HEAD}; only models whose head is the embedding are converted")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        return ((ours, file.tensors[name].block.dequantize(file.blocks(name)).view(file.tensors[name].shape))
                for name, ours in named.items())  # fmt: skip

    stops = [text["eos_token_id"], metadata.get("tokenizer.ggml.eot_token_id")]
    unique = tuple(dict.fromkeys(one for one in stops if isinstance(one, int)))
    return _Source(_gemma3(text), unique or (1,), tensors, lambda _: tokenizer.files(), query_scale=float(scalar) ** -0.5)


def _self_conditioning(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """A block that adds nothing yet: gradients reach its last matrix first."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, shape in shapes.items():
        if name.startswith("self_conditioning."):
            kind = name.split(".")[1]
            random = torch.empty(shape).normal_(0, _INITIAL, generator=generator) if kind in ("gate_proj", "up_proj") else None
            result[name] = torch.zeros(shape) if kind == "down_proj" else torch.ones(shape) if random is None else random
    return result
