"""``diffusiongemma vary``: variants of every row of a file."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusiongemma.cli import common
from diffusiongemma.cli.command import command
from diffusiongemma.cli.display import LiveCanvas, RowsCanvas
from diffusiongemma.errors import InputError, OptionError

if TYPE_CHECKING:
    from diffusiongemma.augment import Progress
    from diffusiongemma.engine.events import Event

__all__ = ["vary"]

_QUIET_SECONDS = 10.0
"""Between two lines of progress where no terminal shows a picture."""


@command(but=("max_tokens", "stop"))
def vary(
    *,
    file: Annotated[Path, typer.Argument(help="JSON Lines, an object each.", metavar="FILE")],
    field: Annotated[str, typer.Option(help="Which field's text to vary.")],
    out: Annotated[Path, typer.Option(help="Where the variants go; the same command goes on with a file it began.")],
    n: Annotated[int, typer.Option("--n", help="Variants a row, before duplicates are taken out.")] = 20,
    strength: Annotated[float, typer.Option(help="Share of the tokens to write anew, 0 to 1.")] = 0.3,
    prompt_field: Annotated[
        str | None, typer.Option(help="Field with the message that the text answers; unset: the text is plain text.")
    ] = None,
    sampling: dict[str, Any],
    load: common.Load,
    json: bool,
) -> None:
    """Write variants of every row of a file: a share of a text's tokens is noise again and denoised, the rest stays.

    Exact duplicates are left out. Kill it and run it again: no row is lost or doubled.
    """
    if out.exists() and file.exists() and out.samefile(file):
        raise OptionError(f"--out is {out}, the input itself; name another file")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} for --out; make it first")
    seed = sampling.pop("seed", 0)
    done = _run(file, out, field, n, strength, prompt_field, seed, sampling, load, json)
    if json:
        common.print_json({"rows": done.of, "lines": done.lines, "duplicates": done.duplicates, "resumed": done.resumed})
    else:
        common.out.print(_told(done) + f", in {out}", markup=False, soft_wrap=True)


def _run(
    file: Path,
    out: Path,
    field: str,
    n: int,
    strength: float,
    prompt_field: str | None,
    seed: int,
    options: dict[str, object],
    load: common.Load,
    json: bool,
) -> "Progress":
    from diffusiongemma.augment import Variation, vary_file
    from diffusiongemma.evals.results import fingerprint

    how = Variation(field=field, n=n, strength=strength, seed=seed, prompt_field=prompt_field, options=options)
    loaded = load()
    key = f"{fingerprint(loaded)} {loaded.dtype} {loaded.device.type}{' int8' if loaded.transformer.int8_products else ''}"
    view = _View()
    if json or not common.out.is_terminal:
        return vary_file(loaded, file, out, how, model_key=key, on_progress=view.line)
    # The status line and the line of the prompt after it.
    room = max(3, common.out.height - 2)
    rows = RowsCanvas(loaded.tokenizer.token_text, lambda: view.title, loaded.config.text.pad_token_id, room)
    with LiveCanvas(common.out, rows) as canvas:

        def show(event: "Event") -> None:
            rows.follow(event, canvas)

        done = vary_file(loaded, file, out, how, model_key=key, on_progress=view.row, on_event=show)
        canvas.clear()
    return done


class _View:
    """The progress in words."""

    def __init__(self) -> None:
        self.title = ""
        self._said = time.monotonic()

    def row(self, progress: "Progress") -> None:
        """A row is done."""
        self.title = _told(progress)

    def line(self, progress: "Progress") -> None:
        """A row is done where nobody looks: a line now and then."""
        if time.monotonic() - self._said > _QUIET_SECONDS:
            sys.stderr.write(_told(progress) + "\n")
            self._said = time.monotonic()


def _told(progress: "Progress") -> str:
    resumed = f" ({progress.resumed} of an earlier run)" if progress.resumed else ""
    return f"{progress.done}/{progress.of} rows{resumed}, {progress.lines} variants, {progress.duplicates} duplicates left out"
