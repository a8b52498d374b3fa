"""``/v1/completions``: a plain text gone on with. With a suffix it is an infill (``server.fim``)."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from diffusiongemma.constraints import Gone
from diffusiongemma.engine.events import Commit, Result, TokenLogprob
from diffusiongemma.engine.request import Request
from diffusiongemma.generation.score import prompt_logprobs
from diffusiongemma.server.answering import answer, answer_options, naming, prepared
from diffusiongemma.server.answers import TextLogprobs, checked, head
from diffusiongemma.server.bridge import unless_gone
from diffusiongemma.server.dialects import Dialect
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.errors import ApiError
from diffusiongemma.server.fim import infill
from diffusiongemma.server.protocol import CompletionRequest, FimRequest, Prompt
from diffusiongemma.server.settings import Settings

__all__ = ["TextFormatter", "complete", "fim"]
_ANSWERING = ("mode", "pins", "response_format", "regex", "choices", "grammar", "logprobs")


async def complete(
    http: HttpRequest, endpoint: ModelEndpoint, body: CompletionRequest, settings: Settings, dialect: Dialect | None = None
) -> Response:
    """Go on with a text, or fill what is between a text and its suffix."""
    if body.suffix:
        for name in _ANSWERING:
            if getattr(body, name) is not None:
                raise ApiError(400, f"{name} cannot be combined with a suffix; leave it out", name)
        if not isinstance(body.prompt, str):
            raise ApiError(400, "prompt is a list; with a suffix it is one string", "prompt")
        return await infill(http, endpoint, body, body.prompt, body.suffix, dialect)
    if body.echo and body.stream:
        raise ApiError(400, "echo gives a whole answer; leave it out, or stream", "echo")
    requests = await prepared(http, endpoint, body, _requests, endpoint, body, settings)
    echoes = [await _echo(http, endpoint, body, one.prompt) for one in requests[:: body.n or 1]] if body.echo else []
    formatter = TextFormatter(endpoint, body.logprobs is not None, echoes, body.n or 1)
    return await answer(http, endpoint, body, requests, formatter, each=body.n or 1, dialect=dialect)


async def fim(http: HttpRequest, endpoint: ModelEndpoint, body: FimRequest, settings: Settings) -> Response:
    """Mercury's shape of the same."""
    given = body.model_dump(exclude_unset=True)
    return await complete(http, endpoint, CompletionRequest.model_validate(given), settings)


def _requests(endpoint: ModelEndpoint, body: CompletionRequest, settings: Settings, gone: Gone | None = None) -> list[Request]:
    options = answer_options(endpoint, body, settings)
    prompts, ids = _prompts(body.prompt)
    if (count := (len(prompts) + len(ids)) * (body.n or 1)) > settings.max_choices:
        raise ApiError(
            400, f"{count} answers are asked for; this server gives at most {settings.max_choices}", "n", "invalid_value"
        )
    if body.logprobs is not None:
        options["logprobs"] = body.logprobs
    # The model's own way is a turn of a conversation; here the text stands alone, as infilling has it.
    with naming(body):
        if ids:
            return [request for one in ids for request in endpoint.model.requests(prompt_ids=[one], gone=gone, **options)]
        return [request for prompt in prompts for request in endpoint.model.requests(prompt, raw=True, gone=gone, **options)]


def _prompts(prompt: Prompt) -> tuple[list[str], list[list[int]]]:
    """The prompts of a body: texts, or token ids."""
    several = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    return [one for one in several if isinstance(one, str)], [one for one in several if isinstance(one, list)]


Echo = tuple[str, list[TokenLogprob]]
"""A prompt's text, and what the causal role thinks of each of its tokens where that is asked for: nothing (NaN) of the first."""


async def _echo(http: HttpRequest, endpoint: ModelEndpoint, body: CompletionRequest, ids: list[int]) -> Echo:
    text = endpoint.model.tokenizer.decode(ids)
    if body.logprobs is None:
        return text, []
    return text, await unless_gone(http, endpoint.prepare(_prompt_logprobs, endpoint, ids, body.logprobs))


def _prompt_logprobs(endpoint: ModelEndpoint, ids: list[int], top: int) -> list[TokenLogprob]:
    return prompt_logprobs(endpoint.model.transformer, ids, top, lambda work: endpoint.engine.call(work).result())


class TextFormatter:
    """OpenAI's ``text_completion``.

    Args:
        endpoint: the model.
        logprobs: whether they were asked for.
        echoes: what stands before the answers to each prompt; empty: nothing is echoed.
        each: answers a prompt.
    """

    def __init__(self, endpoint: ModelEndpoint, logprobs: bool, echoes: Sequence[Echo] = (), each: int = 1) -> None:
        self._endpoint = endpoint
        self._logprobs = logprobs
        self._echoes, self._each = echoes, each
        self._streamed: dict[int, TextLogprobs] = {}
        self.head = self.chunk = head("text_completion", "cmpl", endpoint)

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Nothing."""
        return []

    def delta(self, index: int, commit: Commit) -> list[dict[str, Any]]:
        """New text."""
        logprobs = None
        if self._logprobs:
            logprobs = self._streamed.setdefault(index, TextLogprobs(self._endpoint)).push(commit.logprobs, commit.text)
        shown = commit.text or (logprobs and logprobs["tokens"])
        return [{"index": index, "text": commit.text, "logprobs": logprobs, "finish_reason": None}] if shown else []

    def closing(self, index: int, result: Result) -> list[dict[str, Any]]:
        """The reason why it ended."""
        ended = {"finish_reason": result.finish_reason, "stop_reason": result.stop_string, **checked(result)}
        return [{"index": index, "text": "", "logprobs": None, **ended}]

    def choice(self, index: int, result: Result, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """A whole answer; ``token_ids`` is an extension."""
        before, read = self._echoes[index // self._each] if self._echoes else ("", [])
        told = None
        if self._logprobs:
            entries = TextLogprobs(self._endpoint)
            told = entries.of_all([*read, *logprobs]) if self._echoes else entries.push(logprobs, result.text)
        return {
            "index": index,
            "text": before + result.text,
            "logprobs": told,
            "finish_reason": result.finish_reason,
            "stop_reason": result.stop_string,
            "token_ids": result.token_ids,
            **checked(result),
        }
