"""A training recipe: one TOML file that says everything a run depends on."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from diffusiongemma.errors import ConfigError
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.options.sampling import OWN_FIELD
from diffusiongemma.plugins import plugins
from diffusiongemma.tasks.base import FIRST_EVAL_SEED

__all__ = ["Bucket", "EvalRecipe", "Lora", "Recipe", "TextData", "TrainRecipe", "builtin_recipes", "data_kinds", "load_recipe"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Bucket(_Part):
    """Examples of one size; a step's batch comes from one bucket."""

    prompt: int = Field(ge=8)
    """Most prompt tokens."""
    answer: int = Field(ge=4)
    """Canvas of the training batches, in tokens; at most the checkpoint's."""
    share: float = Field(gt=0)
    """Of the steps, relative to the other buckets."""
    prompt_weight: float = Field(0.0, ge=0)
    """Weight of the prompts' own tokens in the causal loss; an answer's have 1."""
    sources: dict[str, float]
    """Weight of each source in the batches (``training.text.SOURCES``)."""


class TextData(_Part):
    """A mixture of tasks and code, and a vocabulary made from it (``training.text``)."""

    kind: Literal["text"]
    canvas_length: int = Field(64, ge=8)
    vocab_size: int = Field(4096, ge=300)
    pad_weight: float = Field(0.1, ge=0)
    """Weight of the padding after an answer in the losses; an answer's tokens have 1."""
    tokenizer_examples: int = Field(2000, ge=1)
    """Examples of each task that the vocabulary is learnt from."""
    tokenizer_functions: int = Field(2000, ge=1)
    """Functions of the standard library that the vocabulary is learnt from."""
    buckets: tuple[Bucket, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fit(self) -> "TextData":
        if max(bucket.answer for bucket in self.buckets) > self.canvas_length:
            raise ValueError("a bucket's answer is longer than canvas_length")
        return self


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
    optimiser: Literal["muon", "adamw"] = "muon"
    """muon: of the matrices of attention and dense layers, AdamW for the rest; adamw: for all."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Of AdamW."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rates fall: linearly to zero, or by half a cosine to ``floor``, over the last ``decay`` of the steps."""
    floor: float = Field(0.0, ge=0, le=1)
    """Part of the learning rates that is left at the end of a cosine."""
    accumulate: int = Field(1, ge=1)
    """Batches of ``prompts`` whose gradients make one step."""
    causal_weight: float = Field(1.0, ge=0)
    """Of the causal loss beside the denoising one."""
    loss_weighting: Literal["plain", "1/(1-t)"] = "plain"
    """Of canvases by their noise level t: all alike, or noisier ones more (on average 1 in a batch)."""
    min_noise: float = Field(0.0, ge=0, lt=1)
    """Least noise level of a canvas."""
    freeze_router: bool = False
    """Whether the routers of experts stay as they are."""
    recompute: bool = False
    """Whether layers are computed again for the gradient, which takes less memory and a third more work."""
    causal_every: int = Field(4, ge=0)
    """The causal loss is taken every so many steps; 0: never."""
    causal_steps: int = Field(0, ge=0)
    """The first steps teach the causal role alone, which learns to copy from the prompt far sooner."""
    causal_prompts: int = Field(48, ge=1)
    """Prompts a step of those."""
    self_conditioning: float = Field(0.5, ge=0, le=1)
    """Share of the canvases that get self-conditioning."""
    high_noise: float = Field(0.0, ge=0, le=1)
    """Share of the canvases whose noise level is drawn from (0.5, 1)."""
    init: str = ""
    """A checkpoint to start from, by built-in name or path; empty: random weights. Tokens are matched by their text."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """Of the products on a CPU (weights, gradients and optimisers stay in float32); CUDA always takes bfloat16."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which is what the checkpoint gets; 0: the weights themselves.
    After n updates the decay is at most (1 + n) / (10 + n), so that a run's begin is forgotten."""
    checkpoint_every: int = Field(200, ge=1)


class EvalRecipe(_Part):
    """How it is judged on the way."""

    every: int = Field(500, ge=1)
    examples: int = Field(100, ge=1)
    """Of each task."""
    seed: int = Field(1_020_000, ge=FIRST_EVAL_SEED)
    """Of the examples; training never uses a seed so high."""
    tasks: tuple[str, ...] = ()


class Lora(_Part):
    """Adapters that are trained in place of the weights."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    """Their product is multiplied by alpha / rank."""
    targets: tuple[Literal["attention", "mlp", "self_conditioning"], ...] = Field(("attention", "mlp"), min_length=1)


class Recipe(_Part):
    """A whole recipe; unknown keys are refused."""

    name: str
    seed: int = Field(1, ge=0)
    base: str = ""
    """A checkpoint that is tuned as it is, by name or path; empty: a new model of ``model``."""
    lora: Lora | None = None
    """Adapters on the base, whose own weights then stay; None: all weights are trained."""
    model: dict[str, Any] = {}
    """``config.json`` without what the data decides (vocabulary, canvas length, special tokens)."""
    process: dict[str, Any] = {"name": "uniform"}
    """The diffusion process with its fields, or its name alone (``diffusion.process``); it goes into the checkpoint."""
    generation: dict[str, Any] = {}
    """Sampling defaults that go into the checkpoint."""
    data: Any
    """Where examples come from; its ``kind`` says of which class it is (``data_kinds``)."""
    train: TrainRecipe
    eval: EvalRecipe = EvalRecipe()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _one_model(self) -> "Recipe":
        if bool(self.base) == bool(self.model):
            raise ValueError("give either model, the shape of a new one, or base, a checkpoint to tune")
        if self.lora is not None and not self.base:
            raise ValueError("lora is for a base")
        if getattr(self.data, "kind", "") == "rows" and self.data.base != self.base:
            raise ValueError("rows are written for the base that is tuned: data.base must be base")
        return self

    @field_validator("data", mode="before")
    @classmethod
    def _of_its_kind(cls, data: Any) -> Any:
        if isinstance(data, BaseModel):
            return data
        kinds = data_kinds()
        kind = data.get("kind") if isinstance(data, dict) else None
        if kind not in kinds:
            raise ValueError(f"kind is {kind!r}; allowed: {', '.join(kinds)}")
        return kinds[kind].Recipe(**data)

    @field_validator("process", mode="before")
    @classmethod
    def _named(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given

    def config(self, vocab_size: int, canvas_length: int, stop_ids: tuple[int, ...], process: Mapping[str, Any]) -> ModelConfig:
        """The model's configuration, with what the data and the process decide filled in."""
        text = {**self.model["text_config"], "vocab_size": vocab_size, "eos_token_id": list(stop_ids)}
        return ModelConfig.from_dict(
            {
                "model_type": "diffusion_gemma",
                **self.model,
                "text_config": text,
                "canvas_length": canvas_length,
                OWN_FIELD: {"process": dict(process)},
            }
        )


def data_kinds() -> dict[str, Any]:
    """Classes of training data by kind: our own ``text``, and those of plug-ins (``plugins``).

    Each is a ``TrainData`` made from (its part of the recipe, seed of the run, folder of the run, progress), with the pydantic
    class of that part as ``Recipe``.
    """
    from diffusiongemma.training.rows import Rows
    from diffusiongemma.training.text import TextMixture  # it imports this module

    return {"text": TextMixture, "rows": Rows, **plugins("training_data")}


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"the recipe {path} is wrong: {wrong}") from error
