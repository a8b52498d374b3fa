"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's protocol, over a chat.

Source: https://docs.anthropic.com/en/api/messages, as the clients of 2026 speak it.
"""

import secrets
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request as HttpRequest
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from diffusiongemma.server import chat
from diffusiongemma.server.dialects import Pieces
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.errors import ApiError, JSONAnswer
from diffusiongemma.server.protocol import Body, ChatRequest, Flag, Label, OtherPart, Positive, Text, Whole, translated
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.sse import frame

__all__ = ["CountRequest", "MessagesRequest", "count_tokens", "messages"]

_STOPS = {"stop": "end_turn", "length": "max_tokens", "invalid": "end_turn", "tool_calls": "tool_use"}


class TextBlock(Body):
    """Text."""

    type: Literal["text"]
    text: Text


class ThinkingBlock(Body):
    """What the model thought; the signature says nothing here."""

    type: Literal["thinking"]
    thinking: Text
    signature: Text | None = None


class ToolUseBlock(Body):
    """A call."""

    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any]


class ToolResultBlock(Body):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: Text
    content: Text | Annotated[list[TextBlock | OtherPart], Field(max_length=4096, fail_fast=True)] | None = None
    is_error: Flag | None = None


def _kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if kind in ("text", "thinking", "tool_use", "tool_result") else "other"


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[OtherPart, Tag("other")],
    Discriminator(_kind),
]


class AnthropicMessage(Body):
    """A turn."""

    role: Literal["user", "assistant", "system"]
    content: Text | Annotated[list[Block], Field(max_length=4096, fail_fast=True)]


class AnthropicTool(Body):
    """A tool of the client; there are no others."""

    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    input_schema: dict[str, Any]
    description: Text | None = None
    type: Literal["custom"] | None = None


class AnthropicChoice(Body):
    """Which tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: Flag | None = None


class Thinking(Body):
    """Whether the model thinks, and how much."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Whole | None = None


class CountRequest(Body):
    """``/v1/messages/count_tokens``."""

    model: Text | None = None
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    system: Text | Annotated[list[TextBlock], Field(max_length=4096, fail_fast=True)] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest):
    """``/v1/messages``."""

    max_tokens: Positive
    stop_sequences: Annotated[list[Label], Field(max_length=16, fail_fast=True)] | None = None
    stream: Flag | None = None
    temperature: Any = None
    top_p: Any = None
    top_k: Any = None


async def messages(http: HttpRequest, endpoint: ModelEndpoint, body: MessagesRequest, settings: Settings) -> Response:
    """Answer a conversation."""
    asked = _chat(endpoint, body) | {
        "max_tokens": body.max_tokens, "stop": body.stop_sequences or None, "stream": body.stream,
        "temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k,
    }  # fmt: skip
    return await chat.chat(http, endpoint, translated(ChatRequest, asked, body), settings, AnthropicDialect(endpoint.name))


async def count_tokens(endpoint: ModelEndpoint, body: CountRequest, settings: Settings) -> Response:
    """How long the prompt of a conversation is."""
    asked = translated(ChatRequest, _chat(endpoint, body), body)
    [request] = await endpoint.prepare(chat.requests, endpoint, asked, settings)
    return JSONAnswer({"input_tokens": len(request.prompt)})


def _chat(endpoint: ModelEndpoint, body: CountRequest) -> dict[str, Any]:
    """The same conversation as a ``ChatRequest``."""
    said: list[dict[str, Any]] = []
    if body.system:
        text = body.system if isinstance(body.system, str) else "\n".join(block.text for block in body.system)
        said.append({"role": "system", "content": text})
    for place, message in enumerate(body.messages):
        said += [{"role": message.role, "content": message.content}] if isinstance(message.content, str) else _turn(message, place)
    result: dict[str, Any] = {"messages": said}
    if body.tools:
        result["tools"] = [
            {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}}
            for tool in body.tools
        ]
    if (choice := body.tool_choice) is not None:
        if choice.type == "tool":
            result["tool_choice"] = {"type": "function", "function": {"name": choice.name or ""}}
        else:
            result["tool_choice"] = "required" if choice.type == "any" else choice.type
        if choice.disable_parallel_tool_use is not None:
            result["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if body.thinking is not None:
        on = body.thinking.type != "disabled"
        result["reasoning_effort"] = "medium" if on else "none"
        if on and body.thinking.budget_tokens is not None and chat.can_think(endpoint):
            result["thinking_budget"] = body.thinking.budget_tokens
    return result


def _turn(message: AnthropicMessage, place: int) -> list[dict[str, Any]]:
    """The messages that a turn of blocks becomes: results of calls come first, each alone."""
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thoughts = ""
    for at, block in enumerate(message.content):
        if isinstance(block, ToolResultBlock) and message.role == "user":
            content = block.content or ""
            given = content if isinstance(content, str) else [part.model_dump(exclude_none=True) for part in content]
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": given})
        elif isinstance(block, ToolUseBlock) and message.role == "assistant":
            calls.append({"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}})
        elif isinstance(block, ThinkingBlock) and message.role == "assistant":
            thoughts += block.thinking
        elif isinstance(block, TextBlock | OtherPart):
            parts.append({"type": "text", "text": block.text} if isinstance(block, TextBlock) else {"type": block.type})
        else:
            where = f"messages[{place}].content[{at}]"
            kind = getattr(block, "type", "text")
            raise ApiError(400, f"{where} is a {kind}, which a message of role {message.role} cannot have", where)
    result: dict[str, Any] = {"role": message.role}
    if message.role == "assistant":
        text = "".join(part.get("text", "") for part in parts) or None
        result |= {"content": text, "tool_calls": calls or None, "reasoning_content": thoughts or None}
        return [result] if text or calls else [result | {"content": ""}]
    return [*results, *([result | {"content": parts}] if parts or not results else [])]


class AnthropicDialect:
    """Anthropic's ``message``.

    Args:
        model: its name.
    """

    media_type: ClassVar[str] = "text/event-stream"

    def __init__(self, model: str) -> None:
        self._pieces = Pieces()
        self._first: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model, "content": [],
            "stop_reason": None, "stop_sequence": None,
        }  # fmt: skip

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The whole message."""
        pieces = self._pieces = Pieces.of(answer)
        content = [self._block(at) for at in range(len(pieces.kinds))]
        more = {"ignored": answer["ignored"]} if "ignored" in answer else {}
        return self._first | {"content": content, **self._end(), "usage": _usage(answer["usage"])} | more

    def opening(self, prompt_tokens: int) -> list[bytes]:
        """``message_start``."""
        usage = {"input_tokens": prompt_tokens, "output_tokens": 0}
        return [_event("message_start", message=self._first | {"usage": usage})]

    def chunk(self, choice: dict[str, Any]) -> list[bytes]:
        """Blocks begin, grow and end."""
        result = []
        for at, new, text in self._pieces.push(choice):
            if new:
                if at > 0:
                    result.append(_event("content_block_stop", index=at - 1))
                result.append(_event("content_block_start", index=at, content_block=self._block(at, begun=True)))
            if text:
                name, field = _DELTAS[self._pieces.kinds[at]]
                result.append(_event("content_block_delta", index=at, delta={"type": name, field: text}))
        return result

    def ending(self, usage: dict[str, Any]) -> list[bytes]:
        """The last block's end, ``message_delta`` and ``message_stop``."""
        last = len(self._pieces.kinds) - 1
        closed = [_event("content_block_stop", index=last)] if last >= 0 else []
        return [*closed, _event("message_delta", delta=self._end(), usage=_usage(usage)), _event("message_stop")]

    def error(self, error: ApiError) -> bytes:
        """``error``."""
        return frame(error.body, "error")

    def _block(self, at: int, begun: bool = False) -> dict[str, Any]:
        kind, text, call = self._pieces.kinds[at], "" if begun else self._pieces.texts[at], self._pieces.calls[at]
        if call is not None:
            return {"type": "tool_use", "id": call[0], "name": call[1], "input": {} if begun else self._pieces.arguments(at)}
        return {"type": "thinking", "thinking": text, "signature": ""} if kind == "thinking" else {"type": "text", "text": text}

    def _end(self) -> dict[str, Any]:
        ended = self._pieces.ended
        reason = "stop_sequence" if ended is not None else _STOPS[self._pieces.finish or "stop"]
        return {"stop_reason": reason, "stop_sequence": ended}


_DELTAS = {"thinking": ("thinking_delta", "thinking"), "text": ("text_delta", "text"), "call": ("input_json_delta", "partial_json")}


def _event(kind: str, **fields: Any) -> bytes:
    return frame({"type": kind, **fields}, kind)


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"], "diffusion": usage["diffusion"],
    }  # fmt: skip
