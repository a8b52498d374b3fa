"""``diffusiongemma score``: how probable the causal role finds a text."""

from typing import Annotated

import typer

from diffusiongemma.cli import common
from diffusiongemma.cli.command import command

__all__ = ["score"]


@command(only=())
def score(
    *,
    text: Annotated[str, typer.Argument(help="The text; - reads standard input.")],
    prompt: Annotated[str | None, typer.Option("--prompt", help="The user's message that it answers; unset: plain text.")] = None,
    end: Annotated[bool, typer.Option("--end/--no-end", help="Whether the text is to end there.")] = True,
    load: common.Load,
    json: bool,
) -> None:
    """Say how probable a text is, token by token, by the causal role: one pass, no generation."""
    given = common.read_text("-") if text == "-" else text
    model = load()
    scored = model.score(prompt, given, end=end)
    if json:
        common.print_json(scored.to_dict())
        return
    from rich.text import Text

    from diffusiongemma.cli.display import entropy_colour

    picture = Text()
    for token, logprob in zip(scored.token_ids, scored.logprobs, strict=True):
        picture.append("■" if token in model.stop_ids else model.tokenizer.token_text(token), style=entropy_colour(-logprob))
    common.out.print(picture, soft_wrap=True)
    common.out.print(
        f"{len(scored.logprobs)} tokens, {scored.total:.2f} nats, confidence {scored.confidence:.4f}, "
        f"perplexity {scored.perplexity:.2f}"
    )
