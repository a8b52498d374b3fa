"""One caller of an engine that many share, which waits for its events."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, TypeVar

from diffusiongemma.engine.events import Event
from diffusiongemma.engine.request import Request

if TYPE_CHECKING:
    from diffusiongemma.engine.threaded import RequestHandle, ThreadedEngine

__all__ = ["BlockingClient"]

T = TypeVar("T")


class BlockingClient:
    """Runs requests on a shared engine and waits for them; ``cancel`` may be called from any thread.

    Attributes:
        client: whose requests they are; see ``Request``.
    """

    def __init__(self, shared: "ThreadedEngine") -> None:
        self.client: str | None = None
        self._shared = shared
        self._handle: RequestHandle | None = None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End what runs and all that would follow with ``CancelledError``."""
        self._cancelled.set()
        if self._handle is not None:
            self._handle.cancel()

    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Events of requests, ``row`` being their index.

        Raises:
            CancelledError: ``cancel`` was called, or the engine was stopped.
            InputError, OptionError, OverloadedError: see ``ThreadedEngine.submit``.
        """
        events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        asked = [request if self.client is None else request.of_client(self.client) for request in requests]
        handle = self._handle = self._shared.submit(asked, events.put, events.put)
        try:
            if self._cancelled.is_set():
                raise CancelledError
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            handle.cancel()

    def call(self, work: Callable[[], T]) -> T:
        """Do something with the model between two steps of the engine."""
        if self._cancelled.is_set():
            raise CancelledError
        return self._shared.call(work).result()
