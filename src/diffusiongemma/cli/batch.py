"""``diffusiongemma batch``: a file of requests answered."""

import asyncio
import sys
import time
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffusiongemma.cli import common
from diffusiongemma.cli.command import command
from diffusiongemma.errors import InputError, OptionError

if TYPE_CHECKING:
    from diffusiongemma.server.batch import BatchProgress

__all__ = ["batch"]

_QUIET_SECONDS = 10.0
"""Between two lines of progress where no terminal shows a bar."""


@command(but=("stop",))
def batch(
    *,
    file: Annotated[
        Path,
        typer.Argument(help="Requests in OpenAI's batch format, or rows: JSON Lines, .csv, .parquet, .txt.", metavar="FILE"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where answers go; the same command goes on with a file it began.")],
    template: Annotated[
        str | None, typer.Option(help="How a row becomes a prompt: 'Summarise: {text}'; unset: its messages or prompt.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message for rows.")] = None,
    json_schema: Annotated[Path | None, typer.Option(help="File with the JSON schema that every answer to a row obeys.")] = None,
    keep_if: Annotated[
        list[str] | None,
        typer.Option(
            help="Also write the answers to rows that are worth keeping, in order, to OUT with .kept before its ending: valid, "
            "judge>0.5 (the causal role's probability by token), new (no near-duplicate); several: all of them.",
        ),
    ] = None,
    mode: common.AnyModeOption = "diffusion",
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Answers that are written at the same time.")] = 8,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask rows again that an earlier run could not answer.")
    ] = False,
    sampling: dict[str, Any],
    load: common.Load,
    json: bool,
) -> None:
    """Answer every request of a file, or every row made a prompt.

    Options count where a request gives no value of its own. Kill it and run it again: no row is lost or doubled. A row that cannot
    be answered is kept with the reason, and the exit status is 1.
    """
    from diffusiongemma.server.batch import read_requests, without_failures
    from diffusiongemma.server.keeping import Conditions, keep

    if out.exists() and file.exists() and out.samefile(file):
        raise OptionError(f"--out is {out}, the input itself; name another file")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} for --out; make it first")
    seed = sampling.pop("seed", 0)
    defaults = sampling | ({} if mode == "diffusion" else {"mode": mode})
    schema = None
    if json_schema is not None:
        schema = common.parse_json(common.read_text(json_schema), str(json_schema))
        defaults["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    conditions = Conditions.of(keep_if or (), None if schema is None else dumps(schema))
    if conditions.judge is not None:
        defaults["logprobs"] = True
    requests = read_requests(file, template, system, defaults)
    if keep_if and requests[0].custom_id is not None:
        raise OptionError("--keep-if is for rows; of requests in OpenAI's format the caller's names decide")
    if retry_failed:
        without_failures(out)
    done = _run(requests, out, seed, max_batch, load, json)
    kept = out.with_name(f"{out.stem}.kept{out.suffix}")
    counts = keep(out, kept, conditions) if keep_if else None
    if json:
        told = {"rows": done.of, "resumed": done.resumed, "failed": done.failed, "tokens": done.tokens, "out": str(out)}
        common.print_json(told | ({} if counts is None else {"kept": {**counts, "file": str(kept)}}))
    else:
        common.out.print(f"{_told(done)}, in {out}", markup=False, soft_wrap=True)
        if counts is not None:
            others = "".join(f", {count} {reason}" for reason, count in counts.items() if reason != "kept")
            common.out.print(f"{counts['kept']} kept{others}, in {kept}", markup=False, soft_wrap=True)
    if done.failed:
        raise typer.Exit(1)


def _run(requests: Any, out: Path, seed: int, max_batch: int, load: common.Load, json: bool) -> "BatchProgress":
    from diffusiongemma.engine.threaded import ThreadedEngine
    from diffusiongemma.evals.results import fingerprint
    from diffusiongemma.server.app import create_app
    from diffusiongemma.server.batch import batch_file
    from diffusiongemma.server.endpoint import ModelEndpoint
    from diffusiongemma.server.settings import Settings

    loaded = load()
    key = f"{fingerprint(loaded)} {loaded.dtype} {loaded.device.type}{' int8' if loaded.transformer.int8_products else ''}"
    at_once = 2 * max_batch
    # A request may have several answers, and nobody else waits.
    engine = ThreadedEngine(
        loaded.transformer, loaded.tokenizer, max_batch=max_batch, max_waiting=16 * at_once, client_rows=32 * at_once,
        client_steps=1 << 40,
    )  # fmt: skip
    name = loaded.checkpoint.folder.name if loaded.checkpoint.folder else "model"
    settings = Settings(max_body_bytes=1 << 26, max_constraint_bytes=1 << 20, max_choices=128, max_requests=2 * at_once)
    app = create_app({name: ModelEndpoint(name, loaded, engine, rewrites=2 * at_once)}, settings)
    quiet = json or not common.out.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=common.out, disable=quiet, transient=True) as bar:
            view = _View(bar, quiet)
            return asyncio.run(
                batch_file(app, requests, out, model_key=key, seed=seed, at_once=at_once, on_progress=view.show)
            )  # fmt: skip
    finally:
        engine.stop()


class _View:
    """The progress as a bar, or in words."""

    def __init__(self, bar: Progress, quiet: bool) -> None:
        self._bar, self._quiet = bar, quiet
        self._task = bar.add_task("answers")
        self._began = self._said = time.monotonic()

    def show(self, progress: "BatchProgress") -> None:
        """An answer came."""
        seconds = max(time.monotonic() - self._began, 1e-6)
        rate = f"{(progress.done - progress.resumed) / seconds:.1f} rows, {progress.tokens / seconds:.0f} tokens a second"
        self._bar.update(self._task, completed=progress.done, total=progress.of, description=f"{rate}, {progress.failed} failed")
        if self._quiet and time.monotonic() - self._said > _QUIET_SECONDS:
            sys.stderr.write(f"{_told(progress)}, {rate}\n")
            self._said = time.monotonic()


def _told(progress: "BatchProgress") -> str:
    resumed = f" ({progress.resumed} of an earlier run)" if progress.resumed else ""
    return f"{progress.done}/{progress.of} rows{resumed}, {progress.failed} failed"
