"""A real server on a free port, in a thread; and an engine that only does what a test says."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import httpx

from diffusiongemma.engine.blocking import BlockingClient
from diffusiongemma.engine.events import Commit, Done, Event, Result, Usage
from diffusiongemma.engine.request import Request
from diffusiongemma.engine.threaded import EngineStats, ThreadedEngine
from diffusiongemma.errors import OverloadedError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.server.app import create_app
from diffusiongemma.server.endpoint import ModelEndpoint
from diffusiongemma.server.run import Server, config
from diffusiongemma.server.settings import Settings
from diffusiongemma.server.state import State


class Running:
    """A server that answers."""

    def __init__(self, url: str, state: State, server: Server) -> None:
        self.url = url
        self.state = state
        self.server = server
        self.http = httpx.Client(base_url=url, timeout=60)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def model(self) -> DiffusionGemmaModel:
        return next(iter(self.state.models.values())).model


@contextmanager
def running(model: DiffusionGemmaModel, engine: Any = None, **settings: Any) -> Iterator[Running]:
    """Serve a model as ``nano``; ``engine``: instead of a real one."""
    own = ThreadedEngine(model.transformer, model.tokenizer, max_batch=4, max_waiting=16) if engine is None else engine
    state, result = State({"nano": ModelEndpoint("nano", model, own)}), list[str]()
    limits = Settings(**settings)
    app = create_app(state.models, limits, state)
    ready = threading.Event()

    def announce(url: str) -> None:
        result.append(url)
        ready.set()

    server = Server(config(app, "127.0.0.1", 0, limits), state, announce, limits.drain_seconds)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        started = Running(result[0], state, server)
        with started.http:
            yield started
    finally:
        server.should_exit = True
        thread.join(10)
        own.stop()
        assert not thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30  # of a busy machine
    while time.monotonic() < deadline:
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


class Job:
    """Requests that were handed to a ``StillEngine``."""

    def __init__(self, requests: Sequence[Request], on_event: Callable[[Event], None], on_end: Callable[[Any], None]) -> None:
        self.requests = requests
        self.on_event = on_event
        self.on_end = on_end
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()
        self.on_end(CancelledError())

    def say(self, text: str, row: int = 0) -> None:
        self.on_event(Commit(row, text, [7]))

    def finish(self, text: str, row: int = 0) -> None:
        prompt = len(self.requests[row].prompt)
        usage = Usage(prompt, 1, prompt + 1, 1, 0, 1.0, 1.0, 0.1)
        self.on_event(Done(row, Result(text, [7], "stop", usage)))


class StillEngine:
    """Takes requests and does nothing by itself."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.jobs: list[Job] = []
        self.came: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def submit(self, requests: Sequence[Request], on_event: Callable[[Event], None], on_end: Callable[[Any], None]) -> Job:
        if len(self.jobs) >= self.most:
            raise OverloadedError(f"{len(self.jobs)} requests wait", 2.5)
        self.jobs.append(Job(requests, on_event, on_end))
        self.came.put(self.jobs[-1])
        return self.jobs[-1]

    def next(self) -> Job:
        """The first job that was not taken yet, once there is one: two may come at once."""
        return self.came.get(timeout=30)

    def client(self) -> BlockingClient:
        return BlockingClient(self)

    def stop(self) -> None:
        pass

    @property
    def stats(self) -> EngineStats:
        return EngineStats(**dict.fromkeys(EngineStats.__dataclass_fields__, 0))
