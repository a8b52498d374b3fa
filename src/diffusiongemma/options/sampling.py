"""What a caller may choose about sampling, and where the defaults come from."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack

from diffusiongemma.errors import ConfigError, OptionError
from diffusiongemma.options.option import check_options, documented, given, option, options_of, unknown_option

__all__ = [
    "COLDEST", "MOST_DRAWN", "OWN_FIELD", "OWN_SAMPLING", "AcceptRule", "CanvasWindow", "CommitRule", "DenoisingOptions",
    "SamplingOptions", "SamplingParams", "Schedule", "StopRule",
]  # fmt: skip

AcceptRule = Literal["entropy", "confidence", "count"]
CommitRule = Literal["best", "canvas", "accepted"]
Schedule = Literal["linear", "cosine"]
StopRule = Literal["canvas", "answer"]
CanvasWindow = Literal["shared", "per_position"]
OWN_FIELD = "diffusiongemma"
"""Field of a configuration for what transformers has no name for."""
OWN_SAMPLING = "sampling.json"
"""File of a checkpoint with such sampling defaults: in a generation_config.json a field it does not know is an error to it."""
MOST_DRAWN = 256
"""Most probable tokens of a position among which ``top_k``, ``top_p`` and ``min_p`` draw: the head keeps no more in its pass."""
COLDEST = 1e-4
"""Temperatures below count as this one: the most probable token is drawn, and float32 still holds the entropy."""
# Fields of a generation_config.json that concern the cache, the output's type, special tokens or its own history.
_NOT_SAMPLING = frozenset(
    {
        "_commit_hash", "_from_model_config", "bos_token_id", "cache_config", "cache_implementation", "disable_compile",
        "eos_token_id", "pad_token_id", "return_dict_in_generate", "transformers_version",
    }
)  # fmt: skip
_THEIRS = {
    "max_denoising_steps": "num_diffusion_steps", "t_min": "t_min", "t_max": "t_max", "stability_threshold": "stability",
    "confidence_threshold": "confidence", "max_new_tokens": "max_tokens",
}  # fmt: skip
"""transformers' names for ours."""
_UNSAVED = {"entropy_bound", "temperature", "early_stop", "seed", "stop"}
"""What stands elsewhere in a generation_config.json, or is a call's own."""
log = logging.getLogger(__name__)


class DenoisingOptions(TypedDict, total=False):
    """The keywords of ``SamplingParams`` that say how a canvas is denoised; None is the same as leaving one out."""

    num_diffusion_steps: int | None
    accept: AcceptRule | None
    entropy_bound: float | None
    accept_probability: float | None
    accept_count: int | None
    t_min: float | None
    t_max: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    schedule: Schedule | None
    self_conditioning: bool | None
    soft_top_k: int | None
    stability: int | None
    confidence: float | None
    early_stop: bool | None
    stop_rule: StopRule | None
    commit: CommitRule | None
    canvas_length: int | None
    canvas_window: CanvasWindow | None
    repair: int | None
    doubt: float | None


class SamplingOptions(DenoisingOptions, total=False):
    """All keywords of ``SamplingParams``."""

    max_tokens: int | None
    seed: int | None
    stop: str | Sequence[str] | None


@documented
@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How canvases are denoised and how long the answer may be: the one list of sampling parameters (``options``).

    Defaults are those of transformers 5.23 ``DiffusionGemmaGenerationConfig``; a checkpoint's
    ``generation_config.json`` replaces them (``from_generation_config``), and a caller's options replace those.
    """

    num_diffusion_steps: int = option(48, "Most denoising steps a canvas.", ge=1, le=100_000, flags=("--steps", "-n"))
    accept: AcceptRule = option(
        "entropy",
        "Which draws a step accepts, one at least: entropy: the surest, their summed entropy within entropy_bound (transformers); "
        "confidence: where the most probable token has accept_probability; count: accept_count more a step.",
    )
    entropy_bound: float = option(0.1, "Entropy bound in nats: higher accepts more a step.", gt=0)
    accept_probability: float = option(0.9, "Probability from which accept confidence takes a position.", gt=0, le=1)
    accept_count: int | None = option(
        None, "Positions a step of accept count; unset: an even share of the canvas for each step.", ge=1, le=1 << 16
    )
    t_min: float = option(0.4, "Temperature at the last step; what is below 1e-4 counts as 1e-4, as of the others.", ge=0)
    t_max: float = option(0.8, "Temperature at the first step, at least t_min.", gt=0)
    temperature: float | None = option(
        None,
        "On a canvas 1 changes nothing. Below, draws are colder, and 0 takes the most probable tokens; how sure a position is, "
        "and so what is accepted, stays the schedule's. Above, t_min and t_max are multiplied by it. Token by token (mode causal) "
        "it is the temperature itself, and unset it is 0.",
        ge=0,
        le=2,
    )
    # They shape the draw alone: how sure a position is, and so what is accepted, stays the whole distribution's.
    top_k: int | None = option(
        None, f"Draw among the K most probable tokens; unset: among all. More than {MOST_DRAWN} count as {MOST_DRAWN}.", ge=1
    )
    top_p: float | None = option(
        None, f"Draw among the fewest tokens that are together so probable (of the {MOST_DRAWN} most probable ones); unset: all.",
        ge=0, le=1,
    )  # fmt: skip
    min_p: float | None = option(
        None, "Draw among the tokens that are at least so many times as probable as the most probable one; unset: all.",
        ge=0, le=1,
    )  # fmt: skip
    schedule: Schedule = option(
        "linear", "How the temperature falls: linear (transformers), or cosine, which stays high and low longer."
    )
    self_conditioning: bool = option(True, "Whether a pass is told what the last one believed.")
    # arXiv 2606.20560 keeps the 26B's scores with few. Fewer rows of the embedding are read.
    soft_top_k: int | None = option(
        None, "Make the soft embedding from the K most probable tokens of each position; unset: from all.", ge=1, le=4096
    )
    stability: int = option(1, "Steps the most probable canvas must stay the same before it may stop.", ge=0, le=1000)
    confidence: float = option(0.005, "Mean entropy in nats below which a canvas may stop.", gt=0)
    early_stop: bool = option(True, "Stop a canvas once it is stable and sure, or run every step.")
    stop_rule: StopRule = option(
        "canvas",
        "What must be stable and sure for a stop: the canvas (transformers), or the answer: up to the first stop token among the "
        "most probable ones.",
    )
    commit: CommitRule = option(
        "best",
        "What is committed: best: the last step's most probable tokens (transformers); canvas: the sample (Google); accepted: its "
        "accepted tokens, and the most probable ones elsewhere.",
    )
    # The causal role knows nearly all wrong tokens (docs/judge.md).
    repair: int = option(
        0,
        "Most rounds in which a finished canvas is denoised anew, from the first token on that the causal role doubts; the form it "
        "finds most probable is committed. Pins and constraints hold in every round; answers of other modes stay as they are.",
        ge=0,
        le=64,
    )
    doubt: float = option(0.2, "Probability by the causal role below which repair doubts a token.", gt=0, le=1)
    max_tokens: int = option(256, "Most new tokens.", ge=1, le=1 << 24)
    # A model that has learnt short canvases answers short questions on them in less time (docs/lab-log.md).
    canvas_length: int | None = option(
        None, "Positions of a canvas; unset: the checkpoint's own, which is also the most.", ge=1, le=1 << 16
    )
    # They differ once context and canvas are longer than the window (decision 0002).
    canvas_window: CanvasWindow = option(
        "shared",
        "What a canvas position sees of a long context in sliding layers: shared: the last tokens before the canvas "
        "(transformers); per_position: what is less than the window away from it (vLLM, SGLang).",
    )
    seed: int = option(
        0, "Seed of the noise and of every draw; unset in a call: a random one.", ge=0, le=2**63 - 1, flags=("--seed", "-s")
    )
    stop: tuple[str, ...] = option((), "A string that ends the text; the text ends before the first of them.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.t_max < self.t_min:
            raise OptionError(f"t_max is {self.t_max} and t_min is {self.t_min}; t_max must be at least t_min", "t_max")

    def replaced(self, **options: Unpack[SamplingOptions]) -> "SamplingParams":
        """A copy with the options that are not None put in.

        Raises:
            OptionError: an unknown option, or a value outside what is allowed.
        """
        known = options_of(SamplingParams)
        if unknown := options.keys() - known:
            raise unknown_option(unknown, *known)
        said: dict[str, Any] = given(SamplingParams, options)
        if isinstance(said.get("stop"), str | list):
            said["stop"] = (said["stop"],) if isinstance(said["stop"], str) else tuple(said["stop"])
        return replace(self, **said)

    @property
    def shapes_draws(self) -> bool:
        """Whether ``top_k``, ``top_p`` or ``min_p`` cut anything off."""
        return self.top_k is not None or (self.top_p is not None and self.top_p < 1) or bool(self.min_p)

    def on_canvas(self) -> "SamplingParams":
        """The same for denoising: a ``temperature`` above 1 is worked into ``t_min`` and ``t_max``."""
        if self.temperature is None or self.temperature < 1:
            return self
        return replace(self, t_min=self.t_min * self.temperature, t_max=self.t_max * self.temperature, temperature=None)

    @property
    def noise(self) -> float:
        """How much of the random numbers of a draw counts on a canvas, 0 to 1.

        A colder schedule would be sure of everything at once (temperature 0, nano, json-extract: half of the answers wrong).
        """
        return 1.0 if self.temperature is None else min(self.temperature, 1.0)

    @classmethod
    def from_generation_config(cls, data: Mapping[str, Any]) -> "SamplingParams":
        """Defaults of a checkpoint, from the content of its ``generation_config.json``.

        Fields that say nothing about sampling are passed over; others that this runtime does not follow are named in a
        warning.

        Raises:
            ConfigError: a value outside what is allowed, or another sampler.
        """
        options = {ours: data[theirs] for theirs, ours in _THEIRS.items() if data.get(theirs) is not None}
        own = data.get(OWN_FIELD) or {}
        if not isinstance(own, Mapping) or set(own) - _OWN_FIELDS:
            raise ConfigError(f"generation_config.json has {OWN_FIELD} = {own!r}; it may hold {', '.join(sorted(_OWN_FIELDS))}")
        options |= own
        known = {*_THEIRS, "sampler_config", OWN_FIELD, *_NOT_SAMPLING}
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
        kinds = {name: one.kind for name, one in options_of(SamplingParams).items()}
        own = {name: getattr(self, name) for name in sorted(_OWN_FIELDS) if getattr(self, name) != getattr(defaults, name)}
        return {
            **{theirs: kinds[ours](getattr(self, ours)) for theirs, ours in _THEIRS.items()},
            "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": float(self.entropy_bound)},
            **({OWN_FIELD: own} if own else {}),
        }


_OWN_FIELDS = frozenset(options_of(SamplingParams)) - {*_THEIRS.values(), *_UNSAVED}
