"""What a caller may choose about sampling, and where the defaults come from."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from diffusiongemma.errors import ConfigError, OptionError

__all__ = ["COLDEST", "OWN_FIELD", "CanvasWindow", "CommitRule", "SamplingParams", "Schedule", "StopRule"]

CommitRule = Literal["best", "canvas", "accepted"]
Schedule = Literal["linear", "cosine"]
StopRule = Literal["canvas", "answer"]
CanvasWindow = Literal["shared", "per_position"]
_CHOICES = {"commit": CommitRule, "schedule": Schedule, "stop_rule": StopRule, "canvas_window": CanvasWindow}
OWN_FIELD = "diffusiongemma"
"""Field of a generation_config.json that holds what transformers has no name for."""
COLDEST = 1e-4
"""Temperatures below count as this one: the most probable token is drawn, and float32 still holds the entropy."""
_MAX_SEED = 2**63 - 1
# Fields of a generation_config.json that concern the cache, the output's type, special tokens or its own history.
_NOT_SAMPLING = frozenset(
    {
        "_commit_hash", "_from_model_config", "bos_token_id", "cache_config", "cache_implementation", "disable_compile",
        "eos_token_id", "pad_token_id", "return_dict_in_generate", "transformers_version",
    }
)  # fmt: skip
_OWN_FIELDS = frozenset({"canvas_length", "canvas_window", "commit", "schedule", "self_conditioning", "soft_top_k", "stop_rule"})
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How canvases are denoised and how long the answer may be.

    Defaults are those of transformers 5.23 ``DiffusionGemmaGenerationConfig``; a checkpoint's
    ``generation_config.json`` replaces them (``from_generation_config``), and a caller's options replace those.

    Attributes:
        num_diffusion_steps: most denoising steps a canvas, >= 1.
        entropy_bound: nats; more is accepted a step where it is higher, > 0.
        t_min: temperature at the last step, >= 0; what is below 1e-4 counts as 1e-4, as of ``t_max`` and ``temperature``.
        t_max: temperature at the first step, > 0, at least ``t_min``.
        schedule: how the temperature falls: ``"linear"`` (transformers), or ``"cosine"``, which stays high and low longer.
        self_conditioning: whether a pass is told what the last one believed.
        soft_top_k: how many of a position's most probable tokens that is told from, their probabilities scaled to 1; None: all
            (arXiv 2606.20560 keeps the 26B's scores with few). Fewer rows of the embedding are read.
        stability: steps the most probable canvas must stay the same before a stop, >= 0.
        confidence: nats; the mean entropy must be below it for a stop, > 0.
        early_stop: False runs every step.
        stop_rule: which positions stability and confidence are asked of: ``"canvas"``: all (transformers); ``"answer"``: those
            up to the first stop token among the most probable ones, all where there is none.
        commit: ``"best"``: the last step's most probable tokens (transformers); ``"canvas"``: the sampled canvas (Google);
            ``"accepted"``: its accepted tokens, and the most probable ones elsewhere.
        max_tokens: most new tokens, >= 1.
        canvas_length: positions of a canvas, at most the checkpoint's; None: the checkpoint's. A model that has learnt short
            canvases answers short questions on them in less time (docs/lab-log.md).
        canvas_window: what a canvas position sees in sliding layers: ``"shared"``: the last tokens before the canvas, the same
            for all positions, and the whole canvas (transformers); ``"per_position"``: what is less than ``sliding_window`` away
            from it (vLLM, SGLang). They differ once context and canvas are longer than the window (decision 0002).
        seed: 0 to 2**63 - 1.
        stop: strings that end the text; the text ends before the first of them.
        temperature: of the causal mode only, >= 0; 0 takes the most probable token.
    """

    num_diffusion_steps: int = 48
    entropy_bound: float = 0.1
    t_min: float = 0.4
    t_max: float = 0.8
    schedule: Schedule = "linear"
    self_conditioning: bool = True
    soft_top_k: int | None = None
    stability: int = 1
    confidence: float = 0.005
    early_stop: bool = True
    stop_rule: StopRule = "canvas"
    commit: CommitRule = "best"
    max_tokens: int = 256
    canvas_length: int | None = None
    canvas_window: CanvasWindow = "shared"
    seed: int = 0
    stop: tuple[str, ...] = ()
    temperature: float = 0.0

    def __post_init__(self) -> None:
        _integer("num_diffusion_steps", self.num_diffusion_steps, 1, 100_000)
        _integer("max_tokens", self.max_tokens, 1, 1 << 24)
        if self.canvas_length is not None:
            _integer("canvas_length", self.canvas_length, 1, 1 << 16)
        if self.soft_top_k is not None:
            _integer("soft_top_k", self.soft_top_k, 1, 4096)
        _integer("stability", self.stability, 0, 1000)
        _integer("seed", self.seed, 0, _MAX_SEED)
        _number("entropy_bound", self.entropy_bound, above=0)
        _number("confidence", self.confidence, above=0)
        _number("t_min", self.t_min)
        _number("t_max", self.t_max, above=0)
        _number("temperature", self.temperature)
        if self.t_max < self.t_min:
            raise OptionError(f"t_max is {self.t_max} and t_min is {self.t_min}; t_max must be at least t_min")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise OptionError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(get_args(choices))}")
        for name in ("early_stop", "self_conditioning"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        if not isinstance(self.stop, tuple) or not all(isinstance(s, str) and s for s in self.stop):
            raise OptionError(f"stop is {self.stop!r}; it must be a sequence of non-empty strings")

    def replaced(self, **options: Any) -> "SamplingParams":
        """A copy with the options that are not None put in.

        Raises:
            OptionError: an unknown option, or a value outside what is allowed.
        """
        allowed = {f.name for f in fields(self)}
        unknown = sorted(set(options) - allowed)
        if unknown:
            raise OptionError(f"unknown option {', '.join(unknown)}; allowed: {', '.join(sorted(allowed))}")
        given = {name: value for name, value in options.items() if value is not None}
        if isinstance(given.get("stop"), str):
            given["stop"] = (given["stop"],)
        elif isinstance(given.get("stop"), list):
            given["stop"] = tuple(given["stop"])
        return replace(self, **given)

    @classmethod
    def from_generation_config(cls, data: Mapping[str, Any]) -> "SamplingParams":
        """Defaults of a checkpoint, from the content of its ``generation_config.json``.

        Fields that say nothing about sampling are passed over; others that this runtime does not follow are named in a
        warning.

        Raises:
            ConfigError: a value outside what is allowed, or another sampler.
        """
        names = {
            "max_denoising_steps": "num_diffusion_steps",
            "t_min": "t_min",
            "t_max": "t_max",
            "stability_threshold": "stability",
            "confidence_threshold": "confidence",
            "max_new_tokens": "max_tokens",
        }
        options = {ours: data[theirs] for theirs, ours in names.items() if data.get(theirs) is not None}
        own = data.get(OWN_FIELD) or {}
        if not isinstance(own, Mapping) or set(own) - _OWN_FIELDS:
            raise ConfigError(f"generation_config.json has {OWN_FIELD} = {own!r}; it may hold {', '.join(sorted(_OWN_FIELDS))}")
        options |= own
        known = {*names, "sampler_config", OWN_FIELD, *_NOT_SAMPLING}
        unused = sorted(k for k, v in data.items() if v is not None and k not in known)
        if unused:
            log.warning("generation_config.json: %s is not followed by this runtime", ", ".join(unused))
        if data.get("sampler_config") is not None:
            sampler = dict(data["sampler_config"])
            kind = sampler.pop("_cls_name", "EntropyBoundSamplerConfig")
            if kind != "EntropyBoundSamplerConfig" or set(sampler) != {"entropy_bound"}:
                raise ConfigError(
                    f"generation_config.json has the sampler {kind} with {sorted(sampler)}; this runtime knows "
                    "EntropyBoundSamplerConfig with entropy_bound"
                )
            options["entropy_bound"] = sampler["entropy_bound"]
        try:
            return cls(**options)
        except OptionError as error:
            raise ConfigError(f"generation_config.json: {error}") from error

    def to_generation_config(self) -> dict[str, Any]:
        """The fields of a ``generation_config.json``: those that transformers reads, and ours where they are not as there."""
        defaults = SamplingParams()
        own = {name: getattr(self, name) for name in sorted(_OWN_FIELDS) if getattr(self, name) != getattr(defaults, name)}
        return {
            "max_denoising_steps": self.num_diffusion_steps,
            "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": float(self.entropy_bound)},
            "t_min": self.t_min,
            "t_max": self.t_max,
            "stability_threshold": self.stability,
            "confidence_threshold": float(self.confidence),
            "max_new_tokens": self.max_tokens,
            **({OWN_FIELD: own} if own else {}),
        }


def _integer(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise OptionError(f"{name} is {value!r}; it must be an integer from {low} to {high}")


def _number(name: str, value: object, above: float | None = None) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or (value <= above if above is not None else value < 0):  # type: ignore[operator]
        raise OptionError(f"{name} is {value!r}; it must be a finite number {'> 0' if above is not None else '>= 0'}")
