"""What goes between this process and those that render chat templates."""

from collections.abc import Mapping
from typing import Any, TypedDict

__all__ = ["Reply", "Request"]


class Request(TypedDict):
    """What is asked of a template; sent as a pickle of builtin types.

    Attributes:
        source: the jinja text.
        variables: what it is rendered with; None: it is only compiled.
        seconds: of processor time, after which the rendering process ends itself.
    """

    source: str
    variables: Mapping[str, Any] | None
    seconds: float


class Reply(TypedDict, total=False):
    """What became of it; sent as JSON, since a pickle from there could do anything here.

    Attributes:
        variables: names the template takes from outside, where it was only compiled.
        text: the prompt.
        generated: where in it ``{% generation %}`` blocks stand, begin and end.
        error: ``compile``, ``refused``, or ``limit`` where it takes too much time or memory, or writes too much.
        message: what the template engine says of the error.
    """

    variables: list[str]
    text: str
    generated: list[tuple[int, int]]
    error: str
    message: str
