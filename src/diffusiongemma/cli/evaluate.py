"""``diffusiongemma eval``: scores on held-out examples."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diffusiongemma.cli import common
from diffusiongemma.cli.command import command
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.options import SamplingParams, options_of
from diffusiongemma.tasks.base import EVAL_SEED, CountedTask, Example, PinnedTask, SchemaTask, Task
from diffusiongemma.tasks.local_rows import LocalRows

if TYPE_CHECKING:
    from diffusiongemma.evals.judging import JudgeReport
    from diffusiongemma.evals.results import Outcome, ResultsFile, Score, TaskReport
    from diffusiongemma.generation import DiffusionGemmaModel

__all__ = ["evaluate"]


_EXAMPLES = 100
"""Of a task, where nobody says how many; a file of rows is evaluated whole."""
_QUIET_SECONDS = 10.0
"""Between two lines of progress where nobody looks."""


@command(but=("seed", "stop"))
def evaluate(
    *,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to evaluate on: names of tasks, files of rows (.jsonl), or all; none lists the tasks.",
            metavar="[TASK|FILE...|all]",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A built-in name, a checkpoint folder, or a hub id; unset: nano, or the one that belongs to the only task.",
        ),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="Number of examples of each task; unset: 100, or all that there are.", min=1)
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", "-s", help="Seed of the examples and of the sampler; from 1000000 on never trained on.", min=0)
    ] = EVAL_SEED,
    mode: common.ModeOption = "diffusion",
    pin: Annotated[bool, typer.Option("--pin/--no-pin", help="Also hold what is known of an answer fixed.")] = False,
    schema: Annotated[bool, typer.Option("--schema/--no-schema", help="Hold answers to their JSON schema (json-extract).")] = False,
    judge: Annotated[
        bool,
        typer.Option(
            "--judge/--no-judge",
            help="Also tell how well the causal role's log-probabilities and the canvas's entropy know right answers from wrong "
            "ones.",
        ),
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Evaluate at several settings of one option: num_diffusion_steps=4,8,16,32."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw into this PNG: bars by task, with --sweep quality against steps and speed, with --judge wrong answers "
            "against answers given."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File of results, a line an example; unset: runs/eval/MODEL-MODE.jsonl.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what an earlier run has in the file of results.")] = False,
    batch: Annotated[
        int | None, typer.Option(help="Examples at a time; unset: 50, or fewer for a large vocabulary.", min=1)
    ] = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    quantize: common.QuantizeOption = None,
    sampling: dict[str, Any],
    json: bool,
) -> None:
    """Answer held-out examples of tasks and report scores, steps and speed.

    Each finished example is a line of a file, at once: after Ctrl-C, or worse, the same command goes on where it was. Lines of
    another checkpoint, mode or setting stay in the file and are not counted.
    """
    from diffusiongemma.tasks.registry import TASKS

    if not tasks:
        _list(json)
        return
    chosen, every = _chosen(tasks), tasks == ["all"]
    name, values = _sweep(sweep, mode)
    if name in sampling:
        raise OptionError(f"{name} is given both as an option and in --sweep; give it once")
    if pin and (odd := [task.name for task in chosen if not isinstance(task, PinnedTask)]):
        pinned = ", ".join(name for name, task in TASKS.items() if isinstance(task, PinnedTask))
        raise OptionError(f"--pin is for {pinned} only; nothing is known beforehand of an answer of {', '.join(odd)}")
    if schema and (odd := [task.name for task in chosen if not isinstance(task, SchemaTask)]):
        raise OptionError(f"--schema is for json-extract only; answers of {', '.join(odd)} have no schema")
    from diffusiongemma.evals.judging import judge as judged_by
    from diffusiongemma.evals.plot import check_plot, plot_judges, plot_scores, plot_sweep
    from diffusiongemma.evals.results import ResultsFile, default_path
    from diffusiongemma.generation import Mode

    if mode not in get_args(Mode):
        raise OptionError(f"mode is {mode!r}; allowed: {', '.join(get_args(Mode))}")
    if plot is not None:
        check_plot(plot)
    chosen, skipped = _available(chosen, n, seed, every)
    own = getattr(chosen[0], "model", None) if len(chosen) == 1 else None
    model = model or own or common.DEFAULT_MODEL
    loaded = common.load(model, dtype, device, quantize)
    settings = [{**sampling, name: value} if name else sampling for value in values]
    for options in settings:
        loaded.defaults.replaced(**options)
    file = ResultsFile(out or default_path(model, mode), fresh)
    how = {"mode": mode, "seed": seed, "pinned": pin, "constrained": schema, "judged": judge, "batch_size": batch, "results": file}
    if judge and name:
        raise OptionError("--judge and --sweep are given; take one")
    kept: dict[str, list[Outcome]] = {}
    try:
        reports = _run(loaded, chosen, n, list(zip(values, settings, strict=True)), name, how, kept)
    except KeyboardInterrupt:
        common.err.print(f"what is finished is in {file.path}; the same command goes on", markup=False, soft_wrap=True)
        raise
    if every:
        reports, refused = _served(reports)
        skipped.update(refused)
    judges = [one for outcomes in kept.values() if judge and (one := judged_by(outcomes)) is not None]
    if plot is not None and reports:
        if judge:
            plot_judges(judges, plot)
        elif name:
            plot_sweep(name, reports, plot)
        else:
            plot_scores([report for _, report in reports], plot)
    if json:
        rows = [{**({name: value} if name else {}), **report.to_dict()} for value, report in reports]
        told = {"judges": [one.to_dict() for one in judges]} if judge else {}
        head = {"model": model, "mode": mode, "seed": seed, "n": n or _EXAMPLES, "results": str(file.path)}
        common.print_json({**head, **({"sweep": name} if name else {}), "tasks": rows, "skipped": skipped, **told})
    else:
        _print(name, reports, skipped, file)
        if judges:
            _print_judges(judges)


def _list(json: bool) -> None:
    from diffusiongemma.tasks.registry import TASKS

    if json:
        rows = [{"name": task.name, "summary": task.summary, "max_tokens": task.max_tokens} for task in TASKS.values()]
        common.print_json({"tasks": rows})
        return
    width = max(map(len, TASKS))
    for task in TASKS.values():
        common.out.print(f"{task.name:<{width}}  {task.summary}", markup=False, soft_wrap=True)


def _chosen(names: Sequence[str]) -> list[Task]:
    from diffusiongemma.tasks.registry import TASKS, task_named

    if list(names) == ["all"]:
        return list(TASKS.values())
    if "all" in names:
        raise OptionError("'all' stands alone: it already holds every task")
    return [task_named(name) for name in dict.fromkeys(names)]


def _available(tasks: Sequence[Task], n: int | None, seed: int, every: bool) -> tuple[list[Task], dict[str, str]]:
    """Tasks whose packages are here, and why the others are not; asked for by name, that is an error, and said at once."""
    result, skipped = [], {}
    for task in tasks:
        try:
            task.examples(1, seed)
            result.append(task)
        except InputError as error:
            if not every:
                raise
            skipped[task.name] = str(error)
        if not every and n is not None and isinstance(task, CountedTask) and n > task.count:
            raise OptionError(f"--n is {n}; {task.name} has {task.count} examples, ask for {task.count} at most")
    return result, skipped


def _sweep(sweeps: Sequence[str] | None, mode: str) -> tuple[str, list[Any]]:
    if not sweeps:
        return "", [None]
    if len(sweeps) > 1:
        raise OptionError(f"--sweep is given {len(sweeps)} times; one option is varied at a time, give it once")
    (text,) = sweeps
    name, _, values = text.partition("=")
    swept = options_of(SamplingParams).keys() - {"seed", "stop", "max_tokens"}
    if name not in swept or not values:
        raise OptionError(f"--sweep is {text!r}; write NAME=V1,V2,... with one of {', '.join(sorted(swept))}")
    if mode != "diffusion":
        raise OptionError(f"--sweep varies denoising, of which mode {mode!r} does none; leave it out, or use --mode diffusion")
    return name, [options_of(SamplingParams)[name].parse(value) for value in values.split(",")]


_Reports = list[tuple[Any, "TaskReport"]]
"""The swept value (None: no sweep) and what came of it; tasks in order, values in order within a task."""


def _run(
    model: "DiffusionGemmaModel",
    tasks: Sequence[Task],
    n: int | None,
    settings: list[tuple[Any, dict[str, Any]]],
    name: str,
    how: dict[str, Any],
    kept: "dict[str, list[Outcome]]",
) -> _Reports:
    from diffusiongemma.evals.run import evaluate as evaluate_task

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )  # fmt: skip
    reports: _Reports = []
    with Progress(*columns, console=common.err, transient=True, disable=not common.err.is_terminal) as bar:
        for task in tasks:
            wanted = n or (task.count if isinstance(task, LocalRows) else _EXAMPLES)
            count = min(wanted, task.count) if isinstance(task, CountedTask) else wanted
            examples: Sequence[Example] = []
            for value, options in settings:
                view = _View(bar, f"{task.name} {name}={value}" if name else task.name, count)
                examples = examples or task.examples(count, how["seed"])
                outcomes = kept.setdefault(task.name, [])

                def add(outcome: "Outcome", view: _View = view, outcomes: "list[Outcome]" = outcomes) -> None:
                    view.add(outcome)
                    outcomes.append(outcome)

                reports.append((value, evaluate_task(model, task, examples, on_outcome=add, **how, **options)))
                view.close()
    return reports


class _View:
    """The progress of one task with its score so far: a bar, or a line now and then where nobody looks."""

    def __init__(self, bar: Progress, title: str, total: int) -> None:
        self._bar, self._title, self._total = bar, title, total
        self._task = bar.add_task(title, total=total, status="making examples")
        self._done, self._score = 0, 0.0
        self._said = time.monotonic()

    def add(self, outcome: "Outcome") -> None:
        """An example is done."""
        self._done += 1
        self._score += outcome.score
        status = f"score {self._score / self._done:.1%}"
        self._bar.update(self._task, completed=self._done, status=status)
        if self._bar.disable and time.monotonic() - self._said > _QUIET_SECONDS:
            sys.stderr.write(f"{self._title} {self._done}/{self._total}  {status}\n")
            self._said = time.monotonic()

    def close(self) -> None:
        """The task is done: its bar makes room."""
        self._bar.remove_task(self._task)


def _served(reports: _Reports) -> tuple[_Reports, dict[str, str]]:
    """Reports of the tasks that the checkpoint can be asked at all, and why the others cannot."""
    refused = {
        report.task: f"the checkpoint takes none of its examples: {report.refusal}"
        for _, report in reports
        if report.total.finish_reasons.get("refused") == report.total.examples
    }
    return [(value, report) for value, report in reports if report.task not in refused], refused


def _print(name: str, reports: _Reports, skipped: dict[str, str], file: "ResultsFile") -> None:
    table = Table(box=None, padding=(0, 1, 0, 0))
    numbers = ["n", "score", "steps/\ncanvas", "tokens/\nforward", "with\ncommits", "tokens/\nsecond"]
    for title in ["task", *([name] if name else []), *numbers, "finished"]:
        table.add_column(title, justify="left" if title in ("task", "finished") else "right", vertical="bottom", no_wrap=True)
    for value, report in reports:
        first = [str(value)] if name else []
        table.add_row(report.task, *first, *_cells(report.total, report.tokens_per_second))
        if len(reports) == 1:
            for group, score in report.groups.items():
                table.add_row(f"  {group}", *first, *_cells(score, None))
    if reports:
        # At its own width: a terminal breaks what is too long, and a pipe's width would only be a guess.
        Console(width=200, highlight=False).print(table)
    for _, report in reports:
        if report.refusal:
            count = report.total.finish_reasons["refused"]
            common.out.print(f"{report.task}: {count} refused: {report.refusal}", markup=False, soft_wrap=True)
    for task, reason in skipped.items():
        common.out.print(f"skipped {task}: {reason}", markup=False, soft_wrap=True)
    resumed = sum(report.resumed for _, report in reports)
    common.err.print(
        f"results in {file.path}" + (f", {resumed} of an earlier run" if resumed else ""), markup=False, soft_wrap=True
    )


def _print_judges(judges: "Sequence[JudgeReport]") -> None:
    from diffusiongemma.evals.judging import SIGNALS

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("right or wrong?", no_wrap=True)
    table.add_column("right", justify="right")
    for name in SIGNALS:
        table.add_column(f"{name}: area under ROC,\nanswers given at 5% wrong", justify="right", no_wrap=True)
    for one in judges:
        cells = []
        for name in SIGNALS:
            signal = one.signals.get(name)
            area = "-" if signal is None or signal.auroc is None else f"{signal.auroc:.3f}"
            cells.append("-" if signal is None else f"{area}, {signal.coverage:.0%}")
        table.add_row(one.task, f"{one.right:.1%}", *cells)
    Console(width=200, highlight=False).print(table)
    for name, what in SIGNALS.items():
        common.out.print(f"{name}: {what}", markup=False, soft_wrap=True)


def _cells(score: "Score", tokens_per_second: float | None) -> list[str]:
    passes = (score.mean_steps, score.tokens_per_forward, score.tokens_per_forward_with_commits)
    speeds = ["-" if number is None else f"{number:.2f}" for number in passes]
    speeds.append("" if tokens_per_second is None else f"{tokens_per_second:,.0f}")
    finished = ", ".join(f"{reason} {count}" for reason, count in score.finish_reasons.items())
    return [str(score.examples), f"{score.score:.1%}", *speeds, finished]
