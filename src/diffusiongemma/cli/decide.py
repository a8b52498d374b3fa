"""``diffusiongemma decide``."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusiongemma.cli import common
from diffusiongemma.cli.command import command
from diffusiongemma.errors import InputError

if TYPE_CHECKING:
    from diffusiongemma.text.questions import Decision, Decisions, Question

__all__ = ["decide", "parse_question"]

_TRUE, _FALSE = ("yes", "true"), ("no", "false")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")

Questions = Annotated[
    list[str] | None,
    typer.Option(
        "--question", "-q", metavar="NAME=OPTIONS[:TEXT]",
        help="May be given several times. OPTIONS: Yes/No or true/false, a range such as 1..5, or options such as red/green/blue; "
        "TEXT is put after the prompt, where it does not ask already.",
    ),
]  # fmt: skip
Template = Annotated[
    str | None,
    typer.Option(help="The answer's text with a slot {{NAME}} for each question; unset: the answer alone, or a line each."),
]


@command(only=("seed",))
def decide(
    *,
    prompt: Annotated[str | None, typer.Argument(help="The user's message; - or nothing on a pipe reads standard input.")] = None,
    question: Questions = None,
    joint: Annotated[bool, typer.Option("--joint", help="All questions on one canvas, where they depend on each other.")] = False,
    template: Template = None,
    threshold: Annotated[float, typer.Option(help="Least probability of an answer; a less sure question stays open.")] = 0.0,
    draws: Annotated[int, typer.Option(help="Draws of noise that the probabilities are the mean over.")] = 1,
    sampling: dict[str, Any],
    load: common.Load,
    json: bool,
) -> None:
    """Answer typed questions in one denoising pass: the probability of each allowed answer, and nothing else.

    Example: diffusiongemma decide "Is ice cold? (Answer Yes or No)" -q cold=Yes/No
    """
    questions = [parse_question(text) for text in question or []]
    text = common.prompt_text(prompt, 'diffusiongemma decide "..." -q name=Yes/No')
    result = load().decide(text, questions, joint=joint, template=template, threshold=threshold, draws=draws, **sampling)
    if json:
        common.print_json(result.to_dict())
    else:
        _show(result)


def parse_question(text: str) -> "Question":
    """A question as it is written on the command line.

    Args:
        text: ``name=Yes/No``, ``name=1..5`` or ``name=red/green``, and after a colon the words to ask with.

    Raises:
        InputError: it is none of these.
    """
    from diffusiongemma.text.questions import Choice, Predicate, Score

    name, equals, rest = text.partition("=")
    options, _, instructions = (part.strip() for part in rest.partition(":"))
    if not equals or not options:
        raise InputError(f"the question {text!r} is none; write NAME=Yes/No, NAME=1..5 or NAME=red/green, and :TEXT after it")
    name, texts = name.strip(), [option.strip() for option in options.split("/")]
    if result := _RANGE.fullmatch(options):
        return Score(name, int(result[1]), int(result[2]), instructions)
    if len(texts) == 2 and texts[0].lower() in _TRUE and texts[1].lower() in _FALSE:
        return Predicate(name, instructions, yes=texts[0], no=texts[1])
    return Choice(name, texts, instructions)


def _show(result: "Decisions") -> None:
    for decision in result.decisions:
        common.out.print(_line(decision), markup=False, soft_wrap=True)
    common.err.print(f"{result.rows} canvases in {result.passes} passes, {1000 * result.seconds:.0f} ms", style="dim")


def _line(decision: "Decision") -> str:
    """One line: the answer, its probability and the next likely ones."""
    ranked = sorted(decision.probabilities.items(), key=lambda pair: -pair[1])[:5]
    answer = "(open)" if decision.answer is None else decision.answer
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    mean = "" if decision.expectation is None else f", mean {decision.expectation:.2f}"
    shares = ", ".join(f"{text} {probability:.1%}" for text, probability in ranked)
    return f"{decision.name}: {answer} ({shares}{mean}; entropy {decision.entropy:.2f} nats)"
