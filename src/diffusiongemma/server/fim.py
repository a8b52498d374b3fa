"""Texts that are there already: infilling, and ``/v1/edit/completions``. Both run in a thread, through the shared engine."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.blocking import BlockingClient
from diffusiongemma.engine.events import Event, Result
from diffusiongemma.generation.fill import Filled
from diffusiongemma.server.answering import check_stream
from diffusiongemma.server.answers import Canvases, head, usage
from diffusiongemma.server.bridge import EventBridge, Returned, Work, unless_gone
from diffusiongemma.server.dialects import Dialect, OpenAIDialect
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.errors import ApiError, JSONAnswer, from_exception
from diffusiongemma.server.ignored import as_field
from diffusiongemma.server.protocol import CompletionRequest, EditRequest, Generation, given, text_of
from diffusiongemma.server.security import client_name
from diffusiongemma.server.sse import EventStream, frame

__all__ = ["edit", "infill"]

_CODE, _CODE_END, _CURSOR = "<|code_to_edit|>", "<|/code_to_edit|>", "<|cursor|>"
OnEvent = Callable[[Event], None]
Spelled = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
"""The choice of a whole answer, the same as a chunk's, and the usage."""


async def infill(
    http: HttpRequest, endpoint: ModelEndpoint, body: CompletionRequest, prompt: str, suffix: str, dialect: Dialect | None = None
) -> Response:
    """Write what stands between two texts; ``max_tokens`` is the longest hole that is tried."""
    options = _options(body)
    ends = options.pop("stop", ())

    def work(on_event: OnEvent, client: BlockingClient) -> Filled:
        model = endpoint.model.with_engine(client)
        return model.infill(prompt, suffix, on_event=on_event if body.diffusing else None, **options)

    def spell(filled: Filled) -> Spelled:
        text = filled.spans["span"]
        text = text[: min((at for stop in ends if (at := text.find(stop)) >= 0), default=None)]
        tokens = endpoint.model.tokenizer.encode(text, allow_special=False)
        given = len(endpoint.plain(prompt)) + len(endpoint.model.tokenizer.encode(suffix, allow_special=False))
        counts = {
            "prompt_tokens": given,
            "completion_tokens": len(tokens),
            "total_tokens": given + len(tokens),
            "diffusion": {"denoising_steps": filled.tried[0].steps, "fitting": len(filled.tried)},
        }
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
        return choice | {"token_ids": tokens}, choice, counts

    return await _answer(http, endpoint, body, work, spell, head("text_completion", "cmpl", endpoint), None, dialect)


async def edit(http: HttpRequest, endpoint: ModelEndpoint, body: EditRequest) -> Response:
    """Rewrite a text as an instruction says."""
    text, instruction, in_prompt = _to_edit(body)
    options = _options(body)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens are the same; give one", "max_tokens")
    options["max_tokens"] = body.max_tokens or body.max_completion_tokens

    def work(on_event: OnEvent, client: BlockingClient) -> Result:
        model = endpoint.model.with_engine(client)
        shown = on_event if body.diffusing else None
        return model.edit(text, instruction, in_prompt=in_prompt, on_event=shown, **options)

    def spell(result: Result) -> Spelled:
        message = {"role": "assistant", "content": result.text}
        ended = {"logprobs": None, "finish_reason": result.finish_reason}
        whole = {"index": 0, "message": message | {"refusal": None}, **ended, "token_ids": result.token_ids}
        return whole, {"index": 0, "delta": message, **ended}, usage([result])

    return await _answer(http, endpoint, body, work, spell, head("chat.completion", "edit", endpoint), "chat.completion.chunk")


async def _answer(
    http: HttpRequest,
    endpoint: ModelEndpoint,
    body: Generation,
    work: Work,
    spell: Callable[[Any], Spelled],
    first: dict[str, Any],
    chunk: str | None,
    dialect: Dialect | None = None,
) -> Response:
    """Run work and spell its result, whole or as a stream of one chunk after the canvases.

    Args:
        http: to notice that the client goes away.
        endpoint: the model.
        body: for ``stream``, ``diffusing`` and ``stream_options``.
        work: see ``Work``.
        spell: from its result to the answer.
        first: first fields of the answer.
        chunk: the object's name in a stream; None: the same.
        dialect: see ``answering.answer``.
    """
    base = first | ({} if chunk is None else {"object": chunk})
    dialect = dialect or OpenAIDialect(base, body)
    bridge = EventBridge.call(endpoint.engine, endpoint.rewriting, work, client_name(http.scope))
    try:
        if body.stream:
            await unless_gone(http, bridge.begun())
            return EventStream(_frames(bridge, endpoint, base["id"], spell, dialect), bridge.close, dialect.media_type)
        result = await unless_gone(http, _result(bridge))
    except BaseException:
        bridge.close()
        raise
    whole, _, counts = await endpoint.prepare(spell, result)
    return JSONAnswer(dialect.whole(first | {"choices": [whole], "usage": counts} | as_field(body)))


async def _result(bridge: EventBridge) -> Any:
    (value,) = [item.value async for item in bridge if isinstance(item, Returned)]
    return value


async def _frames(
    bridge: EventBridge, endpoint: ModelEndpoint, name: str, spell: Callable[[Any], Spelled], dialect: Dialect
) -> AsyncIterator[bytes]:
    canvases = Canvases(endpoint, name)
    try:
        async for item in bridge:
            if not isinstance(item, Returned):
                yield frame(*canvases.show(item))
                continue
            _, chunk, counts = await endpoint.prepare(spell, item.value)
            for one in (*dialect.opening(counts["prompt_tokens"]), *dialect.chunk(chunk), *dialect.ending(counts)):
                yield one
    except Exception as error:
        yield dialect.error(from_exception(error))


def _options(body: Generation) -> dict[str, Any]:
    check_stream(body)
    if body.n not in (None, 1):
        raise ApiError(400, f"n is {body.n}; of a text that is there already there is one answer", "n")
    return given(body, SamplingParams)


def _to_edit(body: EditRequest) -> tuple[str, str, bool]:
    """The text, the instruction, and whether the text must still be put below it."""
    if body.messages is None:
        for name in ("input", "instruction"):
            if not getattr(body, name):
                raise ApiError(400, f"{name} is missing; give input and instruction, or messages", name, "missing_field")
        return body.input or "", body.instruction or "", body.in_prompt is not False
    for name in ("input", "instruction", "in_prompt"):
        if getattr(body, name) is not None:
            raise ApiError(400, f"{name} stands beside messages; give one or the other", name)
    (message,) = body.messages
    content = text_of(message.content, "messages[0].content")
    _, opened, rest = content.partition(_CODE)
    code, closed, behind = rest.partition(_CODE_END)
    if not opened or not closed or _CODE in behind:
        raise ApiError(400, f"messages[0] has no single text between {_CODE} and {_CODE_END}", "messages")
    # Each mark has a line of its own.
    return code.removeprefix("\n").removesuffix("\n").replace(_CURSOR, ""), content, False
