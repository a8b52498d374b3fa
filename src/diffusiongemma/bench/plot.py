"""Plots of a benchmark, as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusiongemma.bench.recorder import MEASURES

__all__ = ["plot"]

TITLES = {
    "step_ms": "denoising step (ms)",
    "commit_ms": "commit (ms)",
    "prefill_token_ms": "prefill (ms a token)",
    "first_text_ms": "first text (ms)",
    "tokens_per_second": "tokens a second",
    "peak_bytes": "peak above the weights (MiB)",
}


def plot(report: dict[str, Any], target: Path) -> None:
    """Draw every measure: bars of all sides for one batch size, curves over the batch sizes for several.

    Args:
        report: of ``report.report``.
        target: the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(14, 7), constrained_layout=True)
    curves = _curves(report["duels"])
    draw = _bars if len(report["settings"]["batches"]) == 1 else _lines
    for name, axis in zip(MEASURES, axes.flat, strict=True):
        draw(axis, name, curves)
        axis.set_title(TITLES[name])
    model, settings = report["model"], report["settings"]
    figure.suptitle(
        f"{model['name']}: {settings['steps']} steps, {settings['canvases']} canvases of {model['canvas_length']}, "
        f"prompt {settings['prompt']}; median and quartiles of {settings['repeat']}"
    )
    if draw is _lines:
        figure.legend(*axes.flat[-2].get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
    figure.savefig(target, dpi=120, format="png")
    pyplot.close(figure)


def _curves(duels: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Name of a side to batch size to its measures; ours stands once, from the first duel of a size."""
    result: dict[str, dict[int, dict[str, Any]]] = {}
    for duel in duels:
        for side in duel["sides"]:
            result.setdefault(side["name"], {}).setdefault(duel["batch"], side["measures"])
    return result


def _points(name: str, by_batch: dict[int, dict[str, Any]]) -> list[tuple[int, float, float, float]]:
    """Batch, median, and how far the quartiles are from it."""
    scale = 1 / (1 << 20) if name == "peak_bytes" else 1.0
    points = []
    for batch, measures in sorted(by_batch.items()):
        if (spread := measures[name]) is not None:
            median, low, high = (scale * spread[key] for key in ("median", "low", "high"))
            points.append((batch, median, median - low, high - median))
    return points


def _bars(axis: Any, name: str, curves: dict[str, dict[int, dict[str, Any]]]) -> None:
    for i, (side, by_batch) in enumerate(curves.items()):
        for _, median, below, above in _points(name, by_batch):
            bars = axis.barh([side], [median], xerr=[[below], [above]], color=f"C{i}", capsize=3)
            axis.bar_label(bars, fmt="%.3g", padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.18)


def _lines(axis: Any, name: str, curves: dict[str, dict[int, dict[str, Any]]]) -> None:
    ticks = sorted({batch for by_batch in curves.values() for batch in by_batch})
    for i, (side, by_batch) in enumerate(curves.items()):
        if points := _points(name, by_batch):
            at, median, below, above = zip(*points, strict=True)
            axis.errorbar(at, median, yerr=[below, above], color=f"C{i}", marker="o", capsize=3, label=side)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel="rows in the batch", ylim=(0, None))
