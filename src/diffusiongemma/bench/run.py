"""The duel: both sides loaded, then one generation here and one there, again and again."""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusiongemma.bench.presets import PRESETS, checkpoint
from diffusiongemma.bench.recorder import Sample
from diffusiongemma.bench.settings import Case, Settings, SideSpec
from diffusiongemma.bench.worker import Worker
from diffusiongemma.errors import BenchError
from diffusiongemma.generation.roles import RoleRates
from diffusiongemma.model.config import ModelConfig
from diffusiongemma.opened import read_config

__all__ = ["Duel", "Outcome", "check_work", "generations", "run"]

COMPILE_WARMUP = 3
"""Generations before compiled code is measured: one compiles, one records, one proves that both are over."""
Watch = Callable[[str], None]


@dataclass(frozen=True)
class Duel:
    """Our side and at most one other, measured in turn at one batch size.

    Attributes:
        batch: rows.
        names: of the sides, ours first.
        samples: a list a side, in the order they were taken.
        warmup_seconds: of the first warm-up of each side, compilation included; None where there was none.
    """

    batch: int
    names: tuple[str, ...]
    samples: tuple[list[Sample], ...]
    warmup_seconds: tuple[float | None, ...]


@dataclass(frozen=True)
class Outcome:
    """All that a run found.

    Attributes:
        config: of the model.
        facts: by side, what it said when it had loaded.
        rates: the machine's, the better of before and after; see ``roofline.Rates``.
        duels: one a rival and batch size.
        roles: what both roles should take on this machine; see ``generation.roles``.
    """

    config: ModelConfig
    facts: dict[str, dict[str, Any]]
    rates: dict[str, float]
    duels: list[Duel]
    roles: RoleRates


def generations(settings: Settings) -> int:
    """How many generations a run makes, for a progress bar."""
    rivals = _rivals(settings) or [("", "")]
    sides = 2 if settings.against else 1
    return sum(sides * len(settings.batches) * (_warmup(settings, setting) + settings.repeat) for _, setting in rivals)


def run(settings: Settings, watch: Watch = lambda doing: None) -> Outcome:
    """Measure our side against its rival, each in its own process, never both at once.

    Every rival, which for transformers is every one of its settings, is loaded alone beside ours, so that two copies of the
    weights are in memory and no more.

    Args:
        settings: what to do.
        watch: called with a word before each thing that takes time; ``generation`` before each generation.

    Raises:
        DiffusionGemmaError: a model or setting that cannot be; BenchError: a side died or did not do the same work.
    """
    watch("preparing the checkpoint")
    with ExitStack() as stack:
        folder = stack.enter_context(checkpoint(settings))
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="diffusiongemma-bench-log-")))
        config = read_config(folder)
        preset = PRESETS.get(settings.model)
        ours = SideSpec(
            name="diffusiongemma", kind="ours", setting="", folder=str(folder), device=settings.device,
            dtype=settings.dtype or (preset.dtype if preset else None), quantize=settings.quantize, threads=settings.threads,
            log=str(logs / "ours"),
        )  # fmt: skip
        watch("loading diffusiongemma")
        worker = stack.enter_context(Worker(ours))
        facts = {ours.name: worker.loaded()}
        watch("measuring the machine")
        before = worker.ask("rates")
        roles = worker.ask("roles")
        duels: list[Duel] = []
        if settings.against is None:
            duels += _duels(settings, config, [worker], "", watch)
        for kind, setting in _rivals(settings):
            name = f"{kind} {setting}".strip()
            spec = replace(ours, name=name, kind=kind, setting=setting, log=str(logs / name))
            spec = spec if kind != "exact" else replace(spec, quantize=None)
            spec = replace(spec, device=facts[ours.name]["device"], dtype=facts[ours.name]["dtype"])
            watch(f"loading {name}")
            with Worker(spec) as rival:
                facts[name] = rival.loaded()
                duels += _duels(settings, config, [worker, rival], setting, watch)
        watch("measuring the machine")
        after = worker.ask("rates")
        # What else runs on the machine can only make it look slower.
        rates = {name: max(before[name], after[name]) for name in before}
    return Outcome(config, facts, rates, duels, roles)


def _rivals(settings: Settings) -> list[tuple[str, str]]:
    """Kind and setting of each side that ours is measured against."""
    if settings.against == "transformers":
        return [("transformers", setting) for setting in settings.their_settings]
    return [(settings.against, "")] if settings.against else []


def _warmup(settings: Settings, setting: str) -> int:
    return max(settings.warmup, COMPILE_WARMUP) if setting.startswith("compile") else settings.warmup


def _duels(settings: Settings, config: ModelConfig, sides: list[Worker], setting: str, watch: Watch) -> Iterator[Duel]:
    for batch in settings.batches:
        case = _case(settings, config, batch)
        first: list[float | None] = [None] * len(sides)
        for _ in range(_warmup(settings, setting)):
            for i, side in enumerate(sides):
                watch("generation")
                seconds = side.ask(case).seconds
                first[i] = seconds if first[i] is None else first[i]
        samples: tuple[list[Sample], ...] = tuple([] for _ in sides)
        order = 0
        for _ in range(settings.repeat):
            for side, taken in zip(sides, samples, strict=True):
                watch("generation")
                taken.append(replace(side.ask(case), order=order))
                order += 1
        names = tuple(side.name for side in sides)
        check_work(names, samples, case)
        yield Duel(batch, names, samples, tuple(first))


def check_work(names: Sequence[str], samples: Sequence[Sequence[Sample]], case: Case) -> None:
    """Both sides took every step; one that stopped early, or wrote less, would look faster than it is.

    Raises:
        BenchError: one did not.
    """
    for name, taken in zip(names, samples, strict=True):
        expected = (0, case.new_tokens - 1) if name == "causal" else (case.canvases * case.steps, case.canvases - 1)
        for sample in taken:
            if (sample.steps, sample.commits) != expected:
                raise BenchError(
                    f"the side {name} took {sample.steps} denoising steps and {sample.commits} commits, not "
                    f"{expected[0]} and {expected[1]}: the sides cannot be compared"
                )


def _case(settings: Settings, config: ModelConfig, batch: int) -> Case:
    """Random prompts without the tokens that mean something to a loop."""
    text, draw = config.text, random.Random(settings.seed)
    special = {text.pad_token_id, text.bos_token_id, *text.eos_token_id}
    special |= {config.boi_token_id, config.eoi_token_id, config.image_token_id}

    def token() -> int:
        while (drawn := draw.randrange(text.vocab_size)) in special:
            pass
        return drawn

    prompts = tuple(tuple(token() for _ in range(settings.prompt)) for _ in range(batch))
    return Case(
        prompts=prompts, steps=settings.steps, canvases=settings.canvases, canvas_length=config.canvas_length, seed=settings.seed
    )
