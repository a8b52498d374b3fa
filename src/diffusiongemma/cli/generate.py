"""``diffusiongemma generate`` and ``diffusiongemma chat``."""

import contextlib
import sys
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusiongemma.cli import common
from diffusiongemma.cli.command import command
from diffusiongemma.cli.display import LiveCanvas, legend, text_canvas
from diffusiongemma.errors import DiffusionGemmaError, InputError, OptionError

if TYPE_CHECKING:
    from rich.text import Text

    from diffusiongemma.engine.events import Result
    from diffusiongemma.generation import DiffusionGemmaModel

__all__ = ["chat", "generate"]

Pace = Annotated[float, typer.Option(help="Seconds each step stays on the screen, in a terminal.", min=0)]
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
    best_of: Annotated[
        int | None, typer.Option("--best-of", min=1, max=128, help="Answers, of which the causal role's favourite is printed.")
    ] = None,
    pace: Pace = 0.0,
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
    if best_of is not None:
        result = load().generate(**asked, best_of=best_of, **{name: one for name, one in constrained.items() if one is not None},
                                 mode=mode, **sampling)  # type: ignore[call-overload]  # fmt: skip
        if json:
            common.print_json(result.to_dict() | {"confidence": result.confidence})
        else:
            common.out.print(result.text, markup=False, soft_wrap=True)
            common.err.print(f"the best of {best_of}: confidence {result.confidence:.3f}", style="dim")
        return
    if show and mode != "causal":
        common.err.print(legend())
    result = _answer(load(), {**asked, **constrained}, {"mode": mode, **sampling}, show, pace)
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
    """Talk to a model. /help says what else can be typed; Ctrl-D leaves.

    With --json the conversation is read from standard input, one message a line, and printed as one object at the end.
    """
    loaded = load()
    looked_at = common.out.is_terminal and not json
    talk = _Talk(_told(system), {"mode": mode, **sampling})
    if looked_at:
        _history()
        common.err.print(
            f"{loaded.folder.name if loaded.folder else 'a model'}: {_about(loaded)}. /help, Ctrl-D leaves.", style="dim"
        )
    while (line := _next_line(json)) is not None:
        if line.startswith("/") and not line.startswith("//"):
            if talk.command(line):
                break
        elif line:
            _turn(loaded, talk.messages, line.removeprefix("/"), talk.options, json)
    if json:
        common.print_json({"messages": talk.messages})


_HELP = """/system TEXT   what the model is told before the conversation, which begins anew; without a text nothing
/think on|off  whether it thinks before it answers, where the checkpoint can
/reset         forget the conversation
/help          this
/exit          leave (Ctrl-D)
A line that ends with a backslash goes on with the next. A message that begins with a slash: type two."""


class _Talk:
    """A conversation, and what can be typed about it."""

    def __init__(self, told: list[dict[str, str]], options: dict[str, Any]) -> None:
        self._told, self.options = told, options
        self.messages = list(told)

    def command(self, line: str) -> bool:
        """Do what a line with a slash says; whether it ends the conversation."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/exit":
            return True
        if name == "/help":
            common.err.print(_HELP, markup=False)
        elif name == "/reset":
            self.messages = list(self._told)
        elif name == "/system":
            self._told = _told(rest or None)
            self.messages = list(self._told)
        elif name == "/think" and rest in ("on", "off"):
            self.options = {**self.options, "enable_thinking": rest == "on"}
        else:
            known = "/think takes on or off" if name == "/think" else f"{name} is no command; /help lists them"
            common.err.print(f"error: {known}", style="red", markup=False)
        return False


def _about(model: "DiffusionGemmaModel") -> str:
    """What is known of a model, in a line."""
    weights = sum(tensor.numel() for tensor in model.transformer.parameters())
    size = f"{weights / 1e9:.1f} B" if weights > 1e9 else f"{weights / 1e6:.1f} M"
    if model.folder is not None and model.folder.name == "nano" and weights < 1e7:
        return f"{size} parameters, a demonstration that knows a few small tasks and nothing of the world (docs/nano.md)"
    return f"{size} parameters, canvases of {model.config.canvas_length} tokens"


def _history() -> None:
    """Arrow keys and earlier lines, where the system has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


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
            said = [common.out.input("[bold]> [/]")]
            while said[-1].endswith("\\"):
                said[-1] = said[-1][:-1]
                said.append(common.out.input("[bold]. [/]"))
            return "\n".join(said).strip()
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
        return {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": common.parse_json(common.read_text(schema), schema)},
            }
        }
    if json_object:
        return {"response_format": {"type": "json_object"}}
    return {"regex": regex, "choices": choices or None, "grammar": None if grammar is None else common.read_text(grammar)}


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


def _answer(
    model: "DiffusionGemmaModel", source: dict[str, Any], options: dict[str, Any], show: bool, pace: float = 0.0
) -> "Result":
    """The finished result; drawn on the way where someone looks."""
    from rich.text import Text

    from diffusiongemma.engine.events import Commit, Done, Draft

    events = model.stream(**source, **options)
    if not show:
        return next(event.result for event in events if isinstance(event, Done))
    committed: list[str] = []
    result: Result | None = None
    draw = text_canvas(model.tokenizer.token_text, lambda: "".join(committed), model.stop_ids, model.config.text.pad_token_id)
    with LiveCanvas(common.out, draw, pace) as canvas:
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
        f"{usage.completion_tokens / max(usage.seconds - canvas.paused, 1e-9):,.0f} tokens/s, finish: {result.finish_reason}",
        style="dim",
    )
    return result
