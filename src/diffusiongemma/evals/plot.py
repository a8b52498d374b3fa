"""Plots of evaluations, as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.evals.judging import SIGNALS, JudgeReport
from diffusiongemma.evals.results import TaskReport

__all__ = ["check_plot", "figure_of", "plot_judges", "plot_scores", "plot_sweep", "write_plot"]


def check_plot(target: Path) -> None:
    """Say before hours of work, not after, that a plot cannot be drawn.

    Raises:
        InputError: matplotlib is not installed.
        OptionError: the folder of the file is not there.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("plots need matplotlib; install it with: pip install 'diffusiongemma[train]'") from error
    if not target.resolve().parent.is_dir():
        raise OptionError(f"the plot is to go to {target}, but there is no folder {target.resolve().parent}; make it first")


def plot_scores(reports: Sequence[TaskReport], target: Path) -> None:
    """Draw score and tokens per forward of each task as bars.

    Args:
        reports: one a task.
        target: the PNG.
    """
    figure, (left, right) = figure_of(1, 2, (10, 1.6 + 0.32 * len(reports)), sharey=True)
    names = [report.task for report in reports]
    scores = [100 * report.total.score for report in reports]
    speeds = [report.total.tokens_per_forward or 0.0 for report in reports]
    left.bar_label(left.barh(names, scores), fmt="%.1f", padding=2)
    right.bar_label(right.barh(names, speeds, color="C1"), fmt="%.1f", padding=2)
    left.invert_yaxis()
    left.set(xlabel="score (%)", xlim=(0, 112))
    right.set(xlabel="tokens per forward", xlim=(0, 1.15 * max(speeds) or 1))
    write_plot(figure, target)


def plot_judges(reports: Sequence[JudgeReport], target: Path) -> None:
    """Draw, a curve a task, the share of wrong answers against the share of answers given, by each signal.

    Args:
        reports: one a task.
        target: the PNG.
    """
    figure, axes = figure_of(1, len(SIGNALS), (5 * len(SIGNALS), 4.5), sharey=True)
    for axis, (name, what) in zip(axes, SIGNALS.items(), strict=True):
        for report in reports:
            if (signal := report.signals.get(name)) is not None:
                area = "" if signal.auroc is None else f" ({signal.auroc:.2f})"
                given, wrong = zip(*signal.curve, strict=True)
                axis.plot([100 * share for share in given], [100 * share for share in wrong], label=report.task + area)
        axis.set(xlabel="answers given, the surest first (%)", title=what)
        axis.legend(title="task (area under ROC)", fontsize="small")
    axes[0].set(ylabel="wrong answers among them (%)")
    write_plot(figure, target)


def plot_sweep(name: str, reports: Sequence[tuple[float | str, TaskReport]], target: Path) -> None:
    """Draw, a curve a task: score and mean steps against the value that was swept, and score against tokens per forward.

    Args:
        name: of the sampling parameter.
        reports: (value, report) in any order, all values for each task.
        target: the PNG.
    """
    figure, (quality, steps, speed) = figure_of(1, 3, (15, 4.5))
    tasks = list(dict.fromkeys(report.task for _, report in reports))
    numbers = sorted({value for value, _ in reports if not isinstance(value, str)})
    names = list(dict.fromkeys(value for value, _ in reports if isinstance(value, str)))
    places: dict[float | str, float] = {value: value for value in numbers} | {value: i for i, value in enumerate(names)}
    for i, task in enumerate(tasks):
        result = sorted(
            ((places[value], report.total) for value, report in reports if report.task == task), key=lambda pair: pair[0]
        )
        style: dict[str, Any] = {"color": f"C{i % 10}", "marker": "os^vD"[i // 10 % 5], "label": task}
        at, scores = [place for place, _ in result], [100 * total.score for _, total in result]
        quality.plot(at, scores, **style)
        steps.plot(at, [total.mean_steps or float("nan") for _, total in result], **style)
        speed.plot([total.tokens_per_forward or float("nan") for _, total in result], scores, **style)
    for axis in (quality, steps):
        if len(numbers) > 1 and numbers[0] > 0:
            axis.set_xscale("log")
        axis.set_xticks(list(places.values()), [value if isinstance(value, str) else f"{value:g}" for value in places])
        axis.minorticks_off()
        axis.set(xlabel=name)
    for axis in (quality, speed):
        axis.set(ylabel="score (%)", ylim=(-1, 101))
    steps.set(ylabel="mean denoising steps a canvas", ylim=(0, None))
    speed.set(xlabel="tokens per forward", xlim=(0, None))
    figure.legend(*quality.get_legend_handles_labels(), loc="outside right center")
    write_plot(figure, target)


def figure_of(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure of panels and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, constrained_layout=True, **options)


def write_plot(figure: Any, target: Path) -> None:
    """Write a figure and let it go."""
    from matplotlib import pyplot

    figure.savefig(target, dpi=120, format="png")
    pyplot.close(figure)
