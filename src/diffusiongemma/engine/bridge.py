"""From an engine's thread to an event loop."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from diffusiongemma.engine.events import Draft, Event
from diffusiongemma.engine.request import Request
from diffusiongemma.engine.threaded import ThreadedEngine

__all__ = ["DRAFTS_AHEAD", "End", "EventBridge"]

DRAFTS_AHEAD = 32
"""Drafts that may wait for whoever reads slowly; more are left out, so that it holds little memory."""
T = TypeVar("T")


@dataclass(frozen=True)
class End:
    """The end of the work.

    Attributes:
        error: that ended it; None: it is done.
    """

    error: BaseException | None


class EventBridge(Generic[T]):
    """The events of a piece of work, to be read with ``async for``; make it with ``submit``.

    Every item may be taken by another task than the last. ``close`` gives the work up if it is not done.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | T | End] = asyncio.Queue()
        self._first: Event | T | End | None = None
        self._cancel: Callable[[], None] | None = None

    @classmethod
    def submit(cls, engine: ThreadedEngine, requests: Sequence[Request], client: str | None = None) -> Self:
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
        handle = engine.submit(requests, bridge.put, lambda error: bridge.put(End(error)))
        bridge._cancel = handle.cancel
        return bridge

    async def begun(self) -> None:
        """Wait for the first event; an error that comes instead of it is raised here, while a status can still be sent."""
        if self._first is None:
            self._first = await self._queue.get()
        if isinstance(self._first, End) and self._first.error is not None:
            raise self._first.error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | T:
        item = self._first or await self._queue.get()
        self._first = None
        if not isinstance(item, End):
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

    def put(self, item: Event | T | End) -> None:
        """Add an item, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._take, item)
        except RuntimeError:  # the loop has ended, and who waited with it
            self.close()

    def _take(self, item: Event | T | End) -> None:
        if isinstance(item, Draft) and self._queue.qsize() >= DRAFTS_AHEAD:
            return
        self._queue.put_nowait(item)
