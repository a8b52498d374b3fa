"""The process: sockets, signals, the end."""

import asyncio
import contextlib
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from diffusiongemma.errors import OptionError
from diffusiongemma.server.connection import BACKLOG, Connections
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.state import State

__all__ = ["Server", "config"]

_LAST_WORDS = 2.0
"""Seconds for what is left to say when the time to drain is over: errors to those whose answers are cut off."""
_SAID_AGAIN = 60.0
"""Seconds between two lines of the log about files that ran out."""


def config(app: FastAPI, host: str, port: int, settings: Settings | None = None) -> uvicorn.Config:
    """How the application is served."""
    group = Connections(settings or Settings())
    return uvicorn.Config(
        app, host, port,
        http=group.protocol,  # type: ignore[arg-type]  # anything that makes protocols
        log_level="error", access_log=False, server_header=False, ws="none", timeout_keep_alive=60, backlog=BACKLOG,
        timeout_graceful_shutdown=int(_LAST_WORDS),
    )  # fmt: skip


class Server(uvicorn.Server):
    """A server that ends in two steps, and within a time.

    The first SIGTERM or SIGINT drains: ``/health`` says so, new requests get 503, those under way go on to their end, for
    ``drain_seconds`` at most. The second stops at once. Where an engine cannot go on, the server ends by itself (``failure``).

    Args:
        config: see ``config``.
        state: what is under way.
        announce: called with the URL once requests are taken.
        drain_seconds: see ``Settings``.
        overdue: called from another thread, with the signal's number, where the process has not ended a while after that.

    Raises:
        OptionError: from ``run``: the address cannot be listened on.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: State,
        announce: Callable[[str], None],
        drain_seconds: float = Settings.drain_seconds,
        overdue: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._state = state
        self._announce = announce
        self._drain_seconds = drain_seconds
        self._overdue = overdue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self.failure: str | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_Quiet())
        try:
            await super().startup(sockets=_listening(self.config.host, self.config.port) if sockets is None else sockets)
        except OSError as error:
            raise OptionError(
                f"{self.config.host} port {self.config.port} cannot be listened on: {(error.strerror or str(error)).lower()}; give "
                "another --port (0 takes any that is free), or end the program that has it"
            ) from error
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self._announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self.failure is None and (failure := self._state.failure) is not None:
            self.failure = failure
            self._state.draining = True
            self._drain = asyncio.create_task(self._drained(_LAST_WORDS))
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``: who takes nothing is not waited for."""
        await super().shutdown(sockets=sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._state.draining:
            _say("stopped")
            # Nothing is half written anywhere, and threads in the middle of a pass would be waited for.
            os._exit(128 + sig)
        self._state.draining = True
        if self._overdue is not None:
            timer = threading.Timer(self._drain_seconds + 2 * _LAST_WORDS, self._overdue, (sig,))
            timer.daemon = True
            timer.start()
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._drain = asyncio.create_task(self._drained(self._drain_seconds))
        _say(
            f"ending: {self._state.active} requests under way are finished first, in {self._drain_seconds:g} s at most; "
            "once more to stop at once"
        )

    async def _drained(self, seconds: float) -> None:
        if not await self._idle(seconds):
            _say(f"{self._state.active} requests are cut off")
            for endpoint in self._state.models.values():  # each waits for the step under way
                threading.Thread(target=endpoint.engine.stop, daemon=True).start()
            await self._idle(_LAST_WORDS)
        self.should_exit = True

    async def _idle(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self._state.active and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return not self._state.active


class _Quiet:
    """An event loop's handler of exceptions that does not fill the log where files run out: asyncio tells of each attempt."""

    def __init__(self) -> None:
        self._said = -_SAID_AGAIN

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "out of system resource" not in context.get("message", ""):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said >= _SAID_AGAIN:
            self._said = time.monotonic()
            _say("no more files can be opened: new connections wait (ulimit -n)")


def _listening(host: str, port: int) -> list[socket.socket]:
    """Sockets for all addresses of a name; those that this machine does not have (often ``::1``) are left out."""
    made: list[socket.socket] = []
    errors: list[OSError] = []
    result = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(result):
        try:
            made.append(_bound(socket.socket(family, kind, protocol), address))
        except OSError as error:
            errors.append(error)
    wrong = [error for error in errors if not made or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)]
    if wrong:
        for sock in made:
            sock.close()
        raise wrong[0]
    return made


def _bound(sock: socket.socket, address: Any) -> socket.socket:
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _say(text: str) -> None:
    """A line for whoever started the server, if it still reads."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        # What is still buffered would make the interpreter's own end fail.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stderr.fileno())
            os.close(null)
