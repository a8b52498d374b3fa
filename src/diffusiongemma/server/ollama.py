"""``/api/...``: Ollama's protocol, over chats and completions.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md, as the clients of 2026 speak it.
"""

import time
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from fastapi import Request as HttpRequest
from pydantic import Field
from starlette.responses import Response

from diffusiongemma.server import chat, completions
from diffusiongemma.server.dialects import Pieces
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.errors import ApiError, to_json
from diffusiongemma.server.ignored import safe_name
from diffusiongemma.server.protocol import (
    Body,
    ChatRequest,
    CompletionRequest,
    Flag,
    Text,
    Tool,
    translated,
)
from diffusiongemma.server.settings import Settings

__all__ = [
    "OllamaChatRequest",
    "OllamaGenerateRequest",
    "OllamaName",
    "answer_chat",
    "generate",
    "model_entry",
    "plain_name",
    "shown",
]

_FAMILY = "diffusion_gemma"
_OPTIONS = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "seed": "seed", "stop": "stop",
            "num_predict": "max_tokens"}  # fmt: skip
"""Options that have a meaning here, and our names for them."""
_KEPT_OUT = frozenset({"num_ctx", "num_keep", "num_gpu", "num_thread", "num_batch", "main_gpu", "use_mmap", "numa", "low_vram"})
"""Options about how a model is run, which ``serve`` was told."""


class OllamaFunction(Body):
    """What was called."""

    name: Text
    arguments: dict[str, Any]


class OllamaCall(Body):
    """A call that the model made."""

    id: Text | None = None
    function: OllamaFunction


class OllamaMessage(Body):
    """A turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    thinking: Text | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=128, fail_fast=True)] | None = None
    tool_name: Text | None = None
    tool_call_id: Text | None = None
    images: Annotated[list[Any], Field(max_length=64)] | None = None


class _Asked(Body):
    model: Text
    stream: Flag = True
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: Flag | Text | None = None
    keep_alive: Any = None


class OllamaChatRequest(_Asked):
    """``/api/chat``."""

    messages: Annotated[list[OllamaMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None


class OllamaGenerateRequest(_Asked):
    """``/api/generate``."""

    prompt: Text
    suffix: Text | None = None
    system: Text | None = None
    raw: Flag | None = None
    images: Annotated[list[Any], Field(max_length=64)] | None = None


class OllamaName(Body):
    """``/api/show``."""

    model: Text | None = None
    name: Text | None = None


def plain_name(name: str) -> str:
    """A model's name without the tag that clients add."""
    return name.removesuffix(":latest")


async def answer_chat(http: HttpRequest, endpoint: ModelEndpoint, body: OllamaChatRequest, settings: Settings) -> Response:
    """Answer a conversation."""
    said: list[dict[str, Any]] = []
    waiting: list[str] = []
    for place, message in enumerate(body.messages):
        _no_images(message.images, f"messages[{place}].images")
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role == "assistant":
            ids = [call.id or f"call_{place}_{at}" for at, call in enumerate(message.tool_calls or ())]
            calls = [
                {"id": name, "type": "function", "function": call.function.model_dump()}
                for name, call in zip(ids, message.tool_calls or (), strict=True)
            ]
            waiting += ids
            one |= {"reasoning_content": message.thinking, "tool_calls": calls or None, "content": message.content or None}
            one["content"] = one["content"] if message.content or calls else ""
        elif message.role == "tool":
            if not waiting:
                raise ApiError(400, f"messages[{place}] answers a call that is not there", f"messages[{place}]")
            # Results come in the order of the calls where they do not say whose they are.
            name = message.tool_call_id if message.tool_call_id in waiting else waiting[0]
            waiting.remove(name)
            one |= {"tool_call_id": name, "name": message.tool_name}
        said.append(one)
    asked = _sampling(body) | {"messages": said, "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or ()]}
    return await chat.chat(http, endpoint, translated(ChatRequest, asked, body), settings, OllamaDialect(body.model, "message"))


async def generate(http: HttpRequest, endpoint: ModelEndpoint, body: OllamaGenerateRequest, settings: Settings) -> Response:
    """Answer a prompt, go on with it as it is (``raw``), or fill what is before a suffix."""
    _no_images(body.images, "images")
    asked, dialect = _sampling(body), OllamaDialect(body.model, "response")
    if not body.prompt:
        raise ApiError(400, "prompt is empty; models are loaded when the server starts, and there is nothing else to do", "prompt")
    if body.raw or body.suffix:
        asked = {name: value for name, value in asked.items() if name != "reasoning_effort"}
        request = translated(CompletionRequest, asked | {"prompt": body.prompt, "suffix": body.suffix}, body)
        return await completions.complete(http, endpoint, request, settings, dialect)
    system = [{"role": "system", "content": body.system}] if body.system else []
    request_ = translated(ChatRequest, asked | {"messages": [*system, {"role": "user", "content": body.prompt}]}, body)
    return await chat.chat(http, endpoint, request_, settings, dialect)


def model_entry(endpoint: ModelEndpoint) -> dict[str, Any]:
    """A model's entry of ``/api/tags``."""
    size = endpoint.model.checkpoint.bytes
    return {
        "name": endpoint.name, "model": endpoint.name, "modified_at": _stamp(endpoint.created), "size": size, "digest": "",
        "details": {
            "parent_model": "", "format": "safetensors", "family": _FAMILY, "families": [_FAMILY],
            "parameter_size": f"{endpoint.model.checkpoint.parameters / 1e6:.1f}M", "quantization_level": "",
        },
    }  # fmt: skip


def shown(endpoint: ModelEndpoint) -> dict[str, Any]:
    """``/api/show``."""
    config, markup = endpoint.model.config, endpoint.model.tokenizer.markup
    capabilities = ["completion", "insert", "tools", *(["thinking"] if markup.thoughts else [])]
    family = _FAMILY
    return {
        "modelfile": "", "parameters": "", "template": "", "details": model_entry(endpoint)["details"],
        "model_info": {
            "general.architecture": family, "general.parameter_count": endpoint.model.checkpoint.parameters,
            f"{family}.context_length": config.text.max_position_embeddings, f"{family}.block_count": config.text.num_hidden_layers,
            f"{family}.embedding_length": config.text.hidden_size,
        },
        "capabilities": capabilities, "modified_at": _stamp(endpoint.created),
    }  # fmt: skip


def _sampling(body: _Asked) -> dict[str, Any]:
    options = body.options or {}
    result: dict[str, Any] = {ours: options[theirs] for theirs, ours in _OPTIONS.items() if options.get(theirs) is not None}
    if result.get("max_tokens") in (-1, -2):
        del result["max_tokens"]
    unknown = [name for name in options if name not in _OPTIONS and name not in _KEPT_OUT]
    body.ignored.extend(safe_name(f"options.{name}") for name in unknown[:8])
    result["stream"] = body.stream
    if isinstance(body.format, dict):
        result["response_format"] = {"type": "json_schema", "json_schema": {"schema": body.format}}
    elif body.format == "json":
        result["response_format"] = {"type": "json_object"}
    if body.think is not None:
        result["reasoning_effort"] = body.think if isinstance(body.think, str) else "medium" if body.think else "none"
    return result


def _no_images(images: list[Any] | None, where: str) -> None:
    if images:
        raise ApiError(400, f"{where}: images are not read here; send text", where)


def _stamp(seconds: float | None = None) -> str:
    now = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return now.isoformat().replace("+00:00", "Z")


class OllamaDialect:
    """Ollama's lines of JSON.

    Args:
        model: as the client calls it.
        field: ``"message"`` of a chat, ``"response"`` of a generation.
    """

    media_type: ClassVar[str] = "application/x-ndjson"

    def __init__(self, model: str, field: Literal["message", "response"]) -> None:
        self._model, self._field, self._began = model, field, time.perf_counter_ns()
        self._prompt_ns: int | None = None
        self._pieces = Pieces()

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The whole answer."""
        [choice] = answer["choices"]
        self._pieces = Pieces.of(answer | {"choices": [_as_chat(choice)]})
        more = {"ignored": answer["ignored"]} if "ignored" in answer else {}
        return self._line(self._said(range(len(self._pieces.kinds)), self._pieces.texts)) | self._end(answer["usage"]) | more

    def opening(self, prompt_tokens: int) -> list[bytes]:
        """Nothing."""
        return []

    def chunk(self, choice: dict[str, Any]) -> list[bytes]:
        """A line; a call comes when it is whole."""
        self._prompt_ns = self._prompt_ns or time.perf_counter_ns() - self._began
        added = self._pieces.push(_as_chat(choice))
        said = [(at, text) for at, _, text in added if self._pieces.calls[at] is None and text]
        result = [to_json(self._line(self._said([at], {at: text}))) + b"\n" for at, text in said]
        whole = [at for at, _, text in added if self._pieces.calls[at] is not None and text]
        return [*result, *(to_json(self._line(self._said(whole, {}))) + b"\n" for _ in whole[:1])]

    def ending(self, usage: dict[str, Any]) -> list[bytes]:
        """The last line, with what it took."""
        return [to_json(self._line(self._said([], {})) | self._end(usage)) + b"\n"]

    def error(self, error: ApiError) -> bytes:
        """An error is a line of its own."""
        return to_json({"error": str(error)}) + b"\n"

    def _line(self, said: dict[str, Any]) -> dict[str, Any]:
        return {"model": self._model, "created_at": _stamp(), **said, "done": False}

    def _said(self, at: Any, texts: Any) -> dict[str, Any]:
        """What some pieces say."""
        kinds = self._pieces.kinds
        content = "".join(texts[place] for place in at if kinds[place] == "text")
        thinking = "".join(texts[place] for place in at if kinds[place] == "thinking")
        calls = [
            {"function": {"name": call[1], "arguments": self._pieces.arguments(place)}}
            for place in at
            if (call := self._pieces.calls[place]) is not None
        ]
        more = {"thinking": thinking} if thinking else {}
        if self._field == "response":
            return {"response": content, **more}
        return {"message": {"role": "assistant", "content": content, **more, **({"tool_calls": calls} if calls else {})}}

    def _end(self, usage: dict[str, Any]) -> dict[str, Any]:
        total = time.perf_counter_ns() - self._began
        prompt = min(self._prompt_ns or 0, total)
        return {
            "done": True, "done_reason": "stop" if self._pieces.finish == "tool_calls" else self._pieces.finish or "stop",
            "total_duration": total,
            "load_duration": 0, "prompt_eval_count": usage["prompt_tokens"], "prompt_eval_duration": prompt,
            "eval_count": usage["completion_tokens"], "eval_duration": total - prompt, "diffusion": usage["diffusion"],
        }  # fmt: skip


def _as_chat(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice of a text completion as one of a chat."""
    if "text" not in choice:
        return choice
    said = {"content": choice["text"]}
    return {"delta": said, "message": said, "finish_reason": choice["finish_reason"], "stop_reason": choice.get("stop_reason")}
