"""The gate that every request passes: the key, the Host header, the size, the load; and headers on every answer."""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusiongemma.server.errors import ApiError, from_exception
from diffusiongemma.server.metrics import Metrics
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.state import State

__all__ = ["Gate", "host_name"]

log = logging.getLogger(__name__)
_OPEN = ("/", "/health", "/docs", "/openapi.json")
"""Paths that need no key, with ``/page/``: they say nothing about anyone."""
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]
"""Of every answer. The policy lets a page load what this server has, and nothing else from anywhere."""


def host_name(header: str) -> str:
    """The name of a Host header, without its port."""
    return header[1 : header.find("]")] if header.startswith("[") else header.rsplit(":", 1)[0]


class Gate:
    """ASGI middleware around everything.

    Args:
        app: what is behind it.
        settings: limits and the key.
        state: what is under way.
        metrics: to count.
        paths: that there are; all others count as one.
    """

    def __init__(self, app: ASGIApp, settings: Settings, state: State, metrics: Metrics, paths: Collection[str]) -> None:
        self._app = app
        self._settings = settings
        self._state = state
        self._metrics = metrics
        self._paths = frozenset(paths)
        self._key = None if settings.api_key is None else _digest(settings.api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        generates = scope["method"] == "POST"

        async def passed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        refusal = self._refusal(scope, generates)
        self._state.active += generates
        try:
            if refusal is not None:
                await refusal.response()(scope, receive, passed)
            else:
                await self._app(scope, self._counted(receive), passed)
        except Exception as error:
            if status:  # an answer has begun: the connection is cut, and the client sees that
                raise
            await from_exception(error).response()(scope, receive, passed)
        finally:
            self._state.active -= generates
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.request(path, status, time.perf_counter() - began)

    def _refusal(self, scope: Scope, generates: bool) -> ApiError | None:
        headers = dict(scope["headers"])
        hosts = self._settings.hosts
        if hosts is not None and (name := host_name(headers.get(b"host", b"").decode("latin-1"))).lower() not in hosts:
            return ApiError(
                403, f"the Host header names {name[:100]!r}; without a key only local names are answered", "Host", "bad_host"
            )
        path = scope["path"]
        if self._key is not None and path not in _OPEN and not path.startswith("/page/"):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(_digest(given.strip()), self._key):
                return ApiError(
                    401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", None, "invalid_api_key"
                )
        if not generates:
            return None
        if self._state.draining:
            return ApiError(503, "the server is about to end and takes no more requests", None, "draining", 1.0)
        if self._state.active >= self._settings.max_requests:
            return ApiError(429, f"{self._state.active} requests are under way; come back later", None, "overloaded", 1.0)
        length = headers.get(b"content-length", b"0")
        return self._too_large() if length.isdigit() and int(length[:20]) > self._settings.max_body_bytes else None

    def _counted(self, receive: Receive) -> Receive:
        """The body, counted as it comes: a chunked one does not say its size before."""
        taken, whole, until = 0, False, time.monotonic() + self._settings.body_seconds

        async def counted() -> Message:
            nonlocal taken, whole
            if whole:  # what comes now is the client's leaving, whenever that is
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError as error:
                raise ApiError(408, f"the body did not come within {self._settings.body_seconds:g} s", None, "too_slow") from error
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > self._settings.max_body_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is too large; this server takes {self._settings.max_body_bytes:,} bytes", None, "too_large")


def _digest(key: bytes) -> bytes:
    # Digests have one length, so that the comparison tells nothing about the key's.
    return hashlib.sha256(key).digest()
