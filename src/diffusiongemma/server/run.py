"""The process: models, sockets, signals."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from diffusiongemma.server.state import State

__all__ = ["Server", "config"]


def config(app: FastAPI, host: str, port: int) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        app, host, port, log_level="warning", access_log=False, server_header=False, ws="none", timeout_keep_alive=60
    )


class Server(uvicorn.Server):
    """A server that ends in two steps.

    The first SIGTERM or SIGINT drains: ``/health`` says so, new requests get 503, those under way go on to their end. The second
    stops at once.

    Args:
        config: see ``config``.
        state: what is under way.
        announce: called with the URL once requests are taken.
    """

    def __init__(self, config: uvicorn.Config, state: State, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self._state = state
        self._announce = announce
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See ``uvicorn.Server``."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._state.draining:
            sys.stderr.write("stopped\n")
            sys.stderr.flush()
            # Nothing is half written anywhere, and threads in the middle of a pass would be waited for.
            os._exit(128 + sig)
        self._state.draining = True
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        sys.stderr.write(f"ending: {self._state.active} requests under way are finished first; once more to stop at once\n")
        self._drain = asyncio.create_task(self._drained())

    async def _drained(self) -> None:
        while self._state.active:
            await asyncio.sleep(0.02)
        self.should_exit = True
