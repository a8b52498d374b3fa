"""Server-sent events."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from diffusiongemma.server.errors import to_json

__all__ = ["DONE", "EventStream", "frame"]

DONE = b"data: [DONE]\n\n"


def frame(data: Any, event: str | None = None) -> bytes:
    """One event; without a name it is what OpenAI's clients read."""
    name = b"" if event is None else f"event: {event}\n".encode()
    return name + b"data: " + to_json(data) + b"\n\n"


class EventStream(StreamingResponse):
    """A stream of events that gives up its work when it ends, however it ends: also if the client is gone before it began."""

    def __init__(self, frames: AsyncIterator[bytes], close: Callable[[], None], media_type: str = "text/event-stream") -> None:
        # A proxy that collects the whole answer first would make a stream pointless.
        super().__init__(frames, media_type=media_type, headers={"X-Accel-Buffering": "no"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ``StreamingResponse``."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()
