"""``/v1/chat/completions``."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from diffusiongemma.engine.events import Commit, Result, TokenLogprob
from diffusiongemma.engine.request import Request
from diffusiongemma.server.answering import answer, answer_options, constrained, naming
from diffusiongemma.server.answers import chat_logprobs, head
from diffusiongemma.server.errors import ApiError
from diffusiongemma.server.protocol import ChatRequest
from diffusiongemma.server.served import Served
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.tools import MARK, Toolset, conversation

__all__ = ["ChatShape", "chat"]


async def chat(http: HttpRequest, served: Served, body: ChatRequest, settings: Settings) -> Response:
    """Answer a conversation."""
    tools = Toolset.of(body)
    prepare = served.compile if constrained(body) else served.prepare
    requests = await prepare(_requests, served, body, settings, tools)
    return await answer(http, served, body, requests, ChatShape(served, bool(body.logprobs), tools), each=len(requests))


def _requests(served: Served, body: ChatRequest, settings: Settings, tools: Toolset | None) -> list[Request]:
    options = answer_options(served, body, settings)
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
    messages = conversation(body.messages, tools)
    with naming(body):
        if tools is not None:
            options |= tools.held_to(served.model.vocabulary)
        return served.model.requests(messages=messages, **options)


class ChatShape:
    """OpenAI's ``chat.completion``.

    Args:
        served: the model.
        logprobs: whether they were asked for.
        tools: what may be called.
    """

    def __init__(self, served: Served, logprobs: bool = False, tools: Toolset | None = None) -> None:
        self._served = served
        self._logprobs = logprobs
        self._tools = tools
        self._held: dict[int, str] = {}
        self.head = head("chat.completion", "chatcmpl", served)
        self.chunk = self.head | {"object": "chat.completion.chunk"}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The role."""
        return [_chunk(index, {"role": "assistant", "content": None if self._tools and self._tools.forced else ""})]

    def delta(self, index: int, commit: Commit) -> list[dict[str, Any]]:
        """New text; what may become a call is held back until it is known."""
        text = commit.text
        if self._tools is not None:
            text = self._held.pop(index, "") + text
            if self._tools.forced or MARK.startswith(text[: len(MARK)]):
                self._held[index] = text
                return []
        logprobs = chat_logprobs(self._served, commit.logprobs) if self._logprobs else None
        return [_chunk(index, {"content": text}, logprobs)] if text or (logprobs and logprobs["content"]) else []

    def closing(self, index: int, result: Result) -> list[dict[str, Any]]:
        """The reason why it ended, behind the calls."""
        calls = self._calls(result)
        held = self._held.pop(index, "")
        before = [_chunk(index, {"content": held})] if held and calls is None else []
        if calls is not None:
            before = [_chunk(index, {"tool_calls": [{"index": place} | call for place, call in enumerate(calls)]})]
        return [*before, _chunk(index, {}, finish="tool_calls" if calls else result.finish_reason)]

    def choice(self, index: int, result: Result, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """A whole answer; ``token_ids`` is an extension."""
        calls = self._calls(result)
        message: dict[str, Any] = {"role": "assistant", "content": result.text if calls is None else None, "refusal": None}
        if calls is not None:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(self._served, logprobs) if self._logprobs else None,
            "finish_reason": "tool_calls" if calls else result.finish_reason,
            "token_ids": result.token_ids,
        }

    def _calls(self, result: Result) -> list[dict[str, Any]] | None:
        """An answer that was cut is no call: its text is shown as it is."""
        return self._tools.read(result.text) if self._tools is not None and result.finish_reason == "stop" else None


def _chunk(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
