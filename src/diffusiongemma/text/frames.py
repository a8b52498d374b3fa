"""What goes between this process and those that render chat templates: 8 bytes of length and the content, either way."""

from collections.abc import Mapping
from typing import Any, BinaryIO, TypedDict

__all__ = ["OUT_OF_MEMORY", "Reply", "Request", "read_frame", "write_frame"]

OUT_OF_MEMORY = 99
"""Status with which a rendering process ends that has taken all it may."""
_LENGTH = 8


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


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame; None where the other side has ended."""
    head = stream.read(_LENGTH)
    if len(head) < _LENGTH:
        return None
    size = int.from_bytes(head, "big")
    content = stream.read(size)
    return content if len(content) == size else None


def write_frame(stream: BinaryIO, content: bytes) -> None:
    """Send a frame."""
    stream.write(len(content).to_bytes(_LENGTH, "big") + content)
    stream.flush()
