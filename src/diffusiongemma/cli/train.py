"""``diffusiongemma train``: follow a recipe, from the first step or from where the run was left."""

import shutil
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diffusiongemma.cli import common
from diffusiongemma.errors import InputError

if TYPE_CHECKING:
    from diffusiongemma.training.loop import Evaluate
    from diffusiongemma.training.recipe import Recipe

__all__ = ["run_recipe", "train", "training_device"]


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A built-in recipe's name, or a TOML file; none lists the built-in ones.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; unset: runs/NAME. A run found there goes on.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Train to this step instead of the recipe's.", min=1)] = None,
    device: common.DeviceOption = None,
    compile_model: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile the losses; unset: where a C++ compiler or a GPU is there."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; unset: torch's own choice.", min=1)] = None,
    json: common.JsonOption = False,
) -> None:
    """Train a checkpoint from a recipe: both losses, held-out evaluation, a loss plot; Ctrl-C keeps the state.

    The folder of the run gets model/ (the checkpoint), state.pt (to go on), log.jsonl and loss.png.
    """
    with common.reporting(json):
        from diffusiongemma.training.recipe import builtin_recipes, load_recipe

        if recipe is None:
            names = list(builtin_recipes())
            common.print_json({"recipes": names}) if json else common.out.print("\n".join(names))
            return
        asked = load_recipe(recipe)
        if steps is not None:
            asked = asked.model_copy(update={"train": asked.train.model_copy(update={"steps": steps})})
        report = run_recipe(
            asked, out or Path("runs") / asked.name, training_device(device), compile_model, threads, _evaluator(asked)
        )
        if json:
            common.print_json(report)
        else:
            reached = f"step {report['step']} of {report['steps']}"
            common.out.print(f"{reached}; checkpoint {report['checkpoint']}, plot {report['plot']}", markup=False, soft_wrap=True)


def run_recipe(
    recipe: "Recipe", folder: Path, device: str, compile_model: bool | None, threads: int | None, evaluate: "Evaluate | None"
) -> dict[str, Any]:
    """Follow a recipe with a progress bar; returns what came of it."""
    import torch

    from diffusiongemma.training.loop import Hooks, TrainRun

    if threads:
        torch.set_num_threads(threads)
    if compile_model is None:
        compile_model = device.startswith("cuda") or shutil.which("c++") is not None
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )  # fmt: skip
    with Progress(*columns, console=common.err, disable=not common.err.is_terminal) as bar:
        view = _View(bar, recipe)
        hooks = Hooks(evaluate=evaluate, on_step=view.step, on_data=view.data)
        run = TrainRun(recipe, folder, device=device, compile_model=compile_model, hooks=hooks)
        view.begin(run.step)
        checkpoint = run.train()
    return {
        "step": run.step,
        "steps": recipe.train.steps,
        "finished": run.step >= recipe.train.steps,
        "checkpoint": str(checkpoint),
        "plot": str(folder / "loss.png"),
        "log": str(folder / "log.jsonl"),
        "scores": view.last_scores,
    }


def _evaluator(recipe: "Recipe") -> "Evaluate":
    from diffusiongemma.evals.run import evaluate
    from diffusiongemma.generation import DiffusionGemmaModel
    from diffusiongemma.tasks.registry import task_named

    tasks = [task_named(name) for name in recipe.eval.tasks]
    examples = {task.name: task.examples(recipe.eval.examples, recipe.eval.seed) for task in tasks}

    def judge(folder: Path) -> dict[str, Any]:
        model = DiffusionGemmaModel.from_pretrained(folder)
        totals = {task.name: evaluate(model, task, examples[task.name]).total for task in tasks}
        return {"scores": {name: {"score": total.score, "mean_steps": total.mean_steps} for name, total in totals.items()}}

    return judge


class _View:
    """The progress bar of a run, or a line every fifty steps where nobody looks."""

    def __init__(self, bar: Progress, recipe: "Recipe") -> None:
        self._bar = bar
        self._steps = recipe.train.steps
        self._data: TaskID | None = None
        self._task: TaskID | None = None
        self._recent: dict[str, deque[float]] = {}
        self.last_scores: dict[str, dict[str, float]] = {}
        self._held_out: dict[str, float] = {}

    def data(self, done: int, total: int) -> None:
        """Data is being made."""
        if self._data is None:
            self._data = self._bar.add_task("data", total=total, status="")
        self._bar.update(self._data, completed=done)

    def begin(self, step: int) -> None:
        """The first step comes (compiling takes a minute or two)."""
        self._task = self._bar.add_task("training", total=self._steps, completed=step, status="compiling")

    def step(self, line: dict[str, Any]) -> None:
        """A line of the log."""
        for name in ("denoising", "causal"):
            if name in line:
                self._recent.setdefault(name, deque(maxlen=50)).append(line[name])
        self.last_scores = line.get("scores", self.last_scores)
        self._held_out = line.get("held_out", self._held_out)
        status = "  ".join(f"{name} {sum(losses) / len(losses):.4f}" for name, losses in self._recent.items())
        if self._held_out:
            status += f"  held out {self._held_out['denoising']:.4f}"
        if self.last_scores:
            mean = sum(score["score"] for score in self.last_scores.values()) / len(self.last_scores)
            status += f"  score {mean:.1%}"
        assert self._task is not None
        self._bar.update(self._task, completed=line["step"], status=status)
        if self._bar.disable and (line["step"] % 50 == 0 or "scores" in line):
            sys.stderr.write(f"step {line['step']}/{self._steps}  {status}\n")


def training_device(name: str | None) -> str:
    """The device that is meant: a GPU if there is one, else the CPU."""
    import torch

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {chosen!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen
