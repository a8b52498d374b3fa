"""What is published of google/diffusiongemma-26B-A4B-it, in ``published.json``.

Sources: its config.json and generation_config.json; the headers of its files and of the copies by RedHatAI (FP8) and NVIDIA
(NVFP4), for the counts of tensors; transformers 5.24 ``tests/models/diffusion_gemma/test_modeling_diffusion_gemma.py``, for the
prompts and for the logits of a first step (positions 0 to 9, tokens 0 to 11; bfloat16 on CUDA; all layers, and the first six).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from diffusiongemma.model.config import ModelConfig, TextConfig

__all__ = ["Published", "differences", "is_the_26b", "published"]

_NAMED_BY = ("hidden_size", "num_hidden_layers", "vocab_size", "num_experts")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class Published:
    """The content of ``published.json``.

    Attributes:
        config: of the text part.
        tensors: number of tensors by ``Layout.format``.
        generation_config: without notes on versions.
        control_tokens: texts and ids.
        question: the user's message of the prompts.
        prompt: its ids without thinking; its last four are the empty thought, which not every template in circulation writes.
        prompt_thinking: its ids with thinking.
        logits: ``[10, 12]`` of all layers.
        logits_of_six_layers: ``[10, 12]``.
    """

    config: ModelConfig
    tensors: Mapping[str, int]
    generation_config: Mapping[str, Any]
    control_tokens: Mapping[str, int]
    question: str
    prompt: list[int]
    prompt_thinking: list[int]
    logits: list[list[float]]
    logits_of_six_layers: list[list[float]]


@cache
def published() -> Published:
    """All of it."""
    data = json.loads((Path(__file__).parent / "published.json").read_text("utf-8"))
    text, canvas_length = data.pop("text_config"), data.pop("canvas_length")
    config = ModelConfig.from_dict({"model_type": "diffusion_gemma", "canvas_length": canvas_length, "text_config": text})
    return Published(config=config, **data)


def is_the_26b(text: TextConfig) -> bool:
    """Whether a stack has the sizes by which the released model is known; the rest is compared."""
    return all(getattr(text, name) == getattr(published().config.text, name) for name in _NAMED_BY)


def differences(config: ModelConfig) -> list[str]:
    """Fields of a configuration that are not as published, with both values."""
    ours, theirs = config.text, published().config.text
    names = [f.name for f in fields(TextConfig) if f.name not in _TOKENS]
    result = [f"{n} is {getattr(ours, n)!r}, not {getattr(theirs, n)!r}" for n in names if getattr(ours, n) != getattr(theirs, n)]
    if config.canvas_length != published().config.canvas_length:
        result.append(f"canvas_length is {config.canvas_length}, not {published().config.canvas_length}")
    return result
