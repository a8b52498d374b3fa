"""Models of our own that are small enough to build in every test, and a tokenizer whose tokens are single characters."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.generation import DiffusionGemmaModel, empty_transformer
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.text.tokenizer import Tokenizer

ALPHABET = string.ascii_letters + string.digits + "+-"
"""Token i of the test tokenizer is the i-th of these 64 characters."""

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "use_bidirectional_attention": "vision",
    "max_position_embeddings": 512,
}
VISION: dict[str, Any] = {
    "model_type": "gemma4_vision",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 4,
}


def config_dict(canvas_length: int = 8, **text: Any) -> dict[str, Any]:
    """A config.json in the flat spelling; ``text`` replaces fields of text_config, None removes them."""
    fields = {key: value for key, value in {**TEXT, **text}.items() if value is not None}
    return {
        "model_type": "diffusion_gemma",
        "canvas_length": canvas_length,
        "text_config": fields,
        "vision_config": dict(VISION),
    }


def tiny_config(canvas_length: int = 8, **text: Any) -> ModelConfig:
    """``config_dict`` read by our reader."""
    return ModelConfig.from_dict(config_dict(canvas_length, **text))


def tiny_transformer(
    config: ModelConfig | None = None, *, seed: int = 0, scale: float = 0.5, dtype: torch.dtype = torch.float32
) -> Transformer:
    """A stack of random weights; a larger scale gives surer predictions. The two layer scalars of a layer differ."""
    model = empty_transformer(config or tiny_config(), dtype, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale + (weight.ndim == 1))
        for scalar in model.buffers():
            scalar.copy_(0.6 + 0.8 * torch.rand(1, generator=generator))
    return model.eval().requires_grad_(False)


def letters(folder: Path) -> Tokenizer:
    """One token a character of ``ALPHABET``, so that text and ids can be read off each other."""
    backend = Backend(models.WordLevel({char: i for i, char in enumerate(ALPHABET)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(backend, None, folder)


def text_of(ids: list[int]) -> str:
    """What ``letters`` makes of token ids, without asking it."""
    return "".join(ALPHABET[i] for i in ids)


def tiny_model(
    folder: Path, transformer: Transformer | None = None, stop_ids: tuple[int, ...] = (), **options: Any
) -> DiffusionGemmaModel:
    """A whole model in memory: random stack, character tokenizer, sampling defaults from ``options``."""
    return DiffusionGemmaModel(transformer or tiny_transformer(), letters(folder), SamplingParams(**options), stop_ids)
