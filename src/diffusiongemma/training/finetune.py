"""Tune a checkpoint on rows that a user has: the recipe that is meant, and what memory it takes."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffusiongemma.errors import ConfigError, OptionError
from diffusiongemma.model.expected import text_shapes
from diffusiongemma.opened import Opened
from diffusiongemma.training.loop import Hooks, TrainRun
from diffusiongemma.training.recipe import Recipe

__all__ = ["PRESETS", "finetune", "finetune_recipe", "training_bytes"]

_COMMON = {"optimiser": "adamw", "causal_every": 1, "high_noise": 0.0, "freeze_router": True}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "train": {
            **_COMMON, "steps": 1000, "prompts": 8, "canvases": 2, "adamw_lr": 2e-4, "betas": (0.9, 0.99), "warmup": 25,
            "schedule": "cosine", "floor": 0.1, "decay": 1.0, "checkpoint_every": 100,
        },
        "lora": {"rank": 16, "alpha": 32, "targets": ("attention", "mlp")},
        "data": {},
    },
    "google": {
        "train": {
            **_COMMON, "steps": 2000, "prompts": 8, "canvases": 1, "adamw_lr": 1.5e-4, "betas": (0.95, 0.99), "weight_decay": 1e-4,
            "warmup": 100, "schedule": "cosine", "floor": 0.1, "decay": 1.0, "min_noise": 1e-4, "checkpoint_every": 100,
        },
        "lora": {"rank": 8, "alpha": 8, "targets": ("attention", "mlp", "self_conditioning")},
        "data": {"pad_weight": 1.0},
    },
    "nemo": {
        "train": {
            **_COMMON, "steps": 800, "prompts": 8, "canvases": 1, "adamw_lr": 1.5e-4, "betas": (0.95, 0.99), "weight_decay": 1e-4,
            "warmup": 25, "schedule": "cosine", "floor": 0.1, "decay": 1.0, "min_noise": 1e-3, "checkpoint_every": 100,
        },
        "lora": {"rank": 16, "alpha": 32, "targets": ("attention", "mlp")},
        "data": {"pad_weight": 1.0},
    },
    "small": {
        "train": {
            **_COMMON, "steps": 3000, "prompts": 16, "canvases": 4, "adamw_lr": 2e-3, "betas": (0.9, 0.99), "warmup": 50,
            "schedule": "linear", "decay": 0.4, "causal_every": 4, "high_noise": 0.5, "checkpoint_every": 100,
        },
        "lora": {"rank": 32, "alpha": 64, "targets": ("attention", "mlp", "self_conditioning")},
        "full": {"optimiser": "muon", "muon_lr": 3e-3},
        "data": {},
    },
}  # fmt: skip
"""Settings by name; ``google`` and ``nemo`` are the published recipes' (Google's Sudoku adapter, NeMo's LoRA), as far as they are
known; ``small`` is that of the built-in models, for some million parameters (``full``: where all weights are trained). Source:
shared facts of both, docs/finetuning.md."""


def finetune_recipe(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    preset: str = "default",
    lora: Mapping[str, Any] | bool = True,
    eval_data: str | os.PathLike[str] | None = None,
    seed: int = 1,
    train: Mapping[str, Any] = {},
    rows: Mapping[str, Any] = {},
    evaluation: Mapping[str, Any] = {},
) -> Recipe:
    """The recipe of a run that tunes a checkpoint.

    Args:
        model: checkpoint, by built-in name, folder or hub id.
        data: rows to learn (``training.rows.RowsData.path``).
        preset: of ``PRESETS``.
        lora: fields of ``Lora`` that differ from the preset's; True: the preset's adapters; False: all weights are trained.
        eval_data: rows that are not learnt; None: a part of ``data``.
        seed: of everything random.
        train: fields of ``TrainRecipe`` that differ from the preset's.
        rows: fields of ``RowsData``.
        evaluation: fields of ``EvalRecipe``.

    Raises:
        OptionError: an unknown preset.
        ConfigError: a field that is unknown or wrong.
    """
    if preset not in PRESETS:
        raise OptionError(f"preset is {preset!r}; allowed: {', '.join(PRESETS)}", "preset")
    chosen = PRESETS[preset]
    tuned = {**chosen["train"], **({} if lora else chosen.get("full", {}))}
    if "adamw_lr" in train and "muon_lr" in tuned:  # one rate is meant: the other goes along
        tuned["muon_lr"] *= train["adamw_lr"] / tuned["adamw_lr"]
    adapters = {**chosen["lora"], **(lora if isinstance(lora, Mapping) else {})} if lora else None
    try:
        return Recipe(
            name="finetune",
            seed=seed,
            base=os.fspath(model),
            lora=adapters,  # type: ignore[arg-type]
            data={
                "kind": "rows", "base": os.fspath(model), "path": os.fspath(data),
                "eval_path": "" if eval_data is None else os.fspath(eval_data), **chosen["data"], **rows,
            },
            train={**tuned, **train},  # type: ignore[arg-type]
            eval={"every": 100, "examples": 32, **evaluation},  # type: ignore[arg-type]
        )  # fmt: skip
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"the settings are wrong: {wrong}") from error


def finetune(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    device: str = "cpu",
    compile_model: bool = False,
    hooks: Hooks | None = None,
    **settings: Any,
) -> Path:
    """Tune a checkpoint on rows, from the first step or from where the run in ``out`` was left.

    Args:
        model, data, settings: see ``finetune_recipe``.
        out: folder of the run.
        device, compile_model, hooks: see ``TrainRun``.

    Returns:
        The folder of the adapter, or of the checkpoint where all weights are trained; ``from_pretrained`` loads both.

    Raises:
        OptionError, ConfigError, TrainingError: see ``finetune_recipe`` and ``TrainRun``.
    """
    recipe = finetune_recipe(model, data, **settings)
    return TrainRun(recipe, Path(out), device=device, compile_model=compile_model, hooks=hooks).train()


def training_bytes(opened: Opened, recipe: Recipe, cuda: bool, prompt_tokens: int) -> dict[str, float]:
    """What a run takes, by part, from counts of bytes; activations are an estimate.

    Args:
        opened: the checkpoint.
        recipe: of ``finetune_recipe``.
        cuda: whether frozen weights are kept in bfloat16.
        prompt_tokens: of the longest prompts, with the canvases of their answers before the last.
    """
    text, t = opened.config.text, recipe.train
    shapes = text_shapes(text)
    total = sum(math.prod(shape) for shape in shapes.values())
    if recipe.lora is not None:
        adapted = (
            (name.removesuffix(".weight"), shape) for name, shape in shapes.items() if len(shape) == 2 and name.endswith(".weight")
        )
        parts = {"attention": ".self_attn.", "mlp": ".mlp.", "self_conditioning": "self_conditioning."}
        wanted = tuple(parts[target] for target in recipe.lora.targets)
        trained = sum(recipe.lora.rank * sum(shape) for name, shape in adapted if any(part in f".{name}" for part in wanted))
        weights = float(opened.nbytes) if opened.quantised else total * (2.0 if cuda else 4.0)
    else:
        trained, weights = total, total * 4.0
    tokens = t.prompts * (prompt_tokens + t.canvases * 2 * opened.config.canvas_length)
    width = text.hidden_size * 12 + text.num_attention_heads * max(layer.head_dim for layer in text.layers) * 4
    kept = (
        text.hidden_size if t.recompute else width + 3 * (text.intermediate_size + text.top_k_experts * text.moe_intermediate_size)
    )
    element = 2.0 if cuda else 4.0
    logits = t.prompts * t.canvases * opened.config.canvas_length * text.vocab_size * 4.0 * 3
    return {
        "weights": weights,
        "gradients": trained * 4.0,
        "optimiser": trained * 8.0,
        "activations": text.num_hidden_layers * tokens * kept * element + (tokens * width * element if t.recompute else 0),
        "logits": logits,
    }
