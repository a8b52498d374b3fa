"""An engine of one's own: requests through bounded rows and memory, taken as there is room for them."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from diffusiongemma.engine.engine import Engine
from diffusiongemma.engine.events import Event, Failed
from diffusiongemma.engine.request import Request
from diffusiongemma.engine.scheduler import default_kv_bytes
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["MAX_ROWS", "OfflineEngine"]

T = TypeVar("T")
MAX_ROWS = 64
"""Requests that step together unless told otherwise: products of 64 canvases have nothing left to gain on any machine measured."""


class OfflineEngine:
    """An engine a call: what a model uses that nobody shares.

    Args:
        model: the stack.
        tokenizer: for texts of events.
        max_rows: most requests that step at a time.
        kv_bytes: most memory of their caches together, but that one alone always has what it needs; None: ``default_kv_bytes``.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, max_rows: int = MAX_ROWS, kv_bytes: int | None = None) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._max_rows, self._kv_bytes = max_rows, kv_bytes

    def run(self, requests: Iterable[Request]) -> Iterator[Event]:
        """Events of the requests as they come, ``row`` being a request's index.

        Args:
            requests: any number, of an iterator too; no more are taken from it than can step.

        Raises:
            InputError, PromptTooLongError, OptionError: see ``request.check``, when the request is taken.
        """
        kv_bytes = self._kv_bytes or default_kv_bytes(self._model.device)
        engine, numbered = Engine(self._model, self._tokenizer, max_rows=self._max_rows, kv_bytes=kv_bytes), enumerate(requests)
        while True:
            for number, request in islice(numbered, self._max_rows - engine.scheduler.live):
                engine.add(request, number=number)
            if not engine.busy:
                return
            for _, event in engine.step():
                if isinstance(event, Failed):
                    raise event.error
                yield event

    def call(self, work: Callable[[], T]) -> T:
        """Do something with the model."""
        return work()
