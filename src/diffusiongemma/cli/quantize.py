"""``diffusiongemma quantize``: a smaller copy of a checkpoint, in a published format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diffusiongemma.cli import common

if TYPE_CHECKING:
    from diffusiongemma.weights.quantise import PartError

__all__ = ["quantize"]


def quantize(
    model: Annotated[
        str, typer.Argument(help="A built-in name, a folder or a hub id, with 16- or 32-bit weights (for GGUF: any that is read).")
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="A new folder, in which the same command goes on after an interruption. For GGUF: a file name in .gguf."
        ),
    ],
    fmt: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="fp8 or int8 (a scale a row), int4 (groups of 32), nvfp4 (groups of 16); or a GGUF file: gguf:q8_0, gguf:q5_1, "
            "gguf:q5_0, gguf:q4_1, gguf:q4_0, gguf:mxfp4, gguf:bf16, gguf:f16, gguf:f32.",
        ),
    ] = "fp8",
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            help="Quantise attention, mlp, experts (GGUF: embedding, self_conditioning too); repeat for several. Unset: as the "
            "published files.",
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search/--no-search",
            help="Search each scale for the least error, or take the largest value. GGUF's scales are those of the package gguf.",
        ),
    ] = True,
    evaluate: Annotated[
        list[str] | None, typer.Option("--eval", help="A task to answer with the original and with the copy; repeat for several.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Examples of each task.", min=1)] = 100,
    json: common.JsonOption = False,
) -> None:
    """Write a quantised copy of a checkpoint, as compressed-tensors or GGUF has it, and report its error layer by layer.

    Weights are read and written a part at a time: a 26B takes less than 4 GB of memory.
    """
    with common.reporting(json):
        from diffusiongemma.generation.quantising import quantize_checkpoint
        from diffusiongemma.tasks.registry import task_named
        from diffusiongemma.weights.resolve import resolve

        tasks = [task_named(name) for name in evaluate or []]
        source = resolve(model)
        columns = TextColumn("quantising"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
        with Progress(*columns, console=common.err, transient=True, disable=not common.err.is_terminal) as bar:
            task = bar.add_task("quantising", total=None)
            errors = quantize_checkpoint(
                source, out, fmt, parts=part or None, search=search,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )  # fmt: skip
        sizes = {"original": _bytes(source), "copy": _bytes(out)}
        scores = {one.name: {name: _score(name, one, n) for name in (model, str(out))} for one in tasks}
        if json:
            listed = [vars(error) for error in errors]
            common.print_json({"folder": str(out), "format": fmt, "bytes": sizes, "errors": listed, "scores": scores})
        else:
            _print(errors, sizes, scores, out)


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _score(model: str, task: Any, n: int) -> dict[str, float]:
    from diffusiongemma.evals.run import evaluate
    from diffusiongemma.tasks.base import EVAL_SEED

    common.err.print(f"{task.name}: {n} examples with {model}", highlight=False)
    report = evaluate(common.load(model), task, task.examples(n, EVAL_SEED))
    return {"score": report.total.score, "steps": report.total.mean_steps or 0.0}


def _error(error: "PartError") -> str:
    searched = error.error != error.absmax_error
    return f"{error.error:.2%} ({error.absmax_error:.2%})" if searched else f"{error.error:.2%}"


def _print(errors: "list[PartError]", sizes: dict[str, int], scores: dict[str, dict[str, dict[str, float]]], out: Path) -> None:
    table = Table(title="relative error of the weights (in brackets: with scales from the largest values)", title_justify="left")
    table.add_column("layer", justify="right")
    names = list(dict.fromkeys(error.part for error in errors))
    for name in names:
        table.add_column(name, justify="right")
    for layer in sorted({error.layer for error in errors}):
        here = {error.part: error for error in errors if error.layer == layer}
        cells = (_error(here[name]) if name in here else "" for name in names)
        table.add_row("" if layer < 0 else str(layer), *cells)
    common.out.print(table)
    for name, by_model in scores.items():
        told = ", ".join(f"{model} {score['score']:.1%} in {score['steps']:.2f} steps" for model, score in by_model.items())
        common.out.print(f"{name}: {told}", highlight=False)
    ratio = sizes["copy"] / sizes["original"]
    common.out.print(f"{out}: {sizes['copy'] / 1e6:,.1f} MB, {ratio:.0%} of {sizes['original'] / 1e6:,.1f} MB", highlight=False)
