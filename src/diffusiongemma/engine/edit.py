"""A text written over: its canvases begin with what is there instead of noise."""

from diffusiongemma.engine.events import Result
from diffusiongemma.engine.frame import Frame, OnEvent, write_rows
from diffusiongemma.errors import InputError

__all__ = ["edit_text"]


def edit_text(frame: Frame, text: str, grow: bool, on_event: OnEvent | None = None) -> Result:
    """Denoise canvases that begin with a text, ended and padded.

    Args:
        frame: what the text stands in; its ``max_tokens`` is the most the answer may have.
        text: to start from.
        grow: let the answer have room for the text and a canvas more, where ``max_tokens`` is less.
        on_event: called with each event.

    Raises:
        InputError: the text is longer than the answer may be.
    """
    ids, canvas = frame.encode(text), frame.canvas
    start = frame.closed(ids, -(-(len(ids) + 1) // canvas) * canvas)
    most = max(frame.params.max_tokens, len(start) + canvas) if grow else frame.params.max_tokens
    if len(ids) > most:
        raise InputError(f"the text has {len(ids)} tokens and max_tokens is {most}; raise it")
    return write_rows(frame, [frame.prompt], None, [frame.params.seed], [start[:most]], [most], on_event)[0]
