"""How other protocols than OpenAI's chat spell its answers: each is a translation of the answer, and of a stream's chunks.

The core answers a ``ChatRequest``, as a whole or in chunks of one choice; a dialect makes of them what its clients read. But for
OpenAI's all of them have one answer a request.
"""

import json
from typing import Any, ClassVar, Protocol

from diffusiongemma.server.errors import ApiError
from diffusiongemma.server.ignored import as_field
from diffusiongemma.server.protocol import Generation
from diffusiongemma.server.sse import DONE, frame

__all__ = ["Dialect", "OpenAIDialect", "Pieces"]


class Dialect(Protocol):
    """How a protocol spells an answer; one instance a request."""

    media_type: ClassVar[str]
    """Of a stream."""

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The body for a whole ``chat.completion``."""

    def opening(self, prompt_tokens: int) -> list[bytes]:
        """What a stream begins with."""

    def chunk(self, choice: dict[str, Any]) -> list[bytes]:
        """What becomes of a choice of a chunk."""

    def ending(self, usage: dict[str, Any]) -> list[bytes]:
        """What a stream ends with."""

    def error(self, error: ApiError) -> bytes:
        """What a stream ends with that went wrong."""


class OpenAIDialect:
    """OpenAI's own.

    Args:
        first: first fields of a chunk.
        body: what was asked: whether the usage comes in a chunk of its own, and what is reported beside it.
    """

    media_type: ClassVar[str] = "text/event-stream"

    def __init__(self, first: dict[str, Any], body: Generation) -> None:
        self._with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._first, self._more = first | ({"usage": None} if self._with_usage else {}), as_field(body)

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer as it is."""
        return answer

    def opening(self, prompt_tokens: int) -> list[bytes]:
        """Nothing."""
        return []

    def chunk(self, choice: dict[str, Any]) -> list[bytes]:
        """A chunk of this choice."""
        return [frame(self._first | {"choices": [choice]})]

    def ending(self, usage: dict[str, Any]) -> list[bytes]:
        """The usage, and the mark of the end."""
        return [*([frame(self._first | {"choices": [], "usage": usage} | self._more)] if self._with_usage else []), DONE]

    def error(self, error: ApiError) -> bytes:
        """The error as an event."""
        return frame(error.body)


class Pieces:
    """A chat's answer as other protocols have it: a row of pieces, each thoughts, text or a call.

    Attributes:
        kinds: ``"thinking"``, ``"text"`` or ``"call"`` of each.
        texts: of each; of a call its arguments as JSON.
        calls: id and name of each call, None for the others.
        finish: OpenAI's reason for the end; None: not yet.
        ended: the stop string that ended it; None: none did.
    """

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.texts: list[str] = []
        self.calls: list[tuple[str, str] | None] = []
        self.finish: str | None = None
        self.ended: str | None = None

    @classmethod
    def of(cls, answer: dict[str, Any]) -> "Pieces":
        """Of a whole ``chat.completion``."""
        result, [choice] = cls(), answer["choices"]
        message = choice["message"]
        result.push({"delta": message})
        result.finish, result.ended = choice["finish_reason"], choice.get("stop_reason")
        return result

    def push(self, choice: dict[str, Any]) -> list[tuple[int, bool, str]]:
        """Add a choice of a chunk.

        Returns:
            What it adds, in order: the place of the piece, whether that is a new one, and what is new of its text.
        """
        delta, result = choice["delta"], []
        for kind, name in (("thinking", "reasoning_content"), ("text", "content")):
            if delta.get(name):
                result.append(self._add(kind, delta[name]))
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            if "id" in call:
                result.append(self._add("call", function.get("arguments", ""), (call["id"], function["name"])))
            else:
                result.append(self._add("call", function["arguments"]))
        if choice.get("finish_reason") is not None:
            self.finish, self.ended = choice["finish_reason"], choice.get("stop_reason")
        return result

    def arguments(self, at: int) -> Any:
        """The arguments of a call."""
        return json.loads(self.texts[at] or "{}")

    def _add(self, kind: str, text: str, call: tuple[str, str] | None = None) -> tuple[int, bool, str]:
        new = call is not None or not self.kinds or self.kinds[-1] != kind
        if new:
            self.kinds.append(kind)
            self.texts.append("")
            self.calls.append(call)
        self.texts[-1] += text
        return len(self.kinds) - 1, new, text
