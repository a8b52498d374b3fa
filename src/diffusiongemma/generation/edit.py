"""A text written over: its canvases begin with what is there instead of noise."""

from diffusiongemma.engine.events import Result
from diffusiongemma.errors import InputError
from diffusiongemma.generation.context import EditContext, OnEvent, write_rows

__all__ = ["edit_text"]


def edit_text(context: EditContext, text: str, grow: bool, on_event: OnEvent | None = None) -> Result:
    """Denoise canvases that begin with a text, ended and padded.

    Args:
        context: what the text stands in; its ``max_tokens`` is the most the answer may have.
        text: to start from.
        grow: let the answer have room for the text and a canvas more, where ``max_tokens`` is less.
        on_event: called with each event.

    Raises:
        InputError: the text is longer than the answer may be.
    """
    ids, canvas = context.encode(text), context.canvas
    start = context.closed(ids, -(-(len(ids) + 1) // canvas) * canvas)
    max_tokens = max(context.params.max_tokens, len(start) + canvas) if grow else context.params.max_tokens
    if len(ids) > max_tokens:
        raise InputError(f"the text has {len(ids)} tokens and max_tokens is {max_tokens}; raise it")
    return write_rows(context, [context.prompt], None, [context.params.seed], [start[:max_tokens]], [max_tokens], on_event)[0]
