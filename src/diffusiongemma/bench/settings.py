"""What a benchmark is asked to do, checked before anything is loaded."""

import importlib.util
import os
from dataclasses import dataclass

from diffusiongemma.errors import InputError, OptionError

__all__ = ["AGAINST", "Case", "Settings", "SideSpec", "threads_here"]

AGAINST = ("transformers", "causal", "plain", "exact")
CACHES = ("dynamic", "static", "compile")
EXPERTS = ("eager", "batched_mm", "grouped_mm")
"""Names of transformers 5.23 for ways to run experts; unset it takes grouped_mm."""


def threads_here() -> int:
    """Hardware threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One benchmark.

    Attributes:
        model: a preset's name, or whatever ``from_pretrained`` takes.
        against: one of ``AGAINST``; None measures our side alone.
        their_settings: how transformers runs: ``dynamic``, ``static`` (cache) or ``compile`` (static cache and torch.compile),
            each with ``+eager``, ``+batched_mm`` or ``+grouped_mm`` for another way to run the experts than its default.
        device: None: a GPU if there is one.
        dtype: None: the preset's own, else bfloat16 on a GPU and float32 on a CPU.
        quantize: None: weights as stored; ``int8``: our side's rounded and multiplied in int8 (docs/quantisation.md).
        threads: of each side; None: torch's own choice.
        batches: rows a generation, one measurement each.
        steps: denoising steps of each canvas, on both sides; nothing stops early.
        canvases: of each row.
        prompt: tokens of each row's prompt.
        repeat: measured generations of each side.
        warmup: generations of each side before them.
        layers: of a preset, fewer than it has; None: all.
        seed: of weights, prompts and noise.
    """

    model: str
    against: str | None = None
    their_settings: tuple[str, ...] = ("dynamic", "static")
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    threads: int | None = None
    batches: tuple[int, ...] = (1,)
    steps: int = 8
    canvases: int = 2
    prompt: int = 128
    repeat: int = 5
    warmup: int = 1
    layers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.against is not None and self.against not in AGAINST:
            raise OptionError(f"against is {self.against!r}; allowed: {', '.join(AGAINST)}, or nothing for our side alone")
        if self.quantize not in (None, "int8"):
            raise OptionError(f"quantize is {self.quantize!r}; allowed: int8, or nothing for the weights as they are stored")
        if self.against == "exact" and not self.quantize:
            raise OptionError("against is 'exact', which is our side without quantize; give quantize too")
        for name in ("steps", "canvases", "prompt", "repeat", "layers", "threads"):
            _at_min(name, getattr(self, name), 1)
        _at_min("warmup", self.warmup, 0)
        _at_min("seed", self.seed, 0)
        for batch in self.batches:
            _at_min("batch", batch, 1)
        if not self.batches or len(set(self.batches)) < len(self.batches):
            raise OptionError(f"batch is {list(self.batches)!r}; give at least one size, each once")
        if self.threads is not None and self.threads > threads_here():
            raise OptionError(f"threads is {self.threads}; this process may use {threads_here()} here")
        self._check_theirs()

    def _check_theirs(self) -> None:
        for setting in self.their_settings:
            cache, _, experts = setting.partition("+")
            if cache not in CACHES or ("+" in setting and experts not in EXPERTS):
                raise OptionError(
                    f"their setting is {setting!r}; allowed: {', '.join(CACHES)}, each alone or with +{', +'.join(EXPERTS)}"
                )
        if not self.their_settings or len(set(self.their_settings)) < len(self.their_settings):
            raise OptionError(f"their settings are {list(self.their_settings)!r}; give at least one, each once")
        if self.against == "transformers" and importlib.util.find_spec("transformers") is None:
            raise InputError("transformers is not installed; install it with: pip install 'diffusiongemma[dev]'")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One generation, the same for both sides.

    Attributes:
        prompts: token ids, rows of one length.
        steps: denoising steps a canvas.
        canvases: of each row.
        canvas_length: tokens.
        seed: of the noise.
    """

    prompts: tuple[tuple[int, ...], ...]
    steps: int
    canvases: int
    canvas_length: int
    seed: int

    @property
    def new_tokens(self) -> int:
        """Tokens that each row gains."""
        return self.canvases * self.canvas_length


@dataclass(frozen=True, kw_only=True)
class SideSpec:
    """What a worker process has to load.

    Attributes:
        name: for reports and messages.
        kind: ``ours``, ``plain``, ``exact``, ``causal`` or ``transformers``.
        setting: one of ``Settings.their_settings`` for transformers, else empty.
        folder: the checkpoint.
        device: as torch spells it; None: a GPU if there is one.
        dtype: of the weights; None: by the device.
        quantize: of our side; see ``Settings``.
        threads: None: torch's own choice.
        log: file that takes what the process prints.
    """

    name: str
    kind: str
    setting: str
    folder: str
    device: str | None
    dtype: str | None
    quantize: str | None
    threads: int | None
    log: str


def _at_min(name: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise OptionError(f"{name} is {value}; it must be at least {low}")
