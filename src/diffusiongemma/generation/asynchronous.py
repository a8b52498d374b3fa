"""The model in programs of ``asyncio``: calls that run at the same time share the passes."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING

from diffusiongemma.engine.bridge import EventBridge
from diffusiongemma.engine.events import Done, Event
from diffusiongemma.engine.request import Request
from diffusiongemma.engine.threaded import ThreadedEngine

if TYPE_CHECKING:
    from diffusiongemma.generation.model import DiffusionGemmaModel

__all__ = ["events"]

_WAITING = 1 << 16
"""Requests that may wait for a row: a program that asks for more at a time is told so."""
_engines: "weakref.WeakKeyDictionary[DiffusionGemmaModel, ThreadedEngine]" = weakref.WeakKeyDictionary()
_making = threading.Lock()


def _engine_of(model: "DiffusionGemmaModel") -> ThreadedEngine:
    """The engine that a model's asynchronous calls share; its thread ends with the model."""
    with _making:
        if model not in _engines:
            engine = ThreadedEngine(model.transformer, model.tokenizer, max_waiting=_WAITING)
            _engines[model] = engine
            weakref.finalize(model, engine.stop).atexit = False
        return _engines[model]


async def events(model: "DiffusionGemmaModel", made: Callable[[], list[Request]]) -> AsyncIterator[Event]:
    """The events of requests; leaving the loop early, or being cancelled, gives them up.

    Args:
        model: that answers.
        made: makes the requests; it may take long, and runs beside the event loop.

    Raises:
        DiffusionGemmaError: what ``made`` and ``ThreadedEngine.submit`` raise.
    """
    requests = await asyncio.to_thread(made)
    bridge: EventBridge[Event] = EventBridge.submit(await asyncio.to_thread(partial(_engine_of, model)), requests)
    try:
        async for event in bridge:
            if isinstance(event, Done):
                model.roles.saw(event.result)
            yield event
    finally:
        bridge.close()
