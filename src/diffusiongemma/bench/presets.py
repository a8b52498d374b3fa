"""Models to measure: random weights of a published or planned shape, written once as a checkpoint that both sides load."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor

from diffusiongemma.bench.settings import Settings
from diffusiongemma.errors import OptionError
from diffusiongemma.generation import empty_transformer
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.training.init import blank_vision
from diffusiongemma.weights.load import save
from diffusiongemma.weights.resolve import resolve

__all__ = ["PRESETS", "Preset", "checkpoint", "preset_config"]

BLOCK = 4_194_301
"""Normal draws that are repeated to fill all weights: a prime, so that no two rows or experts of a matrix begin alike."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# transformers always builds a vision tower; this one is as small as it goes, and all zeros.
VISION: dict[str, Any] = {
    "model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "patch_size": 4, "position_embedding_size": 4,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A shape without weights.

    Attributes:
        text: ``text_config`` of its config.json.
        canvas_length: tokens.
        dtype: of its weights unless another is asked for.
        summary: one line for a list.
    """

    text: dict[str, Any]
    canvas_length: int
    dtype: str
    summary: str


PRESETS = {
    "tiny": Preset(
        summary="the tests' size: seconds",
        dtype="float32",
        canvas_length=16,
        text={
            "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
            "sliding_window": 32, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16,
            "max_position_embeddings": 512,
        },
    ),
    "cpu-600m": Preset(
        summary="0.6 B parameters with the released vocabulary and canvas, for a CPU",
        dtype="bfloat16",
        canvas_length=256,
        text={
            "vocab_size": 262_144, "hidden_size": 768, "intermediate_size": 1536, "num_hidden_layers": 12,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "global_head_dim": 128,
            "num_global_key_value_heads": 2, "sliding_window": 512, "num_experts": 32, "top_k_experts": 4,
            "moe_intermediate_size": 384,
        },
    ),
    # Source: config.json of google/diffusiongemma-26B-A4B-it.
    "26b": Preset(
        summary="the released shape, 52 GB of random weights a side, for a GPU; --layers takes fewer",
        dtype="bfloat16",
        canvas_length=256,
        text={
            "vocab_size": 262_144, "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "global_head_dim": 512,
            "num_global_key_value_heads": 2, "sliding_window": 1024, "num_experts": 128, "top_k_experts": 8,
            "moe_intermediate_size": 704, "max_position_embeddings": 262_144,
        },
    ),
}  # fmt: skip


def preset_config(preset: Preset, layers: int | None = None) -> ModelConfig:
    """The configuration of a preset, with fewer layers where asked.

    Raises:
        OptionError: more layers than the preset has.
    """
    most = preset.text["num_hidden_layers"]
    if layers is not None and layers > most:
        raise OptionError(f"layers is {layers}; the preset has {most}")
    text = {**preset.text, "num_hidden_layers": layers or most, "use_bidirectional_attention": "vision"}
    vision = dict(VISION)
    return ModelConfig.from_dict(
        {"model_type": "diffusion_gemma", "canvas_length": preset.canvas_length, "text_config": text, "vision_config": vision}
    )


@contextmanager
def checkpoint(settings: Settings) -> Iterator[Path]:
    """The folder that both sides load; a preset's is written to a temporary folder, which goes afterwards.

    Raises:
        CheckpointError: no such model.
        OptionError: fewer layers of something that is no preset.
    """
    if (preset := PRESETS.get(settings.model)) is None:
        if settings.layers is not None:
            raise OptionError(f"layers is {settings.layers}, but {settings.model} has its weights; it is for a preset")
        yield resolve(settings.model)
        return
    config = preset_config(preset, settings.layers)
    with tempfile.TemporaryDirectory(prefix="diffusiongemma-bench-") as name:
        folder = Path(name)
        model = empty_transformer(config, DTYPES[preset.dtype], torch.device("cpu"))
        _fill(model, settings.seed)
        save(folder, model.state_dict(), config.to_dict(), blank_vision(VISION, config.text.hidden_size))
        del model
        # A benchmark speaks in token ids; decoding passes over those that the tokenizer does not have.
        words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
        words.save(str(folder / "tokenizer.json"))
        yield folder


@torch.no_grad()
def _fill(model: Transformer, seed: int) -> None:
    """Matrices of variance 1 / fan-in from one block of draws, repeated: drawing 25 billion numbers would take minutes."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
    at = 0
    for weight in model.state_dict().values():
        if weight.ndim < 2:
            weight.fill_(1.0)
            continue
        scaled = (block * weight.shape[-1] ** -0.5).to(weight.dtype)
        at = _repeat(scaled, weight.view(-1), at)


def _repeat(block: Tensor, target: Tensor, at: int) -> int:
    """Fill a flat tensor from a place in the block onwards; returns the place after it."""
    done = 0
    while done < target.numel():
        count = min(target.numel() - done, block.numel() - at)
        target[done : done + count] = block[at : at + count]
        done, at = done + count, (at + count) % block.numel()
    return at
