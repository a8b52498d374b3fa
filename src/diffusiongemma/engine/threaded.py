"""One engine for many callers: a thread that steps it while there is work.

Callers hand in requests from any thread and get events by callback; the engine itself is touched by its own thread alone, between
steps and in them.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TypeVar

import torch

from diffusiongemma.engine.admission import CLIENT_STEPS, Admission
from diffusiongemma.engine.blocking import BlockingClient
from diffusiongemma.engine.engine import Engine
from diffusiongemma.engine.events import Done, Event, Failed
from diffusiongemma.engine.prefix import default_prefix_bytes
from diffusiongemma.engine.request import Request
from diffusiongemma.engine.scheduler import default_kv_bytes
from diffusiongemma.errors import EngineError, OptionError, OverloadedError, as_error
from diffusiongemma.model.cache import RowCache, prefill_chunk
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["EngineStats", "RequestHandle", "ThreadedEngine"]

T = TypeVar("T")
log = logging.getLogger(__name__)
OnEnd = Callable[[BaseException | None], None]
PREFILL_ROWS = 4
"""Prompts that are encoded, a chunk each, in one step: the others wait for no more than that."""


@dataclass(frozen=True)
class EngineStats:
    """What an engine holds and has done.

    Attributes:
        waiting: requests without a row yet.
        running: requests with a row.
        kv_bytes: memory of the rows' caches.
        max_kv_bytes: what all rows may have.
        max_rows: rows that can run at a time.
        client_steps: most steps that the requests of a client may take together.
        prefix_bytes: memory of the prefix cache.
        prefix_tokens_reused: prompt tokens that were found there.
        prompt_tokens, completion_tokens, denoising_steps, passes, canvases, canvases_halted: see ``engine.Counts``.
        seconds_busy: time spent in steps.
        failure: why the engine cannot go on; None: it can.
    """

    waiting: int
    running: int
    kv_bytes: int
    max_kv_bytes: int
    prefix_bytes: int
    prefix_tokens_reused: int
    prompt_tokens: int
    completion_tokens: int
    denoising_steps: int
    passes: int
    canvases: int
    canvases_halted: int
    seconds_busy: float
    failure: str | None = None
    max_rows: int = 0
    client_steps: int = 0


class RequestHandle:
    """Requests that were handed in together, and whom to tell of them."""

    def __init__(
        self,
        shared: "ThreadedEngine",
        requests: Sequence[Request],
        steps: int,
        on_event: Callable[[Event], None],
        on_end: OnEnd,
    ) -> None:
        self.requests, self.on_event, self._on_end = list(requests), on_event, on_end
        self.client, self.steps = requests[0].client, steps
        self.left = len(self.requests)
        self.ended = False
        self.began = time.perf_counter()
        self._shared = shared

    def cancel(self) -> None:
        """Free the rows at the next step boundary; no event comes after it. Does nothing to requests that have ended."""
        self._shared._cancel(self)

    def end(self, error: BaseException | None) -> None:
        """Say once how it ended."""
        if not self.ended:
            self.ended = True
            _told(self._on_end, error)


class ThreadedEngine:
    """An engine in a thread of its own; ``submit``, ``call``, ``drain`` and ``stop`` may be used from any thread.

    Args:
        model: the stack.
        tokenizer: for texts of events.
        max_batch: most rows at a time.
        max_waiting: most requests that wait for a row.
        kv_bytes: most memory of the rows' caches together; None: ``default_kv_bytes``.
        prefix_bytes: most memory of the prefix cache; 0: none; None: ``default_prefix_bytes``.
        client_rows: most requests of a client that run or wait; None: all but ``max_batch``, which are kept for others.
        client_steps: most steps that the requests of a client may take together (``request.max_steps``).

    Raises:
        OptionError: a bound outside what is allowed.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 8,
        max_waiting: int = 64,
        kv_bytes: int | None = None,
        prefix_bytes: int | None = None,
        client_rows: int | None = None,
        client_steps: int = CLIENT_STEPS,
    ) -> None:
        if max_batch < 1 or max_waiting < 0 or (prefix_bytes or 0) < 0 or (kv_bytes is not None and kv_bytes < 1):
            raise OptionError(
                f"max_batch is {max_batch}, max_waiting {max_waiting}, kv_bytes {kv_bytes}, prefix_bytes {prefix_bytes}; "
                "at least 1, 0, 1 and 0 are needed"
            )
        self._max_bytes = kv_bytes or default_kv_bytes(model.device)
        self._admission = Admission(max_batch, max_waiting, self._max_bytes, client_rows, client_steps)
        if prefix_bytes is None:
            prefix_bytes = default_prefix_bytes(model.config.text, model.cache_dtype, prefill_chunk(model.device), self._max_bytes)
        self._engine = Engine(
            model, tokenizer, max_rows=max_batch, kv_bytes=self._max_bytes, prefix_bytes=prefix_bytes, prefill_rows=PREFILL_ROWS
        )
        self._changed = threading.Condition()
        self._incoming: deque[RequestHandle] = deque()
        self._cancelled: list[RequestHandle] = []
        self._calls: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._live: dict[RequestHandle, None] = {}
        self._draining = self._stopped = False
        self._failure: str | None = None
        self._busy_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request], on_event: Callable[[Event], None], on_end: OnEnd) -> RequestHandle:
        """Hand in requests, all or none.

        Args:
            requests: at least one, all of one client.
            on_event: called on the engine's thread with each event; ``row`` is the request's index.
            on_end: called once after the last event, with None, or with what ended them: ``CancelledError`` after ``cancel`` or
                ``stop``, else the error.

        Raises:
            InputError, PromptTooLongError, OptionError: see ``request.check``; more requests or steps than a client ever gets at
                once.
            OverloadedError: too many requests wait, or too many of this client, or the engine is draining.
            EngineError: the engine cannot go on.
        """
        steps = self._admission.checked(self._engine, requests)
        handle = RequestHandle(self, requests, steps, on_event, on_end)
        with self._changed:
            if self._failure is not None:
                raise EngineError(self._failure)
            if self._draining:
                raise OverloadedError("the server is shutting down; ask another one", retry_after=None)
            self._admission.admit(handle, self._live)
            self._live[handle] = None
            self._incoming.append(handle)
            self._changed.notify()
        return handle

    def call(self, work: Callable[[], T]) -> "Future[T]":
        """Run something that uses the model between two steps.

        Raises:
            OverloadedError, EngineError: the engine has ended.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._failure is not None:
                raise EngineError(self._failure)
            if self._stopped:
                raise OverloadedError("the server is shutting down; ask another one", retry_after=None)
            self._calls.append((work, future))  # type: ignore[arg-type]
            self._changed.notify()
        return future

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait until those that are there have ended; False if they have not in time (seconds)."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(lambda: self._stopped or not self._live, timeout)

    def stop(self) -> None:
        """End what runs, and the thread."""
        with self._changed:
            self._draining = self._stopped = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def draining(self) -> bool:
        """Whether no more requests are taken."""
        return self._draining

    @property
    def failure(self) -> str | None:
        """Why the engine cannot go on; None: it can."""
        return self._failure

    @property
    def stats(self) -> EngineStats:
        """Counts of this moment."""
        engine = self._engine
        with self._changed:
            live, running = sum(handle.left for handle in self._live), len(engine.rows)
        return EngineStats(
            waiting=max(0, live - running),
            running=running,
            kv_bytes=engine.kv_bytes,
            max_kv_bytes=self._max_bytes,
            max_rows=self._admission.max_batch,
            client_steps=self._admission.client_steps,
            prefix_bytes=engine.prefix.bytes,
            prefix_tokens_reused=engine.prefix.reused,
            seconds_busy=self._busy_seconds,
            failure=self._failure,
            **vars(engine.counts),
        )

    # -- the engine's thread -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            log.critical("the engine cannot go on", exc_info=error)
            self._failure = f"the engine has ended ({type(error).__name__}) and takes no more requests; the server's log says why"
        with self._changed:
            self._draining = self._stopped = True
            for handle in list(self._live):
                self._end(handle, CancelledError() if self._failure is None else EngineError(self._failure))
            for _, future in self._calls:
                future.cancel()
            self._changed.notify_all()

    def _turn(self) -> bool:
        """Take what callers asked for, and one step; False at the end."""
        with self._changed:
            self._changed.wait_for(self._anything)
            if self._stopped:
                return False
            self._take()
            call = self._calls.popleft() if self._calls else None
        if call is not None:  # one a step: none of those that call, nor of those with rows, waits for all the others
            _answered(*call)
        began = time.perf_counter()
        try:
            for key, event in self._engine.step():
                assert isinstance(key, RequestHandle)
                self._tell(key, event)
        except BaseException as error:
            log.exception("a step of the engine failed; the requests in it end")
            self._fail(as_error(error))
            self._probe()
        self._busy_seconds += time.perf_counter() - began
        return True

    def _anything(self) -> bool:
        return self._stopped or self._engine.busy or bool(self._incoming or self._cancelled or self._calls)

    def _take(self) -> None:
        """What callers have asked for since the last step."""
        while self._incoming:
            handle = self._incoming.popleft()
            try:
                for number, request in enumerate(handle.requests):
                    self._engine.add(request, handle, number)
            except BaseException as error:
                log.exception("a request could not be taken in")
                self._engine.cancel(handle)
                self._end(handle, as_error(error))
        for handle in self._cancelled:
            self._engine.cancel(handle)
            self._end(handle, CancelledError())
        self._cancelled.clear()

    def _tell(self, handle: RequestHandle, event: Event | Failed) -> None:
        if handle.ended:
            return
        if isinstance(event, Failed):
            log.error("a request ends with %r", event.error)
            self._engine.cancel(handle)
            with self._changed:
                self._end(handle, event.error)
            return
        _told(handle.on_event, event)
        if isinstance(event, Done):
            handle.left -= 1
            if not handle.left:
                self._admission.took(time.perf_counter() - handle.began)
                with self._changed:
                    self._end(handle, None)

    def _end(self, handle: RequestHandle, error: BaseException | None) -> None:
        """With the lock held."""
        self._live.pop(handle, None)
        handle.end(error)
        self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        """End the requests that were in a step; those that only wait go on."""
        with self._changed:
            for handle in dict.fromkeys(row.key for row in self._engine.rows):
                assert isinstance(handle, RequestHandle)
                self._engine.cancel(handle)
                self._end(handle, error)

    def _probe(self) -> None:
        """After a failure: whether the model computes at all; raises what it does instead."""
        model = self._engine.model
        with torch.inference_mode():
            cache = RowCache(model.config.text, 1, model.cache_dtype, model.device)
            model.logits(model.encode_rows([[0]], [cache])[0]).argmax(-1).tolist()

    def _cancel(self, handle: RequestHandle) -> None:
        with self._changed:
            if handle in self._live and handle not in self._cancelled:
                self._cancelled.append(handle)
                self._changed.notify_all()

    def client(self) -> BlockingClient:
        """An executor for one caller that waits for its events, as ``DiffusionGemmaModel.with_engine`` takes it."""
        return BlockingClient(self)


def _told(listener: Callable[[T], None], what: T) -> None:
    """A listener's mistake must not end the others' requests."""
    try:
        listener(what)
    except BaseException:
        log.exception("a listener of the engine failed")


def _answered(work: Callable[[], object], future: "Future[object]") -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(as_error(error))
