"""From the requests of a chat or a completion to its answer, whole or as a stream."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from fastapi import Request as HttpRequest
from starlette.responses import Response

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.events import Commit, Done, Result, TokenLogprob
from diffusiongemma.engine.request import Request
from diffusiongemma.errors import ConstraintError
from diffusiongemma.server.answers import Canvases, usage
from diffusiongemma.server.bridge import EventBridge, Returned, unless_gone
from diffusiongemma.server.dialects import Dialect, OpenAIDialect
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.errors import ApiError, JSONAnswer, from_exception, to_json
from diffusiongemma.server.ignored import as_field
from diffusiongemma.server.protocol import Answering, Generation, given
from diffusiongemma.server.security import client_name
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.sse import EventStream, frame

__all__ = ["ResponseFormatter", "answer", "answer_options", "check_stream", "naming", "prepared"]


class ResponseFormatter(Protocol):
    """How an endpoint spells its answers; ``index`` counts the answers of a request."""

    head: dict[str, Any]
    """First fields of a whole answer."""
    chunk: dict[str, Any]
    """First fields of a chunk."""

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Choices of the chunks before any text."""

    def delta(self, index: int, commit: Commit) -> list[dict[str, Any]]:
        """Choices of the chunks for new text."""

    def closing(self, index: int, result: Result) -> list[dict[str, Any]]:
        """Choices of the chunks after the last text."""

    def choice(self, index: int, result: Result, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """A choice of a whole answer."""


def check_stream(body: Generation, mode: str = "diffusion") -> None:
    """Refuse what only means something for a stream, or a canvas.

    Raises:
        ApiError: ``stream_options`` or ``diffusing`` without ``stream``, or ``diffusing`` token by token.
    """
    for name in ("stream_options", "diffusing"):
        if getattr(body, name) and not body.stream:
            raise ApiError(400, f"{name} needs stream: true", name)
    if body.diffusing and mode == "causal":
        raise ApiError(400, "diffusing needs mode 'diffusion': token by token there is no canvas to show", "diffusing")


def answer_options(endpoint: ModelEndpoint, body: Answering, settings: Settings) -> dict[str, Any]:
    """What ``DiffusionGemmaModel.requests`` takes, of what chats and completions have in common.

    Raises:
        ApiError: fields that do not go together, or are too large.
    """
    mode = body.mode or endpoint.mode
    if body.diffusing and mode == "auto":
        mode = "diffusion"
    check_stream(body, mode)
    check_size(body, settings)
    options = given(body, SamplingParams) | {"mode": mode, "n": body.n or 1}
    if body.pins is not None:
        options["pins"] = [(position, token) for position, token in body.pins]
    if body.response_format is not None and body.response_format.type != "text":
        options["response_format"] = body.response_format.model_dump(by_alias=True, exclude_none=True)
    options |= {
        "allow_special": body.allow_special,
        "regex": body.regex,
        "choices": body.choices,
        "grammar": body.grammar,
        "drafts": bool(body.diffusing),
    }
    return {name: value for name, value in options.items() if value is not None}


def check_size(body: Answering, settings: Settings) -> None:
    """Refuse constraints that are larger than the server allows.

    Raises:
        ApiError: with the field's name and both sizes.
    """
    most = settings.max_constraint_bytes
    for name in _constraints(body):
        size = len(to_json(body.model_dump(include={name}, by_alias=True)))
        if size > most:
            raise ApiError(400, f"{name} has {size:,} bytes; this server takes {most:,}", name, "too_large")


async def prepared(
    http: HttpRequest, endpoint: ModelEndpoint, body: Answering, work: Callable[..., list[Request]], *args: Any
) -> list[Request]:
    """The requests of a body, made beside the event loop, and given up if the client leaves meanwhile.

    Args:
        http: the client's.
        endpoint: the model.
        body: what is asked.
        work: makes them from ``args``; it takes ``gone`` too.

    Raises:
        ApiError: the client is gone.
    """
    if not _constraints(body):
        return await endpoint.prepare(work, *args)
    return await unless_gone(http, endpoint.compile(work, *args))


def _constraints(body: Answering) -> list[str]:
    """Names of the fields that hold the answer."""
    names = ("tools", "regex", "choices", "grammar", "response_format")
    return [name for name in names if getattr(body, name, None) is not None]


@contextmanager
def naming(body: Answering) -> Iterator[None]:
    """Give errors of a constraint the name of the field that holds it.

    Raises:
        ApiError: instead of a ConstraintError.
    """
    try:
        yield
    except ConstraintError as error:
        fields = [name for name in _constraints(body) if (name == "tools") == ("tools" in str(error).partition(":")[0])]
        raise ApiError(400, str(error), next(iter(fields or _constraints(body)), None)) from error


async def answer(
    http: HttpRequest,
    endpoint: ModelEndpoint,
    body: Generation,
    requests: Sequence[Request],
    formatter: ResponseFormatter,
    each: int = 1,
    dialect: Dialect | None = None,
) -> Response:
    """Hand requests to the engine and spell what comes back.

    Args:
        http: to notice that the client goes away.
        endpoint: the model.
        body: for ``stream``, ``diffusing`` and ``stream_options``.
        requests: one an answer.
        formatter: how the endpoint spells answers.
        each: answers a prompt.
        dialect: what becomes of it for clients of another protocol; None: OpenAI's.

    Raises:
        InputError, OptionError, OverloadedError: see ``ThreadedEngine.submit``.
    """
    dialect = dialect or OpenAIDialect(formatter.chunk, body)
    bridge = EventBridge.submit(endpoint.engine, requests, client_name(http.scope))
    if body.stream:
        frames = _frames(bridge, endpoint, bool(body.diffusing), formatter, dialect, requests, each)
        return EventStream(frames, bridge.close, dialect.media_type)
    try:
        whole = await unless_gone(http, _whole(bridge, endpoint, formatter, len(requests), each))
        return JSONAnswer(dialect.whole(whole | as_field(body)))
    finally:
        bridge.close()


async def _whole(
    bridge: EventBridge, endpoint: ModelEndpoint, formatter: ResponseFormatter, count: int, each: int
) -> dict[str, Any]:
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
    results: dict[int, Result] = {}
    async for event in bridge:
        if isinstance(event, Commit):
            logprobs[event.row] += event.logprobs or []
        elif isinstance(event, Done):
            results[event.row] = event.result
            endpoint.model.roles.saw(event.result)
    ordered = [results[row] for row in range(count)]
    choices = [formatter.choice(row, result, logprobs[row]) for row, result in enumerate(ordered)]
    return formatter.head | {"choices": choices, "usage": usage(ordered, each)}


async def _frames(
    bridge: EventBridge,
    endpoint: ModelEndpoint,
    diffusing: bool,
    formatter: ResponseFormatter,
    dialect: Dialect,
    requests: Sequence[Request],
    each: int,
) -> AsyncIterator[bytes]:
    canvases, results = Canvases(endpoint, formatter.chunk["id"]), dict[int, Result]()

    def spelled(choices: Iterable[dict[str, Any]]) -> Iterator[bytes]:
        return (one for choice in choices for one in dialect.chunk(choice))

    try:
        for one in dialect.opening(sum(len(request.prompt) for request in requests[::each])):
            yield one
        for one in spelled(choice for row in range(len(requests)) for choice in formatter.opening(row)):
            yield one
        async for event in bridge:
            assert not isinstance(event, Returned)
            if diffusing:
                yield frame(*canvases.show(event))
            choices = []
            if isinstance(event, Commit):
                choices = formatter.delta(event.row, event)
            elif isinstance(event, Done):
                results[event.row] = event.result
                endpoint.model.roles.saw(event.result)
                choices = formatter.closing(event.row, event.result)
            for one in spelled(choices):
                yield one
        for one in dialect.ending(usage([results[row] for row in range(len(requests))], each)):
            yield one
    except Exception as error:
        yield dialect.error(from_exception(error))
