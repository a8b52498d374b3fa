"""``diffusiongemma generate`` and ``diffusiongemma chat``."""

import sys
from json import dumps, loads
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusiongemma.cli import common
from diffusiongemma.cli.command import command
from diffusiongemma.cli.display import LiveCanvas, text_canvas
from diffusiongemma.errors import DiffusionGemmaError, InputError, OptionError

if TYPE_CHECKING:
    from rich.text import Text

    from diffusiongemma.engine.events import Result
    from diffusiongemma.generation import DiffusionGemmaModel

__all__ = ["chat", "generate"]

System = Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before the conversation.")]
JsonSchema = Annotated[
    str | None,
    typer.Option("--json-schema", metavar="FILE", help="The answer is JSON of this schema; - reads standard input."),
]
JsonObject = Annotated[bool, typer.Option("--json-object", help="The answer is a JSON object.")]
Regex = Annotated[str | None, typer.Option(help="The answer matches this regular expression as a whole.")]
Choices = Annotated[list[str] | None, typer.Option("--choice", help="A text the answer may be; give one option for each.")]
Grammar = Annotated[
    str | None, typer.Option(metavar="FILE", help="The answer is a text of the context-free grammar in this file (Lark's syntax).")
]


@command(chat=True)
def generate(
    *,
    prompt: Annotated[str | None, typer.Argument(help="The user's message; - or nothing on a pipe reads standard input.")] = None,
    mode: common.AnyModeOption = "diffusion",
    system: System = None,
    json_schema: JsonSchema = None,
    json_object: JsonObject = False,
    regex: Regex = None,
    choices: Choices = None,
    grammar: Grammar = None,
    sampling: dict[str, Any],
    load: common.Load,
    json: bool,
) -> None:
    """Answer a prompt. In a terminal the canvas is shown as it forms; on a pipe only the text is printed."""
    text = common.prompt_text(prompt, 'diffusiongemma generate "..."')
    constrained = _constrained(json_schema, json_object, regex, choices, grammar)
    asked: dict[str, Any] = {"prompt": text}
    if system is not None and text.strip():
        asked = {"messages": [*_told(system), {"role": "user", "content": text}]}
    show = common.out.is_terminal and not json
    result = _answer(load(), {**asked, **constrained}, {"mode": mode, **sampling}, show)
    if json:
        common.print_json(result.to_dict())
    elif not common.out.is_terminal:
        common.out.print(result.text, markup=False, soft_wrap=True)


@command(but=("raw",), chat=True)
def chat(
    *,
    mode: common.AnyModeOption = "diffusion",
    system: System = None,
    sampling: dict[str, Any],
    load: common.Load,
    json: bool,
) -> None:
    """Talk to a model: one message a line, /reset forgets the conversation, /exit or Ctrl-D leaves.

    With --json the conversation is read from standard input, one message a line, and printed as one object at the end.
    """
    loaded = load()
    messages: list[dict[str, str]] = _told(system)
    while (line := _next_line(json)) is not None:
        if line == "/exit":
            break
        if line == "/reset":
            messages = _told(system)
        elif line:
            _turn(loaded, messages, line, {"mode": mode, **sampling}, json)
    if json:
        common.print_json({"messages": messages})


def _turn(model: "DiffusionGemmaModel", messages: list[dict[str, str]], line: str, options: dict[str, Any], json: bool) -> None:
    asked = [*messages, {"role": "user", "content": line}]
    try:
        result = _answer(model, {"messages": asked}, options, show=common.out.is_terminal and not json)
    except DiffusionGemmaError as error:
        if json:
            raise
        common.err.print(f"error: {error}", style="red", markup=False)
        return
    except KeyboardInterrupt:
        if json:
            raise
        common.err.print("stopped; the message is not part of the conversation")
        return
    messages[:] = [*asked, {"role": "assistant", "content": result.text}]
    if not json and not common.out.is_terminal:
        common.out.print(result.text, markup=False, soft_wrap=True)


def _told(system: str | None) -> list[dict[str, str]]:
    """What stands before a conversation."""
    return [] if system is None else [{"role": "system", "content": system}]


def _next_line(json: bool) -> str | None:
    try:
        if common.out.is_terminal and not json:
            return common.out.input("[bold]> [/]").strip()
        line = sys.stdin.readline()
        return line.strip() if line else None
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: {error.reason}") from error


def _constrained(
    schema: str | None, json_object: bool, regex: str | None, choices: list[str] | None, grammar: str | None
) -> dict[str, Any]:
    """What the answer is constrained to, as ``stream`` takes it."""
    given = {"--json-schema": schema, "--json-object": json_object or None, "--regex": regex, "--choice": choices or None}
    names = [name for name, value in {**given, "--grammar": grammar}.items() if value is not None]
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} are given; an answer can be constrained to one of them")
    if schema is not None:
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": _json(common.read_text(schema), schema)}}}
    if json_object:
        return {"response_format": {"type": "json_object"}}
    return {"regex": regex, "choices": choices or None, "grammar": None if grammar is None else common.read_text(grammar)}


def _json(text: str, name: str) -> Any:
    try:
        return loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {error}") from error


def _shown(result: "Result") -> "Text":
    """An answer as a reader sees it: thoughts dimmed, then what is said, then the calls."""
    from rich.text import Text

    shown = Text()
    if result.thinking:
        shown.append(result.thinking.strip() + "\n\n", style="dim")
    shown.append(result.text)
    for call in result.tool_calls:
        shown.append("\n" if shown else "").append(f"{call.name}({dumps(call.arguments, ensure_ascii=False)})", style="cyan")
    return shown


def _answer(model: "DiffusionGemmaModel", source: dict[str, Any], options: dict[str, Any], show: bool) -> "Result":
    """The finished result; drawn on the way where someone looks."""
    from rich.text import Text

    from diffusiongemma.engine.events import Commit, Done, Draft

    events = model.stream(**source, **options)
    if not show:
        return next(event.result for event in events if isinstance(event, Done))
    committed: list[str] = []
    result: Result | None = None
    with LiveCanvas(common.out, text_canvas(model.tokenizer.token_text, lambda: "".join(committed))) as canvas:
        for event in events:
            if isinstance(event, Draft):
                canvas.show(event)
            elif isinstance(event, Commit):
                committed.append(event.text)
                canvas.committed(len(event.token_ids))
                canvas.finish(Text("".join(committed)))
            else:
                result = event.result
                canvas.finish(_shown(result))
    assert result is not None
    usage = result.usage
    common.err.print(
        f"{usage.completion_tokens} tokens, {usage.denoising_steps} steps, {usage.tokens_per_forward:.1f} tokens per forward, "
        f"{usage.completion_tokens / usage.seconds:,.0f} tokens/s, finish: {result.finish_reason}",
        style="dim",
    )
    return result
