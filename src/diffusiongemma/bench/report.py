"""What a run found, as plain values: medians, spread, ratios, the roofline, and where it was measured."""

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

from diffusiongemma.bench.presets import PRESETS
from diffusiongemma.bench.recorder import MEASURES, Sample
from diffusiongemma.bench.roofline import Rates, parameters, step_cost
from diffusiongemma.bench.run import Duel, Outcome
from diffusiongemma.bench.settings import Settings, threads_here
from diffusiongemma.generation import Mode

__all__ = ["report"]

PACKAGES = ("diffusiongemma", "torch", "transformers", "numpy", "safetensors")
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def report(outcome: Outcome, settings: Settings) -> dict[str, Any]:
    """Everything, ready for JSON.

    Returns:
        ``machine``, ``versions``, ``settings``, ``model``, ``rates``; ``sides``: what each said once loaded; ``duels``: by rival
        and batch size the measures (``recorder.MEASURES``) of both sides as median, lower and upper quartile, every sample in
        order, and ``ratio``: how many times better ours is; ``best``: by batch size and measure the rival that does best, and the
        ratio to it; ``roles``: what one row of both roles was predicted to take here, at these steps, and the ratio to what was
        measured where it was; ``roofline``: by batch size the floor of a denoising step and our ratio to it.
    """
    duels = [_duel(duel) for duel in outcome.duels]
    return {
        "machine": _machine(outcome),
        "versions": _versions(),
        "settings": asdict(settings),
        "model": _model(outcome, settings),
        "sides": outcome.facts,
        "rates": outcome.rates,
        "measures": MEASURES,
        "duels": duels,
        "best": _best(duels),
        "roles": _roles(outcome, settings, duels),
        "roofline": [_roofline(outcome, settings, batch, duels) for batch in settings.batches],
    }


def _duel(duel: Duel) -> dict[str, Any]:
    sides: list[dict[str, Any]] = [
        {"name": name, "warmup_seconds": warmup, "measures": _measures(samples), **_per_forward(samples[0], duel.batch),
         "samples": [asdict(sample) for sample in samples]}
        for name, samples, warmup in zip(duel.names, duel.samples, duel.warmup_seconds, strict=True)
    ]  # fmt: skip
    ratio = _ratios(sides[0]["measures"], sides[1]["measures"]) if len(sides) == 2 else {}
    return {"batch": duel.batch, "sides": sides, "ratio": ratio}


def _measures(samples: Sequence[Sample]) -> dict[str, dict[str, float] | None]:
    result: dict[str, dict[str, float] | None] = {}
    for name in MEASURES:
        values = [value for sample in samples if (value := getattr(sample, name)) is not None]
        result[name] = _spread(values) if values else None
    return result


def _spread(values: Sequence[float]) -> dict[str, float]:
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def _per_forward(sample: Sample, batch: int) -> dict[str, float]:
    """Tokens of a row by pass, as ``Result.usage`` counts them: without and with the passes that commit."""
    tokens = sample.tokens / batch
    if not sample.steps:
        return {"tokens_per_forward": 1.0, "tokens_per_forward_with_commits": 1.0}
    return {
        "tokens_per_forward": tokens / sample.steps,
        "tokens_per_forward_with_commits": tokens / (sample.steps + sample.commits),
    }


def _ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """How many times better our median is; a measure that one side lacks, or that is zero, has none."""
    result = {}
    for name in MEASURES:
        if ours[name] and theirs[name] and ours[name]["median"] and theirs[name]["median"]:
            quotient = theirs[name]["median"] / ours[name]["median"]
            result[name] = 1 / quotient if name == "tokens_per_second" else quotient
    return result


def _best(duels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The hardest comparison of each measure: against the rival's best setting, by its own median."""
    result = []
    for batch in dict.fromkeys(duel["batch"] for duel in duels):
        for name in MEASURES:
            rivals = [duel for duel in duels if duel["batch"] == batch and name in duel["ratio"]]
            if rivals:
                sign = -1 if name == "tokens_per_second" else 1
                best = min(rivals, key=lambda duel: sign * duel["sides"][1]["measures"][name]["median"])
                result.append({"batch": batch, "measure": name, "rival": best["sides"][1]["name"], "ratio": best["ratio"][name]})
    return result


def _roles(outcome: Outcome, settings: Settings, duels: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rates = outcome.roles
    predicted = {"step_ms": 1000 * rates.step, "commit_ms": 1000 * rates.commit, "token_ms": 1000 * rates.token}
    alone = [side for duel in duels if duel["batch"] == 1 for side in duel["sides"]]
    taken = {
        "step_ms": ("diffusiongemma", "step_ms"),
        "commit_ms": ("diffusiongemma", "commit_ms"),
        "token_ms": ("causal", "commit_ms"),
    }
    ratio = {}
    for name, (who, measure) in taken.items():
        result = next((side["measures"][measure] for side in alone if side["name"] == who and side["measures"][measure]), None)
        if result and result["median"]:
            ratio[name] = predicted[name] / result["median"]
    return {
        **predicted,
        "predicted_to_measured": ratio,
        "tokens_per_second": {mode: rates.tokens_per_second(mode, settings.steps) for mode in get_args(Mode)},
        "faster": rates.faster(settings.steps),
        "diffusion_is_faster_up_to_steps": rates.max_steps(),
    }


def _roofline(outcome: Outcome, settings: Settings, batch: int, duels: Sequence[dict[str, Any]]) -> dict[str, Any]:
    config, facts = outcome.config, next(iter(outcome.facts.values()))
    context = settings.prompt + config.canvas_length * (settings.canvases - 1) / 2
    cost = step_cost(config, batch, context, ELEMENT_BYTES[facts["dtype"]])
    rates = Rates(**outcome.rates)
    memory = cost.total_bytes / rates.copy_bytes_per_second
    floor = 1000 * rates.floor_seconds(cost)
    steps = [s["step_ms"] for duel in duels if duel["batch"] == batch for s in duel["sides"][0]["samples"]]
    step = statistics.median(steps)
    return {
        "batch": batch,
        "context": context,
        "bytes": cost.total_bytes,
        "operations": cost.total_operations,
        "bytes_by_part": cost.moved,
        "operations_by_part": cost.operations,
        "bound": "memory" if 1000 * memory >= floor else "arithmetic",
        "floor_ms": floor,
        "step_ms": step,
        "ratio": step / floor,
    }


def _model(outcome: Outcome, settings: Settings) -> dict[str, Any]:
    layers, preset = outcome.config.text.num_hidden_layers, PRESETS.get(settings.model)
    full = preset.text["num_hidden_layers"] if preset else layers
    return {
        "name": settings.model,
        "weights": "random" if preset else "the checkpoint's",
        "parameters": sum(parameters(outcome.config).values()),
        "layers": layers,
        "reduced": f"{layers} of {full} layers" if layers < full else None,
        "canvas_length": outcome.config.canvas_length,
        "vocab_size": outcome.config.text.vocab_size,
    }


def _machine(outcome: Outcome) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "threads_available": threads_here(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": next(iter(outcome.facts.values()))["gpu"],
        "system": platform.platform(),
        # What else ran here; a benchmark on a busy machine should say so.
        "load_average": list(os.getloadavg()),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str | None]:
    result: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = None
    return result
