"""``diffusiongemma infill``, ``fill`` and ``edit``: writing in a text that is there already."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from diffusiongemma.cli import common
from diffusiongemma.cli.command import command
from diffusiongemma.cli.display import LiveCanvas, RowsCanvas
from diffusiongemma.errors import InputError

if TYPE_CHECKING:
    from diffusiongemma.generation import DiffusionGemmaModel
    from diffusiongemma.generation.context import OnEvent
    from diffusiongemma.generation.fill import Filled

__all__ = ["edit", "fill", "infill"]

T = TypeVar("T")
Prompt = Annotated[str | None, typer.Option(help="A user's message that the text answers; unset: it is plain text.")]
Tries = Annotated[int, typer.Option(help="Most rows of a batch: lengths, each also with open borders.", min=1)]


@command(but=("max_tokens", "stop"))
def infill(
    *,
    prefix_file: Annotated[str | None, typer.Option(help="Text before the span; - reads standard input.")] = None,
    suffix_file: Annotated[str | None, typer.Option(help="Text after it; - reads standard input.")] = None,
    min_tokens: Annotated[int, typer.Option(help="Fewest tokens of the span.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the span.")] = 16,
    prompt: Prompt = None,
    tries: Tries = 16,
    sampling: dict[str, Any],
    load: common.Load,
    json: bool,
) -> None:
    """Write what stands between two texts. Several lengths are tried at once; what is given comes out unchanged."""
    if prefix_file is None and suffix_file is None:
        raise InputError("there is nothing around the span; give --prefix-file, --suffix-file or both")
    if prefix_file == suffix_file == "-":
        raise InputError("--prefix-file and --suffix-file are both standard input; one of them must be a file")
    prefix, suffix = ("" if name is None else common.read_text(name) for name in (prefix_file, suffix_file))
    loaded = load()
    _report(
        loaded,
        lambda look: loaded.infill(
            prefix, suffix, min_tokens=min_tokens, max_tokens=max_tokens, tries=tries, on_event=look, prompt=prompt, **sampling
        ),
        json,
    )


@command(but=("max_tokens", "stop"))
def fill(
    *,
    template: Annotated[
        str | None, typer.Argument(help="Text with spans: 'Dear {{name:1-6}}, ...'; - reads standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A file with the template instead.")] = None,
    prompt: Prompt = None,
    tries: Tries = 16,
    sampling: dict[str, Any],
    load: common.Load,
    json: bool,
) -> None:
    """Write all spans of a template together: {{name}}, {{name:4}} or {{name:1-6}}, fewest and most tokens."""
    if (template is None) == (file is None):
        raise InputError("give a template or --file, not both and not neither")
    text = common.read_text(file or "-") if template in (None, "-") else str(template)
    loaded = load()
    _report(loaded, lambda look: loaded.fill(text, tries=tries, on_event=look, prompt=prompt, **sampling), json)


@command()
def edit(
    *,
    file: Annotated[str, typer.Argument(help="The text; - reads standard input.", metavar="FILE")],
    instruction: Annotated[str, typer.Argument(help="What is to become of it.")],
    in_prompt: Annotated[
        bool, typer.Option("--in-prompt/--canvas-only", help="Show the text in the message too, or on the canvas alone.")
    ] = True,
    sampling: dict[str, Any],
    load: common.Load,
    json: bool,
) -> None:
    """Rewrite a text: the canvas begins with it instead of noise, so that what stays converges at once."""
    text = common.read_text(file)
    loaded = load()
    result = _watched(
        loaded,
        lambda look: loaded.edit(text, instruction, in_prompt=in_prompt, on_event=look, **sampling),
        json,
    )
    if json:
        common.print_json(result.to_dict())
        return
    _write(result.text)
    common.err.print(f"{result.usage.completion_tokens} tokens, {result.usage.denoising_steps} steps", style="dim")


def _report(model: "DiffusionGemmaModel", run: "Callable[[OnEvent | None], Filled]", json: bool) -> None:
    filled = _watched(model, run, json)
    if json:
        common.print_json(filled.to_dict())
        return
    _write(filled.text)
    best = filled.tried[0]
    lengths = ", ".join(f"{name}: {length}" for name, length in best.lengths.items())
    common.err.print(
        f"{len(filled.tried)} candidates; best: {lengths} tokens, {best.score:.1f} nats, {best.steps} steps, "
        f"{filled.seconds:.2f} s",
        style="dim",
        soft_wrap=True,
    )


def _watched(model: "DiffusionGemmaModel", run: "Callable[[OnEvent | None], T]", json: bool) -> T:
    """Run; in a terminal the rows are shown as they form, and make room for the text at the end."""
    if json or not common.out.is_terminal:
        return run(None)
    rows = RowsCanvas(model.tokenizer.token_text, lambda: "", model.config.text.pad_token_id, max(3, common.out.height - 2))
    with LiveCanvas(common.out, rows) as canvas:
        result = run(lambda event: rows.follow(event, canvas))
        canvas.clear()
    return result


def _write(text: str) -> None:
    """The text as it is, with a line break at the end."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()
