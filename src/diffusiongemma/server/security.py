"""The gate that every request passes: the key, the Host header, the size, the load; and headers on every answer."""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffusiongemma.errors import as_error
from diffusiongemma.server.errors import ApiError, from_exception
from diffusiongemma.server.metrics import Metrics
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.state import State

__all__ = ["AccessMiddleware", "client_name", "host_name"]

log = logging.getLogger(__name__)
requests_log = logging.getLogger("diffusiongemma.server.requests")
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


_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_MAX_BODIES = 64
"""Bodies of the largest size whose bytes are held at a time, of all clients."""


def host_name(header: str) -> str:
    """The name of a Host header, without its port; empty where it is no name with a port."""
    result = _HOST.fullmatch(header)
    if result is None or int(result[3] or 0) > 65535:
        return ""
    return result[1] or result[2]


def client_name(scope: Scope) -> str:
    """Who asks: an address; of IPv6 the network that one subscriber gets whole (RFC 6177)."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class AccessMiddleware:
    """ASGI middleware around everything.

    Args:
        app: what is after it.
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

        body = _Body(receive, self._settings, self._state) if generates else None
        refusal = self._refusal(scope, generates)
        try:
            if refusal is not None:
                await refusal.response()(scope, receive, passed)
            else:
                await self._app(scope, receive if body is None else body.receive, passed)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # a native library's panic is no Exception
            if status:  # an answer has begun: the connection is cut, and the client sees that
                raise
            await from_exception(as_error(error)).response()(scope, receive, passed)
        finally:
            if body is not None:
                body.close()
            path = scope["path"] if scope["path"] in self._paths else "other"
            seconds = time.perf_counter() - began
            self._metrics.request(path, status, seconds)
            if self._settings.log_requests:
                requests_log.info("%s %s %s %s %.3f s", client_name(scope), scope["method"], path, status, seconds)

    def _refusal(self, scope: Scope, generates: bool) -> ApiError | None:
        headers = dict(scope["headers"])
        hosts = self._settings.hosts
        host = headers.get(b"host", b"").decode("latin-1")
        if hosts is not None and host_name(host).lower() not in hosts:
            return ApiError(
                403, f"the Host header is {host[:100]!r}; without a key only local names are answered", "Host", "bad_host"
            )
        path = scope["path"]
        if self._key is not None and path not in _OPEN and not path.startswith("/page/"):
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if b"x-api-key" in headers:  # Anthropic's clients
                scheme, given = b"bearer", headers[b"x-api-key"]
            if scheme.lower() != b"bearer" or not hmac.compare_digest(_digest(given.strip()), self._key):
                return ApiError(
                    401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", None, "invalid_api_key"
                )
        if not generates:
            return None
        if self._state.draining:
            return ApiError(503, "the server is about to end and takes no more requests", None, "draining", 1.0)
        if self._state.failure is not None:
            return ApiError(503, "an engine of this server cannot go on; the server ends", None, "failed", 1.0)
        if self._state.active >= self._settings.max_requests:
            return _overloaded(self._state)
        length = headers.get(b"content-length", b"0")
        return _too_large(self._settings) if length.isdigit() and int(length[:20]) > self._settings.max_body_bytes else None


class _Body:
    """The body of one request on its way in; only whole ones are requests under way, and count as such.

    Args:
        receive: where it comes from.
        settings: limits.
        state: where it is counted.
    """

    def __init__(self, receive: Receive, settings: Settings, state: State) -> None:
        self._receive = receive
        self._settings = settings
        self._state = state
        self._until = time.monotonic() + settings.body_seconds
        self._taken = 0
        self._whole = False

    async def receive(self) -> Message:
        """See the ASGI specification; the body is counted as it comes: a chunked one does not say its size before."""
        if self._whole:  # what comes now is the client's leaving, whenever that is
            return await self._receive()
        settings, state = self._settings, self._state
        try:
            message = await asyncio.wait_for(self._receive(), self._until - time.monotonic())
        except TimeoutError as error:
            raise ApiError(408, f"the body did not come within {settings.body_seconds:g} s", None, "too_slow") from error
        size = len(message.get("body", b""))
        self._taken += size
        state.receiving += size
        if self._taken > settings.max_body_bytes:
            raise _too_large(settings)
        if state.receiving > _MAX_BODIES * settings.max_body_bytes:
            raise _overloaded(state)
        if not message.get("more_body", False):
            if state.active >= settings.max_requests:
                raise _overloaded(state)
            self._whole = True
            state.active += 1
        return message

    def close(self) -> None:
        """The request is over."""
        self._state.receiving -= self._taken
        self._state.active -= self._whole


def _overloaded(state: State) -> ApiError:
    return ApiError(429, f"{state.active} requests are under way; come back later", None, "overloaded", 1.0)


def _too_large(settings: Settings) -> ApiError:
    return ApiError(413, f"the body is too large; this server takes {settings.max_body_bytes:,} bytes", None, "too_large")


def _digest(key: bytes) -> bytes:
    # Digests have one length, so that the comparison tells nothing about the key's.
    return hashlib.sha256(key).digest()
