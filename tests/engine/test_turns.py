"""Places go round: by client, by request, by time; a long request stops nobody, and being interrupted changes no answer."""

import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from diffusiongemma.engine import turns
from diffusiongemma.engine.blocking import BlockingClient
from diffusiongemma.engine.engine import Engine
from diffusiongemma.engine.events import Done
from diffusiongemma.engine.threaded import ThreadedEngine
from diffusiongemma.engine.turns import TURN_SECONDS, displaced, first_in_turn
from diffusiongemma.errors import OptionError, OverloadedError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.model.cache import KVCache
from tests.engine.test_threaded import SHORT, alone, mixed, run, told
from tests.tiny import tiny_model, tiny_transformer

ENDLESS: dict[str, Any] = {"num_diffusion_steps": 100_000, "early_stop": False, "max_tokens": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    return tiny_model(tmp_path_factory.mktemp("model"), tiny_transformer(scale=0.4))


@pytest.fixture(name="shared")
def _shared(model: DiffusionGemmaModel) -> Iterator[ThreadedEngine]:
    engine = ThreadedEngine(model.transformer, model.tokenizer, max_batch=4, max_waiting=60, client_steps=10**9)
    yield engine
    engine.stop()


class One:
    """A row, as far as its turn goes."""

    def __init__(self, client: str, key: str, placed: float = 0.0) -> None:
        self.request = SimpleNamespace(client=client)
        self.key = key
        self.placed = placed


def test_the_one_with_the_fewest_places_is_next() -> None:
    a1, a2, b1, b2 = One("a", "a1"), One("a", "a2"), One("b", "b1"), One("b", "b2")
    assert first_in_turn([a1, b1], []) is a1
    assert first_in_turn([a1, b1], [a2]) is b1
    assert first_in_turn([a1, a2, b1], [a2, b1, b2]) is a1
    assert first_in_turn([b2, b1], [b2, a1, a2]) is b1
    assert first_in_turn([], [a1]) is None


def test_only_one_who_has_more_gives_a_place_up_and_only_after_its_turn() -> None:
    a, b = [One("a", "a1") for _ in range(3)], One("b", "b1")
    assert displaced(b, a, TURN_SECONDS / 2) is None
    assert displaced(b, a, 2 * TURN_SECONDS) is a[0]
    assert displaced(One("a", "a1"), a, 99) is None, "its own request has no more than itself"
    assert displaced(One("a", "a2"), a, 99) is a[0]
    assert displaced(One("b", "b2"), [*a, b], 99) is a[0]
    assert displaced(One("c", "c1"), [*a, b], 99) is a[0]
    assert displaced(One("b", "b2"), [One("a", "a1"), b], 99) is b, "the other client has no more than its own"
    later = [One("b", "b1", placed=5), One("c", "c1", placed=3)]
    assert displaced(One("a", "a3"), later, 99) is later[1], "of equals, who had it longest"


def blocking_client(shared: ThreadedEngine, client: str | None) -> BlockingClient:
    made = shared.client()
    made.client = client
    return made


@pytest.mark.parametrize("client", [None, "same", "other"])
def test_long_requests_hold_up_nobody(
    model: DiffusionGemmaModel, shared: ThreadedEngine, client: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.1)
    hostile = None if client is None else "same"
    endless = [replace(request, client=hostile) for request in model.requests("abc", seed=1, n=12, **ENDLESS)]
    tickets = [shared.submit(endless, lambda _: None, lambda _: None) for _ in range(4)]
    while shared.stats.running < 4:
        time.sleep(0.01)
    (quick,) = model.requests("abc", seed=1, **SHORT)
    began = time.monotonic()
    for _ in range(3):
        assert told(list(blocking_client(shared, client).run([quick]))) == told(alone(model, quick))
    assert time.monotonic() - began < 10
    for handle in tickets:
        handle.cancel()
    assert shared.drain(timeout=10) and shared.call(lambda: shared.stats.kv_bytes).result() == 0


def test_an_interrupted_answer_is_what_it_is_alone(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With turns of no length rows are parked at every step, whatever they are doing."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    requests = mixed(model)
    expected = [told(alone(model, request)) for request in requests]
    shared = ThreadedEngine(model.transformer, model.tokenizer, max_batch=2, max_waiting=60)
    with ThreadPoolExecutor(16) as callers:
        assert list(callers.map(lambda request: told(run(shared, request)), requests * 2)) == expected * 2
    shared.stop()


def test_rows_are_parked(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the last test stands on."""
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    engine = Engine(model.transformer, model.tokenizer, max_rows=2)
    for key in "abcd":
        engine.add(*model.requests("abc", seed=1, num_diffusion_steps=9, early_stop=False, max_tokens=8), key)
    had: dict[str, int] = {}
    finished: list[object] = []
    while engine.busy:
        finished += [key for key, event in engine.step() if isinstance(event, Done)]
        for row in engine.rows:
            had[str(row.key)] = had.get(str(row.key), 0) + 1
        if len(had) == 4:
            assert engine.kv_bytes == 4 * KVCache.bytes_of(model.config.text, 3 + 8, model.dtype)
            break
    assert len(had) == 4 and not finished, "all four are under way before any has ended"


def test_memory_goes_to_those_that_wait_in_order(model: DiffusionGemmaModel) -> None:
    small, large = KVCache.bytes_of(model.config.text, 11, model.dtype), KVCache.bytes_of(model.config.text, 3 + 48, model.dtype)
    engine = Engine(model.transformer, model.tokenizer, max_rows=3, kv_bytes=large + small - 1)
    options: dict[str, Any] = {"seed": 1, "num_diffusion_steps": 5, "early_stop": False}
    for key, most in (("a", 8), ("large", 48), ("b", 8)):
        engine.add(*model.requests("abc", max_tokens=most, **options), key)
    order = []
    while engine.busy:
        order += [key for key, event in engine.step() if isinstance(event, Done)]
    assert order == ["a", "large", "b"] or order == ["a", "b", "large"]
    assert order[0] == "a", "b does not pass the large one by while it waits for memory"


def test_a_client_has_a_bound_on_rows_and_steps(model: DiffusionGemmaModel) -> None:
    shared = ThreadedEngine(model.transformer, model.tokenizer, max_batch=2, max_waiting=4, client_steps=250_000)
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    (endless,) = (replace(request, client="a") for request in model.requests("abc", seed=1, **ENDLESS))
    (quick,) = (replace(request, client="a") for request in model.requests("abc", seed=1, num_diffusion_steps=1, max_tokens=8))
    with pytest.raises(OptionError, match="300,000 steps together; this server gives a client 250,000"):
        shared.submit([endless] * 3, lambda _: None, ended.put)
    tickets = [shared.submit([endless], lambda _: None, ended.put) for _ in range(2)]
    with pytest.raises(OverloadedError, match="may take 200,000 steps, of at most 250,000"):
        shared.submit([endless], lambda _: None, ended.put)
    tickets.append(shared.submit([quick] * 2, lambda _: None, ended.put))
    with pytest.raises(OverloadedError, match="requests of this client run or wait, of at most 4"):
        shared.submit([quick], lambda _: None, ended.put)
    assert list(blocking_client(shared, "b").run([quick])), "the places beyond it are for others"
    for handle in tickets:
        handle.cancel()
    assert shared.drain(timeout=30)
    shared.stop()


def test_causal_answers_count_their_tokens(model: DiffusionGemmaModel) -> None:
    shared = ThreadedEngine(model.transformer, model.tokenizer, client_steps=10)
    (short,) = model.requests("abc", mode="causal", max_tokens=10)
    assert list(blocking_client(shared, "a").run([short]))
    (long,) = model.requests("abc", mode="causal", max_tokens=11)
    with pytest.raises(OptionError, match="11 steps"):
        list(blocking_client(shared, "a").run([long]))
    assert list(shared.client().run([long])), "a caller without a name has no bound"
    for bad in ({"client_rows": 0}, {"client_steps": 0}):
        with pytest.raises(OptionError, match="at least 1 of each"):
            ThreadedEngine(model.transformer, model.tokenizer, **bad)
    shared.stop()
