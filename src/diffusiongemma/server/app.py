"""The application: paths, and what is the same for all of them."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope

from diffusiongemma import __version__
from diffusiongemma.errors import DiffusionGemmaError
from diffusiongemma.server import anthropic, chat, completions, decisions, fim, ollama, responses, tokens
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.errors import ApiError, JSONAnswer, from_exception, from_http, from_validation
from diffusiongemma.server.ignored import IGNORED, report
from diffusiongemma.server.metrics import Metrics
from diffusiongemma.server.page import Page, docs
from diffusiongemma.server.parsing import BodyReader
from diffusiongemma.server.protocol import (
    Body,
    ChatRequest,
    CompletionRequest,
    DecisionsRequest,
    EditRequest,
    FimRequest,
    Generation,
)
from diffusiongemma.server.security import AccessMiddleware
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.state import State

__all__ = ["create_app"]

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request is wrong; `param` names the field"},
    401: {"description": "the API key is missing or wrong"},
    404: {"description": "there is no such model"},
    413: {"description": "the body is too large"},
    429: {"description": "too much is under way; `Retry-After` says when to come back"},
    503: {"description": "the server is about to end"},
}


class _StrictRequest(Request):
    """A request whose JSON is read by us; what the framework then checks is an instance already."""

    def __init__(self, scope: Scope, receive: Receive, reader: BodyReader, model: type[Body]) -> None:
        super().__init__(scope, receive)
        self._reader, self._model = reader, model
        self.parsed: Body | None = None

    async def json(self) -> Any:
        """The request that the body holds."""
        body = await self.body()
        self._body = b""  # the answer may take long
        self.parsed = await self._reader.read(body, self._model)
        return self.parsed


def _strict(reader: BodyReader) -> type[APIRoute]:
    class StrictRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()
            if self.body_field is None:
                return handler
            model = self.body_field.field_info.annotation
            assert isinstance(model, type)
            assert issubclass(model, Body)

            async def strict(request: Request) -> Response:
                _check_type(request)
                others = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
                scope = {**request.scope, "headers": [*others, (b"content-type", b"application/json")]}
                read = _StrictRequest(scope, request.receive, reader, model)
                response = await handler(read)
                if read.parsed is not None:
                    report(response, read.parsed)
                return response

            return strict

    return StrictRoute


def _check_type(request: Request) -> None:
    """Refuse a body that does not say that it is JSON: a form of any web page could send one, without asking.

    Some clients say nothing, and those of Ollama what curl says by itself; they are no pages, which would name their origin.
    """
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    silent = not kind or (kind == "application/x-www-form-urlencoded" and request.url.path.startswith("/api/"))
    if not silent or "origin" in request.headers:
        said = f"the Content-Type is {given[:100]!r}" if given else "there is no Content-Type"
        raise ApiError(400, f"{said}; send the body as application/json", "Content-Type")


def create_app(models: Mapping[str, ModelEndpoint], settings: Settings, state: State | None = None) -> FastAPI:
    """The ASGI application.

    Args:
        models: by name, at least one; the first is the default.
        settings: limits and the key.
        state: to look into it from outside; None: a new one.
    """
    state = State(dict(models)) if state is None else state
    metrics, page = Metrics(state.models), Page()
    app = FastAPI(
        title="diffusiongemma", version=__version__, docs_url=None, redoc_url=None, responses=_ERRORS,
        description="DiffusionGemma models after OpenAI's API. docs/api.md has every field.",
    )  # fmt: skip
    app.router.route_class = _strict(BodyReader(settings.strict))
    _add_errors(app, state)

    def endpoint(name: str | None) -> ModelEndpoint:
        if name is None:
            return next(iter(state.models.values()))
        if name not in state.models:
            raise ApiError(
                404, f"there is no model {name[:100]!r}; there are {', '.join(state.models)}", "model", "model_not_found"
            )
        return state.models[name]

    @app.get("/v1/models")
    async def list_models() -> Response:
        """All models; the first is the default."""
        return JSONAnswer({"object": "list", "data": [one.entry() for one in state.models.values()]})

    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Response:
        """One model."""
        return JSONAnswer(endpoint(name).entry())

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; OpenAI's shape."""
        return await chat.chat(request, endpoint(body.model), body, settings)

    @app.post("/v1/completions")
    async def text_completions(body: CompletionRequest, request: Request) -> Response:
        """Go on with a text, or fill what is between it and a suffix; OpenAI's shape."""
        return await completions.complete(request, endpoint(body.model), body, settings)

    @app.post("/v1/fim/completions")
    async def fim_completions(body: FimRequest, request: Request) -> Response:
        """Fill what is between two texts; Mercury's shape."""
        return await completions.fim(request, endpoint(body.model), body, settings)

    @app.post("/v1/edit/completions")
    async def edit_completions(body: EditRequest, request: Request) -> Response:
        """Rewrite a text; Mercury's shape, or input and instruction."""
        return await fim.edit(request, endpoint(body.model), body)

    @app.post("/v1/decisions")
    async def decide(body: DecisionsRequest, request: Request) -> Response:
        """Answer typed questions with probabilities; OpenAI's shape."""
        return await decisions.decisions(request, endpoint(body.model), body)

    _add_protocols(app, state, settings, endpoint)

    @app.get("/health")
    async def health() -> Response:
        """Whether requests are taken, and what the engines do."""
        engines = {name: vars(one.engine.stats) for name, one in state.models.items()}
        failed = state.failure is not None
        status = "failed" if failed else "draining" if state.draining else "ok"
        content = {"status": status, "active": state.active, "models": list(state.models), "engines": engines}
        return JSONAnswer(content, 503 if failed else 200)

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Counts for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def description() -> Response:
        return docs(app.openapi())

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page.file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return page.file(name)

    _describe(app, settings.api_key is not None)
    paths = [route.path for route in app.routes if isinstance(route, APIRoute)]
    app.add_middleware(AccessMiddleware, settings=settings, state=state, metrics=metrics, paths=[*paths, "/openapi.json"])
    if settings.origins:
        # Around the other: what a browser asks beforehand has no key.
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.origins, allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=[IGNORED, "Retry-After"],
        )  # fmt: skip
    return app


def _add_protocols(app: FastAPI, state: State, settings: Settings, endpoint: Callable[[str | None], ModelEndpoint]) -> None:
    """The same in other protocols."""

    @app.post("/v1/responses")
    async def respond(body: responses.ResponsesRequest, request: Request) -> Response:
        """Answer; OpenAI's newer shape."""
        return await responses.respond(request, endpoint(body.model), body, settings)

    @app.post("/v1/messages")
    async def messages(body: anthropic.MessagesRequest, request: Request) -> Response:
        """Answer a conversation; Anthropic's shape."""
        return await anthropic.messages(request, endpoint(body.model), body, settings)

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(body: anthropic.CountRequest) -> Response:
        """How long a conversation's prompt is; Anthropic's shape."""
        return await anthropic.count_tokens(endpoint(body.model), body, settings)

    @app.post("/api/chat")
    async def ollama_chat(body: ollama.OllamaChatRequest, request: Request) -> Response:
        """Answer a conversation; Ollama's shape."""
        return await ollama.answer_chat(request, endpoint(ollama.plain_name(body.model)), body, settings)

    @app.post("/api/generate")
    async def ollama_generate(body: ollama.OllamaGenerateRequest, request: Request) -> Response:
        """Answer a prompt, go on with it, or fill what is before a suffix; Ollama's shape."""
        return await ollama.generate(request, endpoint(ollama.plain_name(body.model)), body, settings)

    @app.get("/api/tags")
    @app.get("/api/ps")
    async def ollama_tags() -> Response:
        """All models; Ollama's shape."""
        return JSONAnswer({"models": [ollama.model_entry(one) for one in state.models.values()]})

    @app.post("/api/show")
    async def ollama_show(body: ollama.OllamaName) -> Response:
        """One model; Ollama's shape."""
        return JSONAnswer(ollama.shown(endpoint(ollama.plain_name(body.model or body.name or ""))))

    @app.get("/api/version")
    async def ollama_version() -> Response:
        """The version; Ollama's shape."""
        return JSONAnswer({"version": __version__})

    @app.post("/tokenize")
    async def tokenize(body: tokens.TokenizeRequest) -> Response:
        """Token ids of a text or a conversation; vLLM's shape."""
        return await tokens.tokenize(endpoint(body.model), body, settings)

    @app.post("/detokenize")
    async def detokenize(body: tokens.DetokenizeRequest) -> Response:
        """The text of token ids; vLLM's shape."""
        return await tokens.detokenize(endpoint(body.model), body)

    @app.post("/infill")
    async def infill(body: tokens.InfillRequest, request: Request) -> Response:
        """Fill what is between two texts; llama.cpp's shape."""
        return await tokens.infill(request, endpoint(body.model), body, settings)


def _add_errors(app: FastAPI, state: State) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # What comes here is no JSON object at all: those are read by ``parsing``.
        result = [{**each, "loc": each["loc"][1:]} for each in error.errors()]
        return _spelled(request, from_validation(result, error.body))

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return _spelled(request, from_http(error))

    async def ours(request: Request, error: Exception) -> Response:
        return _spelled(request, from_exception(error, _FIELDS, state.draining))

    for kind in (DiffusionGemmaError, RecursionError):
        app.exception_handler(kind)(ours)


def _spelled(request: Request, error: ApiError) -> Response:
    """An error as the clients of a path read it: Ollama's know its message alone."""
    if request.url.path.startswith("/api/"):
        return JSONAnswer({"error": str(error)}, error.status_code, error.headers)
    return error.response()


_BODIES = (
    Generation, ChatRequest, CompletionRequest, EditRequest, DecisionsRequest, tokens.TokenizeRequest, tokens.DetokenizeRequest,
)  # fmt: skip
_FIELDS = frozenset(name for body in _BODIES for name in body.model_fields)


def _describe(app: FastAPI, key: bool) -> None:
    """Correct the framework's description: its own 422 for a wrong body is a 400 here, and it does not know of the key."""
    made = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = made()
            for methods in description["paths"].values():
                for what in methods.values():
                    what["responses"].pop("422", None)
            if key:
                description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                description["security"] = [{"key": []}]
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
