"""``/tokenize``, ``/detokenize`` (vLLM's and llama.cpp's shapes) and ``/infill`` (llama.cpp's)."""

from typing import Annotated, Any, ClassVar

from fastapi import Request as HttpRequest
from pydantic import Field
from starlette.responses import Response

from diffusiongemma.server import chat, completions
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.errors import ApiError, JSONAnswer
from diffusiongemma.server.protocol import (
    Body,
    ChatRequest,
    CompletionRequest,
    Flag,
    Message,
    Stop,
    Text,
    TokenIds,
    Tool,
    translated,
)
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.sse import frame

__all__ = ["DetokenizeRequest", "InfillRequest", "TokenizeRequest", "detokenize", "infill", "tokenize"]


class TokenizeRequest(Body):
    """``/tokenize``."""

    model: Text | None = None
    prompt: Text | None = None
    content: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    add_special_tokens: Flag | None = None
    add_special: Flag | None = None
    return_token_strs: Flag | None = None


class DetokenizeRequest(Body):
    """``/detokenize``."""

    model: Text | None = None
    tokens: TokenIds


class InfillRequest(Body):
    """``/infill``."""

    model: Text | None = None
    input_prefix: Text
    input_suffix: Text = ""
    prompt: Text = ""
    n_predict: Any = None
    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    seed: Any = None
    stop: Stop | None = None
    stream: Flag | None = None


async def tokenize(endpoint: ModelEndpoint, body: TokenizeRequest, settings: Settings) -> Response:
    """Token ids of a text, or of the prompt that a conversation becomes."""
    return JSONAnswer(await endpoint.prepare(_tokenize, endpoint, body, settings))


def _tokenize(endpoint: ModelEndpoint, body: TokenizeRequest, settings: Settings) -> dict[str, Any]:
    given = [name for name in ("prompt", "content", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        said = f"{' and '.join(given)} are given" if given else "there is nothing to tokenize"
        raise ApiError(400, f"{said}; give one of prompt, content and messages", given[0] if given else "prompt")
    tokenizer = endpoint.model.tokenizer
    if body.messages is not None:
        fields = {"messages", "tools"}
        asked = translated(ChatRequest, body.model_dump(include=fields, exclude_none=True), body)
        [request] = chat.requests(endpoint, asked, settings)
        ids = request.prompt
    else:
        text = body.prompt if body.prompt is not None else body.content or ""
        # vLLM puts the beginning of a text before it unless it is told not to, llama.cpp where it is told to.
        first = body.add_special_tokens is not False if body.prompt is not None else bool(body.add_special)
        ids = endpoint.plain(text) if first else tokenizer.encode(text, allow_special=False)
    texts = {"token_strs": [endpoint.token_text(token) for token in ids]} if body.return_token_strs else {}
    return {"tokens": ids, "count": len(ids), "max_model_len": endpoint.model.config.text.max_position_embeddings, **texts}


async def detokenize(endpoint: ModelEndpoint, body: DetokenizeRequest) -> Response:
    """The text of token ids."""

    def work() -> dict[str, Any]:
        ids = endpoint.model.checkpoint.checked_ids(body.tokens, "tokens")
        text = endpoint.model.tokenizer.decode(ids)
        return {"prompt": text, "content": text}

    return JSONAnswer(await endpoint.prepare(work))


async def infill(http: HttpRequest, endpoint: ModelEndpoint, body: InfillRequest, settings: Settings) -> Response:
    """Write what stands between two texts."""
    asked = {
        "prompt": body.input_prefix + body.prompt, "suffix": body.input_suffix or None, "max_tokens": body.n_predict,
        **body.model_dump(include={"temperature", "top_k", "top_p", "min_p", "seed", "stop", "stream"}),
    }  # fmt: skip
    if not asked["prompt"]:
        raise ApiError(400, "input_prefix is empty; give what stands before the cursor", "input_prefix")
    return await completions.complete(
        http, endpoint, translated(CompletionRequest, asked, body), settings, LlamaDialect(endpoint.name)
    )


class LlamaDialect:
    """llama.cpp's completion.

    Args:
        model: its name.
    """

    media_type: ClassVar[str] = "text/event-stream"

    def __init__(self, model: str) -> None:
        self._model, self._finish, self._ended = model, "stop", ""

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The text, and its end."""
        [choice] = answer["choices"]
        self._saw(choice)
        more = {"ignored": answer["ignored"]} if "ignored" in answer else {}
        return {"content": choice["text"], **self._end(answer["usage"])} | more

    def opening(self, prompt_tokens: int) -> list[bytes]:
        """Nothing."""
        return []

    def chunk(self, choice: dict[str, Any]) -> list[bytes]:
        """New text."""
        self._saw(choice)
        return [frame({"content": choice["text"], "stop": False})] if choice["text"] else []

    def ending(self, usage: dict[str, Any]) -> list[bytes]:
        """The end."""
        return [frame({"content": "", **self._end(usage)})]

    def error(self, error: ApiError) -> bytes:
        """An error as an event."""
        return frame(error.body)

    def _saw(self, choice: dict[str, Any]) -> None:
        self._finish, self._ended = choice["finish_reason"] or self._finish, choice.get("stop_reason") or self._ended

    def _end(self, usage: dict[str, Any]) -> dict[str, Any]:
        kind = "limit" if self._finish == "length" else "word" if self._ended else "eos"
        return {
            "stop": True, "stop_type": kind, "stopping_word": self._ended, "model": self._model,
            "tokens_predicted": usage["completion_tokens"], "tokens_evaluated": usage["prompt_tokens"], "truncated": False,
        }  # fmt: skip
