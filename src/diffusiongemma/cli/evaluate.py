"""``diffusiongemma eval``: scores on held-out data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diffusiongemma.cli import common
from diffusiongemma.errors import OptionError

if TYPE_CHECKING:
    from diffusiongemma.evals.sudoku import SudokuReport

__all__ = ["evaluate"]

TASKS = ("sudoku",)


def evaluate(
    task: Annotated[str, typer.Argument(help=f"What to evaluate on: {', '.join(TASKS)}.")],
    model: common.ModelOption = common.DEFAULT_MODEL,
    n: Annotated[int, typer.Option("--n", help="Number of problems.", min=1)] = 100,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Seed of the problems and of the sampler.", min=0)] = 777,
    mode: common.ModeOption = "diffusion",
    steps: common.StepsOption = None,
    entropy_bound: Annotated[float | None, typer.Option(help="Entropy bound in nats.")] = None,
    pin: Annotated[bool, typer.Option("--pin/--no-pin", help="Also hold the clues fixed on the canvas.")] = False,
    sweep: Annotated[
        str | None, typer.Option(help="Evaluate at several settings, for example num_diffusion_steps=2,4,8,16,48.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="With --sweep: draw the curve into this PNG.")] = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    json: common.JsonOption = False,
) -> None:
    """Solve held-out problems and report solve rate and steps, by clue band.

    Puzzles come from reasoning-gym's sudoku generator with its default settings (30 to 50 empty cells, one solution).
    """
    with common.reporting(json):
        if task not in TASKS:
            raise OptionError(f"task is {task!r}; allowed: {', '.join(TASKS)}")
        if plot is not None and sweep is None:
            raise OptionError("--plot draws the curve of a sweep; give --sweep too")
        from diffusiongemma.tasks.sudoku import reasoning_gym_puzzles

        puzzles = list(reasoning_gym_puzzles(n, seed))
        loaded = common.load(model, dtype, device)
        name, values = _sweep(sweep)
        fixed = common.sampling_options(num_diffusion_steps=steps, entropy_bound=entropy_bound)
        if name in fixed:
            raise OptionError(f"{name} is given both as an option and in --sweep; give it once")
        reports = []
        for value in values:
            options = {**fixed, **({name: value} if name else {})}
            reports.append(_evaluate(loaded, puzzles, mode, pin, seed, options, f"{name}={value}" if name else task))
        if plot is not None:
            _plot(name, values, reports, plot)
        rows = [{**({name: value} if name else {}), **r.to_dict()} for value, r in zip(values, reports, strict=True)]
        common_fields = {"task": task, "model": model, "seed": seed}
        if json:
            common.print_json({**common_fields, "sweep": rows} if name else {**common_fields, **rows[0]})
        else:
            common.out.print(_table(name, values, reports))


def _sweep(text: str | None) -> tuple[str, list[Any]]:
    if text is None:
        return "", [None]
    name, _, values = text.partition("=")
    kinds: dict[str, type] = {"num_diffusion_steps": int, "entropy_bound": float, "t_min": float, "t_max": float}
    if name not in kinds or not values:
        raise OptionError(f"--sweep is {text!r}; write NAME=V1,V2,... with one of {', '.join(kinds)}")
    try:
        return name, [kinds[name](value) for value in values.split(",")]
    except ValueError as error:
        raise OptionError(f"--sweep is {text!r}; its values must be {kinds[name].__name__}") from error


def _evaluate(
    model: Any, puzzles: list[Any], mode: str, pin: bool, seed: int, options: dict[str, Any], title: str
) -> "SudokuReport":
    from diffusiongemma.evals.sudoku import evaluate_sudoku

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=common.err, transient=True, disable=not common.err.is_terminal) as bar:
        task = bar.add_task(title, total=len(puzzles), status="")
        solved: list[int] = []

        def done(outcome: int) -> None:
            solved.append(outcome)
            bar.update(task, advance=1, status=f"solved {sum(solved) / len(solved):.1%}")

        return evaluate_sudoku(model, puzzles, mode=mode, pinned=pin, seed=seed, on_done=done, **options)  # type: ignore[arg-type]


def _table(name: str, values: list[Any], reports: list["SudokuReport"]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ([name] if name else []) + ["clues", "puzzles", "solved", "mean steps", "tokens/forward", "seconds"]:
        table.add_column(title, justify="right")
    for value, report in zip(values, reports, strict=True):
        first = [str(value)] if name else []
        if not name:
            for band, score in report.bands.items():
                table.add_row(*first, band, str(score.puzzles), f"{score.solve_rate:.1%}", f"{score.mean_steps:.2f}", "", "")
        table.add_row(
            *first, "all", str(report.puzzles), f"{report.solve_rate:.1%}", f"{report.mean_steps:.2f}",
            f"{report.tokens_per_forward:.1f}", f"{report.seconds:.1f}",
        )  # fmt: skip
    return table


def _plot(name: str, values: list[Any], reports: list["SudokuReport"], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5), constrained_layout=True)
    axis.plot(values, [100 * report.solve_rate for report in reports], "o-", label="all")
    for band in reports[0].bands:
        axis.plot(values, [100 * report.bands[band].solve_rate for report in reports], "--", alpha=0.6, label=f"{band} clues")
    axis.set(xlabel=name, ylabel="solved (%)", xscale="log", ylim=(0, 101))
    axis.set_xticks(values, [str(value) for value in values])
    axis.minorticks_off()
    beside = axis.twinx()
    beside.plot(values, [report.mean_steps for report in reports], "s:", color="black", alpha=0.6, label="mean steps")
    beside.set(ylabel="mean denoising steps", ylim=(0, None))
    axis.legend(loc="lower right")
    beside.legend(loc="upper left")
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
