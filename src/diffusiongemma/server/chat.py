"""``/v1/chat/completions``."""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from diffusiongemma.constraints import Gone, ReplyGrammar
from diffusiongemma.engine.events import Commit, Result, TokenLogprob, ToolCall
from diffusiongemma.engine.request import Request
from diffusiongemma.options import REASONING_EFFORTS, PromptOptions
from diffusiongemma.server.answering import answer, answer_options, naming, prepared
from diffusiongemma.server.answers import chat_logprobs, checked, head
from diffusiongemma.server.dialects import Dialect
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.errors import ApiError
from diffusiongemma.server.protocol import ChatRequest, given
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.tools import MARK, Toolset, conversation

__all__ = ["ChatFormatter", "can_think", "chat", "requests"]


async def chat(
    http: HttpRequest, endpoint: ModelEndpoint, body: ChatRequest, settings: Settings, dialect: Dialect | None = None
) -> Response:
    """Answer a conversation, in OpenAI's dialect or another."""
    tools = Toolset.of(body, _native(endpoint))
    made = await prepared(http, endpoint, body, requests, endpoint, body, settings, tools)
    if _effort_means_nothing(endpoint, body):
        body.ignored.append("reasoning_effort")
    _note_left_out(body, made[0])
    formatter = ChatFormatter(endpoint, bool(body.logprobs), None if _native(endpoint) else tools)
    return await answer(http, endpoint, body, made, formatter, each=len(made), dialect=dialect)


def requests(
    endpoint: ModelEndpoint, body: ChatRequest, settings: Settings, tools: Toolset | None = None, gone: Gone | None = None
) -> list[Request]:
    """The requests of a conversation: one, or n."""
    options = answer_options(endpoint, body, settings)
    if body.max_completion_tokens is not None:
        if body.max_tokens is not None:
            raise ApiError(400, "max_tokens and max_completion_tokens are the same; give one", "max_tokens")
        options["max_tokens"] = body.max_completion_tokens
    if (body.n or 1) > settings.max_choices:
        raise ApiError(400, f"n is {body.n}; this server gives at most {settings.max_choices} answers", "n")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    options["room"] = endpoint.room
    options |= {name: value for name, value in given(body, PromptOptions).items() if name != "tools"}
    if _effort_means_nothing(endpoint, body):
        del options["reasoning_effort"]
    native = _native(endpoint)
    messages = conversation(body.messages, tools, native)
    with naming(body):
        if tools is not None:
            options["mode"] = "diffusion"
            options |= _called(tools, body) if native else tools.required_schema(endpoint.model.vocabulary, gone)
        return endpoint.model.requests(messages=messages, gone=gone, **options)


def _note_left_out(body: ChatRequest, request: Request) -> None:
    """Report what no grammar expresses of the parameters of tools.

    Raises:
        ApiError: a tool is strict.
    """
    calls = request.grammar.calls if isinstance(request.grammar, ReplyGrammar) else None
    left_out = () if calls is None else calls.left_out
    if left_out and any(tool.function.strict for tool in body.tools or ()):
        raise ApiError(400, f"a tool is strict, and no grammar expresses {', '.join(left_out)}; leave one of them out", "tools")
    body.ignored.extend(dict.fromkeys(f"tools.{each.split()[0]}" for each in left_out))


def _native(endpoint: ModelEndpoint) -> bool:
    """Whether the template declares tools itself, so that calls come in the model's own markup."""
    template = endpoint.model.tokenizer.template
    return template is not None and template.knows_tools and endpoint.model.tokenizer.markup.calls


def _called(tools: Toolset, body: ChatRequest) -> dict[str, Any]:
    """Tools in the model's own markup, as ``DiffusionGemmaModel.requests`` takes them."""
    choice = "required" if tools.required else "auto"
    return {"tools": tools.declared(), "tool_choice": choice, "parallel_tool_calls": body.parallel_tool_calls}


def _effort_means_nothing(endpoint: ModelEndpoint, body: ChatRequest) -> bool:
    """Whether thinking is asked for by ``reasoning_effort``, which clients send to any model, and the model cannot think."""
    return REASONING_EFFORTS.get(body.reasoning_effort or "", False) and not can_think(endpoint)


def can_think(endpoint: ModelEndpoint) -> bool:
    """Whether the model's template knows of thinking."""
    template = endpoint.model.tokenizer.template
    return template is not None and not template.options.isdisjoint(("enable_thinking", "reasoning_effort"))


class ChatFormatter:
    """OpenAI's ``chat.completion``.

    Args:
        endpoint: the model.
        logprobs: whether they were asked for.
        tools: what may be called in the JSON dialect; None: nothing, or calls come in the model's own markup.
    """

    def __init__(self, endpoint: ModelEndpoint, logprobs: bool = False, tools: Toolset | None = None) -> None:
        self._endpoint = endpoint
        self._logprobs = logprobs
        self._tools = tools
        self._held: dict[int, str] = {}
        self._called: dict[int, int] = {}
        self.head = head("chat.completion", "chatcmpl", endpoint)
        self.chunk = self.head | {"object": "chat.completion.chunk"}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The role."""
        return [_chunk(index, {"role": "assistant", "content": None if self._tools and self._tools.required else ""})]

    def delta(self, index: int, commit: Commit) -> list[dict[str, Any]]:
        """New thoughts, text and calls; what may become a call is held back until it is known."""
        result = [_chunk(index, {"reasoning_content": commit.thinking})] if commit.thinking else []
        text = commit.text
        if self._tools is not None:
            text = self._held.pop(index, "") + text
            if self._tools.required or MARK.startswith(text[: len(MARK)]):
                self._held[index], text = text, ""
        logprobs = chat_logprobs(self._endpoint, commit.logprobs) if self._logprobs else None
        if text or (logprobs and logprobs["content"]):
            result.append(_chunk(index, {"content": text}, logprobs))
        return [*result, *self._call_chunks(index, [_spelled(call) for call in commit.tool_calls])]

    def closing(self, index: int, result: Result) -> list[dict[str, Any]]:
        """The reason why it ended, after the calls of the JSON dialect."""
        calls = self._read(result)
        held = self._held.pop(index, "")
        before = [_chunk(index, {"content": held})] if held and not calls else []
        if calls:
            before = [_chunk(index, {"tool_calls": [{"index": place} | call for place, call in enumerate(calls)]})]
        return [*before, _chunk(index, {}, finish=_finish(result, calls)) | {"stop_reason": result.stop_string} | checked(result)]

    def choice(self, index: int, result: Result, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """A whole answer; ``token_ids``, ``reasoning_content`` and ``stop_reason`` (the stop string) are extensions."""
        read = self._read(result)
        calls = read or [_spelled(call) for call in result.tool_calls]
        text = "" if read else result.text
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if self._endpoint.model.tokenizer.markup.thoughts:
            message["reasoning_content"] = result.thinking
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(self._endpoint, logprobs) if self._logprobs else None,
            "finish_reason": _finish(result, read),
            "stop_reason": result.stop_string,
            "token_ids": result.token_ids,
            **checked(result),
        }

    def _call_chunks(self, index: int, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each call in two chunks: its name, then its arguments."""
        result = []
        for call in calls:
            place = self._called.get(index, 0)
            self._called[index] = place + 1
            name = {"name": call["function"]["name"], "arguments": ""}
            result.append(_chunk(index, {"tool_calls": [{"index": place, **call, "function": name}]}))
            arguments = {"arguments": call["function"]["arguments"]}
            result.append(_chunk(index, {"tool_calls": [{"index": place, "function": arguments}]}))
        return result

    def _read(self, result: Result) -> list[dict[str, Any]]:
        """Calls in the JSON dialect. An answer that was cut is no call: its text is shown as it is."""
        return (self._tools.read(result.text) or []) if self._tools is not None and result.finish_reason == "stop" else []


def _spelled(call: ToolCall) -> dict[str, Any]:
    """A call in OpenAI's shape."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _finish(result: Result, read: Sequence[dict[str, Any]]) -> str:
    """An answer that was cut after a whole call says so."""
    return "tool_calls" if result.finish_reason == "stop" and (read or result.tool_calls) else result.finish_reason


def _chunk(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
