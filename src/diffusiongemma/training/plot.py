"""Plots of a run, as PNG."""

import json
from math import nan
from pathlib import Path

__all__ = ["plot_losses"]


def plot_losses(log: Path, target: Path) -> None:
    """Draw both losses, and each task's score and steps where the run was evaluated, against the step.

    Args:
        log: ``log.jsonl`` of a run.
        target: the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(text) for text in log.read_text("utf-8").splitlines()]
    if not lines:
        return
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True, constrained_layout=True)
    for name in ("denoising", "causal"):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            steps, values = zip(*points, strict=True)
            top.plot(steps, values, linewidth=0.4, alpha=0.4, color=f"C{name == 'causal':d}")
            top.plot(steps, _smooth(values), label=f"{name} loss", color=f"C{name == 'causal':d}")
    top.set(ylabel="cross-entropy (nats a token)", yscale="log")
    top.legend()
    judged = [line for line in lines if "scores" in line]
    if judged:
        at = [line["step"] for line in judged]
        beside = bottom.twinx()
        for i, task in enumerate(judged[-1]["scores"]):
            scores = [line["scores"].get(task, {}) for line in judged]
            bottom.plot(at, [100 * score["score"] if score else nan for score in scores], "o-", color=f"C{i % 10}", label=task)
            beside.plot(at, [score.get("mean_steps") or nan for score in scores], "--", color=f"C{i % 10}", alpha=0.5)
        beside.set(ylabel="denoising steps a canvas (dashed)", ylim=(0, None))
        bottom.set(ylabel="held-out score (%)", ylim=(0, 101))
        bottom.legend(loc="upper left", fontsize="small")
    bottom.set(xlabel="step")
    part = target.with_suffix(".part.png")
    figure.savefig(part, dpi=110)
    pyplot.close(figure)
    part.replace(target)


def _smooth(values: tuple[float, ...], window: int = 30) -> list[float]:
    """The mean of the last ``window`` values at each point."""
    return [sum(last) / len(last) for i in range(len(values)) if (last := values[max(0, i + 1 - window) : i + 1])]
