"""What the scheduler decides changes no answer: memory that is short, requests that come one by one, neighbours that differ."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from diffusiongemma.engine import engine as engine_module
from diffusiongemma.engine import pinned, runner, scheduler
from diffusiongemma.engine import request as request_module
from diffusiongemma.engine.engine import Engine
from diffusiongemma.engine.events import Commit, Done, Event, Failed
from diffusiongemma.engine.offline import OfflineEngine
from diffusiongemma.engine.request import Request
from diffusiongemma.engine.threaded import ThreadedEngine
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.model.cache import KVCache
from tests.engine.test_threaded import SHORT, alone, mixed, told
from tests.tiny import tiny_model, tiny_transformer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    return tiny_model(tmp_path_factory.mktemp("model"), tiny_transformer(scale=0.4))


@pytest.fixture(scope="module")
def stopping(model: DiffusionGemmaModel) -> DiffusionGemmaModel:
    """The same model with a stop token, so that it can be constrained."""
    return DiffusionGemmaModel(model.transformer, model.tokenizer, model.defaults, (63,))


def ran(engine: Engine) -> dict[object, list[Event]]:
    events: dict[object, list[Event]] = {}
    while engine.busy:
        for key, event in engine.step():
            assert not isinstance(event, Failed), event
            events.setdefault(key, []).append(event)
    return events


def test_who_gives_its_memory_up_answers_the_same(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of prompts, canvases, commits that wait for log-probabilities, and causal answers; bit for bit."""
    monkeypatch.setattr(scheduler, "BLOCK", 1)
    requests = [*mixed(model), *model.requests("abcdefgh", seed=8, max_tokens=40, num_diffusion_steps=2, early_stop=False)]
    requests += model.requests("ab", seed=9, mode="causal", max_tokens=30, logprobs=1)
    expected = {number: told(alone(model, request)) for number, request in enumerate(requests)}
    largest = KVCache.bytes_of(model.config.text, 8 + 40, model.dtype, canvas=8, chunk=128)
    engine = Engine(model.transformer, model.tokenizer, max_rows=8, kv_bytes=2 * largest)
    for number, request in enumerate(requests):
        engine.add(request, number, 0)
    assert {number: told(events) for number, events in ran(engine).items()} == expected
    assert engine.scheduler.preempted > 0


def test_a_long_stream_of_prompts_runs_in_bounded_rows(model: DiffusionGemmaModel) -> None:
    """No more prompts are taken than can step, results come as they finish, and each is what it is alone."""
    (one,) = model.requests("abc", seed=1, **SHORT)
    taken = finished = 0

    def prompts() -> Iterator[Request]:
        nonlocal taken
        for _ in range(80):
            taken += 1
            assert taken - finished <= 8
            yield one

    result = told(alone(model, one))[-1]
    for event in OfflineEngine(model.transformer, model.tokenizer, max_rows=8).run(prompts()):
        if isinstance(event, Done):
            assert told([event]) == [result]
            finished += 1
    assert finished == taken == 80


def test_a_request_that_needs_more_than_there_is_runs_alone(model: DiffusionGemmaModel) -> None:
    requests = model.requests("abc", n=3, seed=1, **SHORT)
    events = list(OfflineEngine(model.transformer, model.tokenizer, kv_bytes=1).run(requests))
    results = {event.row: event.result.text for event in events if isinstance(event, Done)}
    assert [results[row] for row in range(3)] == [alone(model, request)[-1].result.text for request in requests]  # type: ignore[union-attr]


def test_rows_that_differ_in_everything_share_each_call(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, int] = {}
    for name in ("denoise_rows", "canvas_head"):
        real = getattr(model.transformer, name)

        def counted(*args: Any, _name: str = name, _real: Any = real, **options: Any) -> Any:
            calls[_name] = calls.get(_name, 0) + 1
            return _real(*args, **options)

        monkeypatch.setattr(model.transformer, name, counted)
    engine = Engine(model.transformer, model.tokenizer)
    for key, request in enumerate(mixed(model)):
        engine.add(request, key)
    steps = 0
    while engine.busy:
        steps += 1
        list(engine.step())
    assert 0 < calls["denoise_rows"] == calls["canvas_head"] <= steps


def test_a_request_is_checked_once_and_its_constraint_made_once(
    stopping: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between whoever asks and the engine; the way through pins is searched once for all answers."""
    made, searched = [], []
    real, new_path = request_module.constraint_state, pinned._new_path
    monkeypatch.setattr(request_module, "constraint_state", lambda *given: (made.append(given), real(*given))[1])
    monkeypatch.setattr(pinned, "_new_path", lambda *given: (searched.append(given), new_path(*given))[1])
    token = stopping.tokenizer.encode("b")[0]
    requests = stopping.requests("x", n=3, regex="[a-c]{2,9}", pins={2: token}, seed=1, **SHORT)
    shared = ThreadedEngine(stopping.transformer, stopping.tokenizer)
    assert list(shared.client().run([request.of_client("somebody") for request in requests]))
    shared.stop()
    assert len(made) == 3 and len(searched) == 1


def test_a_replacement_comes_from_the_heads_own_pass(stopping: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LARGE_TABLE", 0)
    engine = Engine(stopping.transformer, stopping.tokenizer)
    (request,) = stopping.requests("abc", regex="[a-z]*", seed=1, **SHORT)
    engine.add(request)
    list(engine.step())
    with torch.inference_mode():
        (one,) = engine.rows
        batch = engine.runner.denoise([one])
        best_of = engine.runner.best_of(batch, 0)
        logits_LV = stopping.transformer.logits(batch.hidden[0])
        order = logits_LV.argsort(dim=-1, descending=True)
        real, asked = stopping.transformer.best_of, []
        monkeypatch.setattr(stopping.transformer, "best_of", lambda *given: (asked.append(given), real(*given))[1])
        for rank in (0, 3, 7, 20):
            allowed = torch.ones(logits_LV.shape[1], dtype=torch.bool)
            allowed[order[2, :rank]] = False
            assert best_of(2, allowed) == order[2, rank]
    assert len(asked) == 1, "only where none of the best is allowed"


class Slow:
    """Rules that take their time, as a grammar in another process may."""

    def row(self, *_: Any) -> "Slow":
        return self

    is_complete = False

    def forced_tokens(self, length: int) -> list[int]:
        time.sleep(0.3)
        return [5] + [-1] * (length - 1)

    def read(self, tokens: Any, *_: Any) -> Any:
        time.sleep(0.3)
        return [9, *tokens[1:]], [0], True

    def commit(self, tokens: Any, *_: Any) -> list[int]:
        time.sleep(0.3)
        return [7, *tokens[1:]]


def test_a_slow_constraint_holds_nobody_up(stopping: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sits out steps until it is answered, and its own answer is the same."""
    options: dict[str, Any] = {"seed": 1, "num_diffusion_steps": 2, "early_stop": False, "max_tokens": 16}
    (slow,) = stopping.requests("abc", rules=Slow(), **options)
    expected = told(alone(stopping, slow))
    monkeypatch.setattr(engine_module, "confined", lambda grammar: isinstance(grammar, Slow))
    engine = Engine(stopping.transformer, stopping.tokenizer, max_rows=4)
    engine.add(slow, "slow")
    (free,) = stopping.requests("abc", seed=2, num_diffusion_steps=12, early_stop=False, max_tokens=64)
    engine.add(free, "free")
    events: dict[object, list[Event]] = {"slow": [], "free": []}
    order: list[object] = []
    while engine.busy:
        for key, event in engine.step():
            assert not isinstance(event, Failed)
            events[key].append(event)
            order.append((key, type(event)))
    assert told(events["slow"]) == expected
    first_of_slow = order.index(("slow", Commit))
    assert sum(one == ("free", Commit) for one in order[:first_of_slow]) >= 2, "the other goes on meanwhile"
