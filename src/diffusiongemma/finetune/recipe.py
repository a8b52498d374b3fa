"""A training recipe: one TOML file that says everything a run depends on."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffusiongemma.errors import ConfigError
from diffusiongemma.model.config import ModelConfig

__all__ = ["DataRecipe", "EvalRecipe", "Recipe", "TrainRecipe", "builtin_recipes", "load_recipe"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataRecipe(_Part):
    """What the run learns from."""

    base_puzzles: int = Field(6000, ge=1)
    """Unique-solution puzzles taken from reasoning-gym; symmetries make the rest."""
    base_seed: int = Field(1, ge=0)
    min_clues: int = Field(31, ge=17, le=81)
    max_clues: int = Field(51, ge=17, le=81)
    hard_share: float = Field(0.0, ge=0, le=1)
    """Share of the examples drawn from the hardest clue band alone."""


class TrainRecipe(_Part):
    """How it learns."""

    steps: int = Field(ge=1)
    prompts: int = Field(16, ge=1)
    """Prompts a step."""
    canvases: int = Field(4, ge=1)
    """Noisy canvases a prompt, which share its encoder pass."""
    adamw_lr: float = Field(3e-3, gt=0)
    muon_lr: float = Field(5e-3, gt=0)
    """Of the matrices of attention and dense layers, in AdamW's scale."""
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(50, ge=0)
    decay: float = Field(0.4, ge=0, le=1)
    """Last share of the steps, over which the learning rates fall to zero."""
    clip: float = Field(1.0, gt=0)
    causal_every: int = Field(4, ge=0)
    """The causal loss is taken every so many steps; 0: never."""
    self_conditioning: float = Field(0.5, ge=0, le=1)
    """Share of the canvases that get self-conditioning."""
    high_noise: float = Field(0.0, ge=0, le=1)
    """Share of the canvases whose noise level is drawn from (0.5, 1)."""
    checkpoint_every: int = Field(200, ge=1)


class EvalRecipe(_Part):
    """How it is judged on the way."""

    every: int = Field(500, ge=1)
    puzzles: int = Field(100, ge=1)
    seed: int = 20_000


class Recipe(_Part):
    """A whole recipe; unknown keys are refused."""

    name: str
    task: Literal["sudoku"]
    seed: int = Field(1, ge=0)
    model: dict[str, Any]
    """``config.json`` without what the task decides (vocabulary, canvas length, special tokens)."""
    generation: dict[str, Any] = {}
    """Sampling defaults that go into the checkpoint."""
    data: DataRecipe = DataRecipe()  # type: ignore[call-arg]
    train: TrainRecipe
    eval: EvalRecipe = EvalRecipe()  # type: ignore[call-arg]

    def config(self, vocab_size: int, canvas_length: int, stop_ids: tuple[int, ...]) -> ModelConfig:
        """The model's configuration, with what the task decides filled in."""
        text = {**self.model["text_config"], "vocab_size": vocab_size, "eos_token_id": list(stop_ids)}
        return ModelConfig.from_dict(
            {"model_type": "diffusion_gemma", **self.model, "text_config": text, "canvas_length": canvas_length}
        )


def builtin_recipes() -> dict[str, Path]:
    """Recipes that come with this package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))}


def load_recipe(name: str) -> Recipe:
    """Read a recipe by built-in name or path.

    Raises:
        ConfigError: no such recipe, not TOML, or an unknown or wrong field.
    """
    path = builtin_recipes().get(name, Path(name))
    try:
        data = tomllib.loads(path.read_text("utf-8"))
        return Recipe(**data)
    except FileNotFoundError as error:
        raise ConfigError(f"no recipe {name!r}: not a file, and not one of {', '.join(builtin_recipes())}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"the recipe {path} is wrong: {wrong}") from error
