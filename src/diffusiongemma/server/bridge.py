"""From the engine's thread to the event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import Request as HttpRequest

from diffusiongemma.engine.blocking import BlockingClient
from diffusiongemma.engine.events import Draft, Event
from diffusiongemma.engine.request import Request
from diffusiongemma.engine.threaded import ThreadedEngine
from diffusiongemma.errors import as_error
from diffusiongemma.server.endpoint import Places
from diffusiongemma.server.errors import ApiError

__all__ = ["EventBridge", "Returned", "unless_gone"]

T = TypeVar("T")
_DRAFTS_AHEAD = 32
"""Drafts that may wait for a client that reads slowly; more are left out, so that it holds little memory."""
Work = Callable[[Callable[[Event], None], BlockingClient], Any]
"""Something that blocks: gets what to call with each event, and what runs its passes and can be told to give up."""


@dataclass(frozen=True)
class Returned:
    """The result of ``Work``, after its last event."""

    value: Any


@dataclass(frozen=True)
class _End:
    error: BaseException | None


class EventBridge:
    """The events of a piece of work, to be read with ``async for``; make it with ``submit`` or ``call``.

    Every item may be taken by another task than the last. ``close`` gives the work up if it is not done.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | Returned | _End] = asyncio.Queue()
        self._first: Event | Returned | _End | None = None
        self._cancel: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def submit(cls, engine: ThreadedEngine, requests: Sequence[Request], client: str | None = None) -> "EventBridge":
        """Hand requests to the engine.

        Args:
            engine: that runs them.
            requests: all of one caller.
            client: who asks; see ``Request``.

        Raises:
            InputError, OptionError, OverloadedError: see ``ThreadedEngine.submit``.
        """
        bridge = cls()
        requests = requests if client is None else [request.of_client(client) for request in requests]
        handle = engine.submit(requests, bridge._put, lambda error: bridge._put(_End(error)))
        bridge._cancel = handle.cancel
        return bridge

    @classmethod
    def call(cls, engine: ThreadedEngine, places: Places, work: Work, client: str | None = None) -> "EventBridge":
        """Run work in a thread of its own.

        Args:
            engine: for its passes.
            places: of which it takes one.
            work: see ``Work``.
            client: who asks; see ``Request``.

        Raises:
            OverloadedError: there is no place.
        """
        bridge, executor = cls(), engine.client()
        executor.client = client
        places.take(client)

        async def run() -> None:
            try:
                value = await anyio.to_thread.run_sync(work, bridge._put, executor, limiter=anyio.CapacityLimiter(1))
                bridge._put(Returned(value))
                bridge._put(_End(None))
            except asyncio.CancelledError as error:
                bridge._put(_End(error))
                raise
            except BaseException as error:  # a native library's panic is no Exception
                bridge._put(_End(as_error(error)))
            finally:
                places.give_back(client)

        bridge._cancel = executor.cancel
        bridge._task = asyncio.create_task(run())  # the reference keeps it alive
        return bridge

    async def begun(self) -> None:
        """Wait for the first event; an error that comes instead of it is raised here, while a status can still be sent."""
        if self._first is None:
            self._first = await self._queue.get()
        if isinstance(self._first, _End) and self._first.error is not None:
            raise self._first.error

    def __aiter__(self) -> "EventBridge":
        return self

    async def __anext__(self) -> Event | Returned:
        item = self._first or await self._queue.get()
        self._first = None
        if not isinstance(item, _End):
            return item
        self._cancel = None
        if item.error is not None:
            raise item.error
        raise StopAsyncIteration

    def close(self) -> None:
        """Give up what is not done; harmless twice."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def _put(self, item: Event | Returned | _End) -> None:
        try:
            self._loop.call_soon_threadsafe(self._take, item)
        except RuntimeError:  # the loop has ended, and who waited with it
            self.close()

    def _take(self, item: Event | Returned | _End) -> None:
        if isinstance(item, Draft) and self._queue.qsize() >= _DRAFTS_AHEAD:
            return
        self._queue.put_nowait(item)


async def unless_gone(http: HttpRequest, work: Awaitable[T]) -> T:
    """Wait for work; if the client goes away first, the work is cancelled.

    Raises:
        ApiError: the client is gone (nobody reads it, but it is counted).
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client went away")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
