"""From the engine's thread to the event loop."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import Request as HttpRequest

from diffusiongemma.engine import bridge as engine_bridge
from diffusiongemma.engine.blocking import BlockingClient
from diffusiongemma.engine.bridge import End
from diffusiongemma.engine.events import Event
from diffusiongemma.engine.threaded import ThreadedEngine
from diffusiongemma.errors import as_error
from diffusiongemma.server.endpoint import Places
from diffusiongemma.server.errors import ApiError

__all__ = ["EventBridge", "Returned", "unless_gone"]

T = TypeVar("T")
Work = Callable[[Callable[[Event], None], BlockingClient], Any]
"""Something that blocks: gets what to call with each event, and what runs its passes and can be told to give up."""


@dataclass(frozen=True)
class Returned:
    """The result of ``Work``, after its last event."""

    value: Any


class EventBridge(engine_bridge.EventBridge[Returned]):
    """The events of requests, or of work that blocks; make it with ``submit`` or ``call``."""

    _task: asyncio.Task[None] | None = None

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
                value = await anyio.to_thread.run_sync(work, bridge.put, executor, limiter=anyio.CapacityLimiter(1))
                bridge.put(Returned(value))
                bridge.put(End(None))
            except asyncio.CancelledError as error:
                bridge.put(End(error))
                raise
            except BaseException as error:  # a native library's panic is no Exception
                bridge.put(End(as_error(error)))
            finally:
                places.give_back(client)

        bridge._cancel = executor.cancel
        bridge._task = asyncio.create_task(run())  # the reference keeps it alive
        return bridge


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
