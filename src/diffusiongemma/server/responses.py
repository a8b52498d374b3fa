"""``/v1/responses``: OpenAI's newer protocol, over a chat. Nothing is stored, so that no answer can be gone on with by its id.

Source: https://platform.openai.com/docs/api-reference/responses, as the clients of 2026 speak it.
"""

import secrets
import time
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request as HttpRequest
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from diffusiongemma.server import chat
from diffusiongemma.server.dialects import Pieces
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.errors import ApiError
from diffusiongemma.server.protocol import (
    Body,
    ChatRequest,
    Flag,
    InputPart,
    OtherPart,
    OutputPart,
    Positive,
    Text,
    Whole,
    translated,
)
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.sse import frame

__all__ = ["ResponsesRequest", "respond"]


class InputMessage(Body):
    """A turn."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | Annotated[list[InputPart | OutputPart | OtherPart], Field(max_length=4096, fail_fast=True)]


class InputCall(Body):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text


class InputResult(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Text | Annotated[list[InputPart | OtherPart], Field(max_length=4096, fail_fast=True)]


class ReasoningText(Body):
    """A part of thoughts."""

    type: Text
    text: Text


class InputThoughts(Body):
    """What the model thought."""

    type: Literal["reasoning"]
    content: Annotated[list[ReasoningText], Field(max_length=4096, fail_fast=True)] | None = None


def _kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if kind in ("function_call", "function_call_output", "reasoning") else "message"


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputResult, Tag("function_call_output")]
    | Annotated[InputThoughts, Tag("reasoning")],
    Discriminator(_kind),
]


class ResponseTool(Body):
    """A function; OpenAI's own tools (web search, ...) are not here."""

    type: Literal["function"]
    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None


class ToolNamed(Body):
    """A call of one tool and no other."""

    type: Literal["function"]
    name: Text


class Format(Body):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    schema_: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None
    description: Text | None = None
    strict: Flag | None = None


class TextOptions(Body):
    """Of the answer's text."""

    format: Format | None = None


class Reasoning(Body):
    """How much the model thinks."""

    effort: Text | None = None


class ResponsesRequest(Body):
    """``/v1/responses``."""

    model: Text | None = None
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=4096, fail_fast=True)]
    instructions: Text | None = None
    max_output_tokens: Positive | None = None
    temperature: Any = None
    top_p: Any = None
    seed: Whole | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolNamed | None = None
    parallel_tool_calls: Flag | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    stream: Flag | None = None
    previous_response_id: Text | None = None
    background: Flag | None = None


async def respond(http: HttpRequest, endpoint: ModelEndpoint, body: ResponsesRequest, settings: Settings) -> Response:
    """Answer."""
    for name, how in (("previous_response_id", "send the whole conversation as input"), ("background", "wait, or stream")):
        if getattr(body, name):
            raise ApiError(400, f"{name} is given, and this server keeps no answers; leave it out, and {how}", name)
    return await chat.chat(
        http, endpoint, translated(ChatRequest, _chat(body), body), settings, ResponsesDialect(endpoint.name, body)
    )


def _chat(body: ResponsesRequest) -> dict[str, Any]:
    """The same as a ``ChatRequest``."""
    said: list[dict[str, Any]] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        said.append({"role": "user", "content": body.input})
    else:
        _converse(body.input, said)
    result: dict[str, Any] = {
        "messages": said, "max_tokens": body.max_output_tokens, "temperature": body.temperature, "top_p": body.top_p,
        "seed": body.seed, "stream": body.stream, "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
    }  # fmt: skip
    if body.tools:
        dumped = [tool.model_dump(exclude_none=True, exclude={"type"}) for tool in body.tools]
        result["tools"] = [{"type": "function", "function": tool} for tool in dumped]
    if isinstance(body.tool_choice, ToolNamed):
        result["tool_choice"] = {"type": "function", "function": {"name": body.tool_choice.name}}
    else:
        result["tool_choice"] = body.tool_choice
    if body.text is not None and (form := body.text.format) is not None:
        result["response_format"] = {"type": form.type}
        if form.type == "json_schema":
            if form.schema_ is None:
                raise ApiError(400, "text.format is a json_schema and has no schema", "text.format.schema", "missing_field")
            result["response_format"]["json_schema"] = {"schema": form.schema_, "name": form.name}
    return result


def _converse(items: list[Item], said: list[dict[str, Any]]) -> None:
    """Add the messages of items: thoughts and calls belong to the assistant's message they stand beside."""
    for item in items:
        own = said[-1] if said and said[-1]["role"] == "assistant" else None
        if isinstance(item, InputResult):
            said.append({"role": "tool", "tool_call_id": item.call_id, "content": _parts(item.output)})
        elif isinstance(item, InputMessage):
            if item.role == "assistant" and own is not None and own["content"] is None and "tool_calls" not in own:
                own["content"] = _parts(item.content)
            else:
                said.append({"role": item.role, "content": _parts(item.content)})
        else:
            if own is None or (isinstance(item, InputThoughts) and (own["content"] is not None or "tool_calls" in own)):
                own = {"role": "assistant", "content": None}
                said.append(own)
            if isinstance(item, InputCall):
                function = {"name": item.name, "arguments": item.arguments}
                own.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
            else:
                own["reasoning_content"] = "".join(part.text for part in item.content or ()) or None
    # Thoughts of which no message followed are nobody's.
    said[:] = [one for one in said if one["role"] != "assistant" or one["content"] is not None or "tool_calls" in one]


def _parts(content: str | list[Any]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [{"type": part.type} if isinstance(part, OtherPart) else {"type": "text", "text": part.text} for part in content]


class ResponsesDialect:
    """OpenAI's ``response``.

    Args:
        model: its name.
        body: of the request, parts of which the answer repeats.
    """

    media_type: ClassVar[str] = "text/event-stream"

    def __init__(self, model: str, body: ResponsesRequest) -> None:
        self._pieces, self._ids, self._number = Pieces(), list[str](), 0
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
        form = {"type": "text"} if body.text is None or body.text.format is None else body.text.format.model_dump(by_alias=True)
        self._first: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time()), "model": model,
            "status": "in_progress", "error": None, "incomplete_details": None, "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens, "metadata": {}, "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False, "previous_response_id": None,
            "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
            "store": False, "temperature": body.temperature, "text": {"format": form},
            "tool_choice": body.tool_choice.model_dump() if isinstance(body.tool_choice, ToolNamed) else body.tool_choice or "auto",
            "tools": tools, "top_p": body.top_p, "truncation": "disabled", "usage": None,
        }  # fmt: skip

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The whole response."""
        self._pieces = Pieces.of(answer)
        more: dict[str, Any] = {"ignored": answer["ignored"]} if "ignored" in answer else {}
        return self._ended(answer["usage"]) | more

    def opening(self, prompt_tokens: int) -> list[bytes]:
        """``response.created`` and ``response.in_progress``."""
        return [self._event("response.created", response=self._first), self._event("response.in_progress", response=self._first)]

    def chunk(self, choice: dict[str, Any]) -> list[bytes]:
        """Items begin, grow and end."""
        result: list[bytes] = []
        for at, new, text in self._pieces.push(choice):
            if new:
                if at > 0:
                    result += self._closed(at - 1)
                result.append(self._event("response.output_item.added", output_index=at, item=self._item(at, begun=True)))
                if self._pieces.kinds[at] == "text":
                    result.append(self._event("response.content_part.added", part=_text(""), **self._at(at)))
            if text:
                kind = _DELTAS[self._pieces.kinds[at]]
                more: dict[str, Any] = {"logprobs": []} if self._pieces.kinds[at] == "text" else {}
                result.append(self._event(f"{kind}.delta", delta=text, **self._at(at), **more))
        return result

    def ending(self, usage: dict[str, Any]) -> list[bytes]:
        """The last item's end, and the whole response."""
        closed = self._closed(len(self._pieces.kinds) - 1) if self._pieces.kinds else []
        response = self._ended(usage)
        return [*closed, self._event(f"response.{response['status']}", response=response)]

    def error(self, error: ApiError) -> bytes:
        """``error``."""
        return self._event("error", code=error.code, message=str(error), param=error.param)

    def _closed(self, at: int) -> list[bytes]:
        kind, text, place = self._pieces.kinds[at], self._pieces.texts[at], self._at(at)
        name = {"call": "arguments"}.get(kind, "text")
        more: dict[str, Any] = {"logprobs": []} if kind == "text" else {}
        result = [self._event(f"{_DELTAS[kind]}.done", **{name: text}, **place, **more)]
        if kind == "text":
            result.append(self._event("response.content_part.done", part=_text(text), **place))
        return [*result, self._event("response.output_item.done", output_index=at, item=self._item(at))]

    def _at(self, at: int) -> dict[str, Any]:
        inside = {} if self._pieces.kinds[at] == "call" else {"content_index": 0}
        return {"item_id": self._item(at)["id"], "output_index": at, **inside}

    def _item(self, at: int, begun: bool = False) -> dict[str, Any]:
        kind, text, call = self._pieces.kinds[at], "" if begun else self._pieces.texts[at], self._pieces.calls[at]
        while len(self._ids) <= at:
            self._ids.append(secrets.token_hex(12))
        name, status = self._ids[at], "in_progress" if begun else "completed"
        if call is not None:
            return {"type": "function_call", "id": f"fc_{name}", "call_id": call[0], "name": call[1], "arguments": text,
                    "status": status}  # fmt: skip
        if kind == "thinking":
            content = [] if begun else [{"type": "reasoning_text", "text": text}]
            return {"type": "reasoning", "id": f"rs_{name}", "summary": [], "content": content, "status": status}
        content = [] if begun else [_text(text)]
        return {"type": "message", "id": f"msg_{name}", "role": "assistant", "content": content, "status": status}

    def _ended(self, usage: dict[str, Any]) -> dict[str, Any]:
        cut = {"length": "max_output_tokens", "invalid": "invalid"}.get(self._pieces.finish or "stop")
        reasoning = usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
        return self._first | {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": cut} if cut else None,
            "output": [self._item(at) for at in range(len(self._pieces.kinds))],
            "usage": {
                "input_tokens": usage["prompt_tokens"], "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": reasoning},
                "total_tokens": usage["total_tokens"], "diffusion": usage["diffusion"],
            },
        }  # fmt: skip

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return frame({"type": kind, "sequence_number": number, **fields}, kind)


_DELTAS = {
    "thinking": "response.reasoning_text", "text": "response.output_text", "call": "response.function_call_arguments",
}  # fmt: skip


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
