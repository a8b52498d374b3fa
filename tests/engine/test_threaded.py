"""Many callers on one engine: an answer is what it is alone, whoever else is there, comes, goes, or is too much."""

import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusiongemma import Choice
from diffusiongemma.engine.engine import Engine
from diffusiongemma.engine.events import Commit, Done, Draft, Event, Result
from diffusiongemma.engine.request import Request
from diffusiongemma.engine.scheduler import default_kv_bytes
from diffusiongemma.engine.threaded import ThreadedEngine
from diffusiongemma.errors import EngineError, InputError, OptionError, OverloadedError, PromptTooLongError
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.model import cache
from diffusiongemma.model.cache import KVCache
from tests.tiny import tiny_model, tiny_transformer

SHORT: dict[str, Any] = {"num_diffusion_steps": 5, "max_tokens": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    return tiny_model(tmp_path_factory.mktemp("model"), tiny_transformer(scale=0.4))


@pytest.fixture(name="shared")
def _shared(model: DiffusionGemmaModel) -> Iterator[ThreadedEngine]:
    engine = ThreadedEngine(model.transformer, model.tokenizer, max_batch=4)
    yield engine
    engine.stop()


def mixed(model: DiffusionGemmaModel) -> list[Request]:
    """Requests that have little in common."""
    return [
        *model.requests("abc", seed=1, **SHORT),
        *model.requests("Hello", seed=2, num_diffusion_steps=3, max_tokens=9, canvas_length=3, logprobs=2),
        *model.requests("x", seed=3, mode="causal", temperature=0.7, max_tokens=11),
        *model.requests("abcdefghijklmnopqrstuvwxyz", seed=4, entropy_bound=3.0, t_max=1.5, **SHORT),
        *model.requests("abc", seed=5, pins={1: 4, 9: 5}, drafts=True, **SHORT),
        *model.requests("cba", seed=6, self_conditioning=False, commit="canvas", stop_rule="answer", **SHORT),
        *model.requests("zz", seed=7, mode="causal", max_tokens=3, logprobs=0),
        *model.requests("abc", seed=1, stop="a", **SHORT),
    ]


def alone(model: DiffusionGemmaModel, request: Request) -> list[Event]:
    return list(model.engine.run([request]))


def told(events: list[Event]) -> list[Any]:
    """All of the events but the clock."""
    return [
        (event.result.text, event.result.token_ids, event.result.usage.denoising_steps) if isinstance(event, Done) else event
        for event in events
    ]


def run(shared: ThreadedEngine, request: Request) -> list[Event]:
    return list(shared.client().run([request]))


def test_an_answer_is_what_it_is_alone(model: DiffusionGemmaModel, shared: ThreadedEngine) -> None:
    """Bit for bit: tokens, entropies of drafts and log-probabilities, in float32."""
    requests = mixed(model)
    expected = [told(alone(model, request)) for request in requests]
    with ThreadPoolExecutor(16) as callers:
        for order in (requests * 2, requests[::-1] * 2):
            result = list(callers.map(lambda request: told(run(shared, request)), order))
            assert result == (expected * 2 if order[0] is requests[0] else expected[::-1] * 2)


def test_a_long_prompt_does_not_hold_up_the_others(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK_CPU", 4)
    engine = Engine(model.transformer, model.tokenizer, max_rows=4)
    long, short = (*model.requests("abc" * 8, seed=1, **SHORT), *model.requests("a", seed=2, drafts=True, **SHORT))
    engine.add(long, "long")
    engine.add(short, "short")
    steps = []
    while engine.busy:
        steps.append({key for key, _ in engine.step()})
    assert "short" in steps[0], "it denoises while the long prompt is encoded"
    assert all("long" not in keys for keys in steps[:5])


def test_prefill_is_rationed(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = model.transformer.encode_rows
    monkeypatch.setattr(model.transformer, "encode_rows", lambda ids, *rest: (sizes.append(len(ids)), encode(ids, *rest))[1])
    engine = Engine(model.transformer, model.tokenizer, max_rows=16, prefill_rows=4)
    for request in model.requests("abc", n=10, seed=1, num_diffusion_steps=20, early_stop=False, max_tokens=8):
        engine.add(request)
    while engine.busy:
        list(engine.step())
    assert sizes == [4, 4, 2]


def test_a_prefix_is_encoded_once_and_changes_nothing(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK_CPU", 4)
    prompts = ["abcdefghij", "abcdefghxy", "abcdefgh", "abcd", "zbcdefghij"]
    requests = [request for prompt in prompts for request in model.requests(prompt, seed=3, **SHORT)]
    expected = [told(alone(model, request)) for request in requests]
    a_block = KVCache.bytes_of(model.config.text, 4, model.dtype, canvas=0, chunk=4)
    shared = ThreadedEngine(model.transformer, model.tokenizer, prefix_bytes=3 * a_block)
    result = [told(run(shared, request)) for request in requests]
    assert result == expected
    # abcd efgh | abcd efgh | abcd (the last token is always encoded) | none of "abcd" | none
    assert shared.stats.prefix_tokens_reused == 8 + 4 and shared.stats.prefix_bytes == 3 * a_block
    assert told(run(shared, requests[0])) == expected[0]
    shared.stop()


def test_who_goes_away_frees_the_row_within_a_step(model: DiffusionGemmaModel) -> None:
    shared = ThreadedEngine(model.transformer, model.tokenizer, max_batch=1)
    (endless,) = model.requests("abc", seed=1, num_diffusion_steps=100_000, early_stop=False, drafts=True, max_tokens=8)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    handle = shared.submit([endless], events.put, ended.put)
    events.get(timeout=30)
    assert shared.stats.running == 1
    handle.cancel()
    assert isinstance(ended.get(timeout=30), CancelledError)
    taken = shared.stats.denoising_steps
    (quick,) = model.requests("abc", seed=1, **SHORT)
    assert told(run(shared, quick)) == told(alone(model, quick))
    assert shared.stats.denoising_steps - taken == alone(model, quick)[-1].result.usage.denoising_steps  # type: ignore[union-attr]
    handle.cancel()
    assert ended.empty()
    shared.stop()


def test_too_much_is_refused_with_the_time_to_wait(model: DiffusionGemmaModel) -> None:
    shared = ThreadedEngine(model.transformer, model.tokenizer, max_batch=1, max_waiting=1)
    (endless,) = model.requests("abc", seed=1, num_diffusion_steps=100_000, early_stop=False, max_tokens=8)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    tickets = [shared.submit([endless], lambda _: None, ended.put) for _ in range(2)]
    with pytest.raises(OverloadedError, match="2 requests run or wait, of at most 2") as refused:
        shared.submit([endless], lambda _: None, ended.put)
    assert refused.value.retry_after is not None and refused.value.retry_after > 0
    with pytest.raises(InputError, match="3 rows to run; this server takes 1 to 2"):
        shared.submit([endless] * 3, lambda _: None, ended.put)
    tickets[1].cancel()
    assert isinstance(ended.get(timeout=30), CancelledError)
    shared.submit([endless], lambda _: None, ended.put)
    shared.stop()
    assert all(isinstance(ended.get(timeout=30), CancelledError) for _ in range(2))
    with pytest.raises(OverloadedError, match="shutting down"):
        shared.submit([endless], lambda _: None, ended.put)


def test_memory_is_known_before_a_row_joins(model: DiffusionGemmaModel) -> None:
    (request,) = model.requests("abc", seed=1, **SHORT)
    needed = KVCache.bytes_of(model.config.text, 3 + 24, model.dtype, canvas=8, chunk=128)
    shared = ThreadedEngine(model.transformer, model.tokenizer, kv_bytes=2 * needed)
    max_tokens = 0

    def watch(_: Event) -> None:
        nonlocal max_tokens
        max_tokens = max(max_tokens, shared.stats.kv_bytes)

    ended = threading.Event()
    shared.submit([request] * 5, watch, lambda _: ended.set())
    assert ended.wait(60)
    assert max_tokens == 2 * needed
    shared.stop()
    tight = ThreadedEngine(model.transformer, model.tokenizer, kv_bytes=needed - 1)
    with pytest.raises(PromptTooLongError, match="this server gives all requests together"):
        tight.submit([request], watch, lambda _: None)
    tight.stop()


def test_the_default_budget_is_a_share_of_the_machine() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert default_kv_bytes(torch.device("cpu")) == total // 4


def test_a_step_that_fails_ends_its_requests_and_not_the_engine(
    model: DiffusionGemmaModel, shared: ThreadedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (request,) = model.requests("abc", seed=1, **SHORT)
    with monkeypatch.context() as broken:
        broken.setattr(model.transformer, "denoise_rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(shared, request)
    assert told(run(shared, request)) == told(alone(model, request))


class PanicError(BaseException):
    """As a native library's panic comes to Python (pyo3_runtime.PanicException is no Exception)."""


def _raises(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [ValueError("wrong"), PanicError("a panic"), SystemExit(3)])
@pytest.mark.parametrize("place", ["taken in", "joining", "a step", "an event", "a call"])
def test_whatever_fails_the_engine_goes_on(
    model: DiffusionGemmaModel, shared: ThreadedEngine, monkeypatch: pytest.MonkeyPatch, error: BaseException, place: str
) -> None:
    (request,) = model.requests("abc", seed=1, **SHORT)
    with monkeypatch.context() as broken, pytest.raises((ValueError, EngineError)) as raised:
        if place == "taken in":
            broken.setattr(shared._engine, "add", _raises(error))
        elif place == "joining":
            broken.setattr(shared._engine.runner, "new_cache", _raises(error))
        elif place == "a step":
            broken.setattr(model.transformer, "denoise_rows", _raises(error))
        elif place == "an event":
            broken.setattr("diffusiongemma.engine.answer.Answer.add", _raises(error))
        if place == "a call":
            shared.call(_raises(error)).result(30)
        run(shared, request)
    assert error in (raised.value, raised.value.__cause__)
    assert shared.failure is None
    assert told(run(shared, request)) == told(alone(model, request))


def test_an_error_of_one_row_is_not_that_of_the_step(model: DiffusionGemmaModel, shared: ThreadedEngine) -> None:
    """A decoder that panics at one answer; the rows beside it go on."""
    good = mixed(model)
    expected = [told(alone(model, request)) for request in good]
    (bad,) = model.requests("abc", seed=1, **SHORT)
    opened = shared._engine._open

    def open_broken(one: Any) -> None:
        opened(one)
        if one.request is bad:
            one.answer.add = _raises(PanicError("a panic"))

    shared._engine._open = open_broken  # type: ignore[method-assign]
    with ThreadPoolExecutor(12) as callers:
        failing = [callers.submit(run, shared, bad) for _ in range(3)]
        assert list(callers.map(lambda request: told(run(shared, request)), good)) == expected
    assert all(isinstance(one.exception(), EngineError) for one in failing)


def test_a_step_that_fails_leaves_those_that_wait(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ThreadedEngine(model.transformer, model.tokenizer, max_batch=1)
    (request,) = model.requests("abc", seed=1, num_diffusion_steps=30, early_stop=False, max_tokens=8)
    ended: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
    denoise, failed = model.transformer.denoise_rows, threading.Event()

    def once(*args: Any) -> Any:
        if not failed.is_set() and shared.stats.waiting == 2:
            failed.set()
            raise PanicError("once")
        return denoise(*args)

    monkeypatch.setattr(model.transformer, "denoise_rows", once)
    for number in range(3):
        shared.submit([request], lambda _: None, lambda error, number=number: ended.put((number, error)))
    result = dict(ended.get(timeout=30) for _ in range(3))
    assert failed.is_set() and isinstance(result[0], EngineError) and result[1] is result[2] is None
    shared.stop()


def test_an_engine_that_cannot_go_on_says_so_to_everyone(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ThreadedEngine(model.transformer, model.tokenizer, max_batch=1)
    (request,) = model.requests("abc", seed=1, num_diffusion_steps=100_000, early_stop=False, max_tokens=8)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for _ in range(3):
        shared.submit([request], lambda _: None, ended.put)
    monkeypatch.setattr(model.transformer, "denoise_rows", _raises(PanicError("the device is gone")))
    monkeypatch.setattr(model.transformer, "encode_rows", _raises(PanicError("the device is gone")))
    assert all(isinstance(ended.get(timeout=30), EngineError) for _ in range(3))
    assert shared.drain(30) and shared.failure is not None and "PanicError" in shared.failure
    for use in (lambda: run(shared, request), lambda: shared.call(lambda: 1)):
        with pytest.raises(EngineError, match="takes no more requests"):
            use()
    shared.stop()


def test_numbers_that_are_not_finite_are_no_answer(tmp_path: Path) -> None:
    stack = tiny_transformer(scale=0.4)
    model = tiny_model(tmp_path, stack)
    stack.embed_tokens.weight.data[7, 3] = float("nan")
    for mode in ("diffusion", "causal"):
        with pytest.raises(EngineError, match=r"not finite at .*weights are damaged"):
            model.generate("abc", seed=1, mode=mode, **SHORT)
    with pytest.raises(EngineError, match="not finite at step 1 of canvas 0"):
        list(model.stream("abc", seed=1, drafts=True, **SHORT))


class Broken:
    """Rules that fail at one of their duties."""

    is_complete = False

    def __init__(self, duty: str) -> None:
        self.duty = duty

    def row(self, *_: Any) -> "Broken":
        return self

    def _try(self, duty: str, otherwise: Any) -> Any:
        if duty == self.duty:
            raise ArithmeticError(f"{duty} failed")
        return otherwise

    def forced_tokens(self, length: int) -> Any:
        return self._try("forced_tokens", [-1] * length)

    def read(self, tokens: Any, *_: Any) -> Any:
        return self._try("read", (list(tokens), [], True))

    def commit(self, tokens: Any, *_: Any) -> Any:
        return self._try("commit", list(tokens))


@pytest.mark.parametrize("duty", ["forced_tokens", "read", "commit"])
def test_rules_that_fail_end_their_own_request_alone(model: DiffusionGemmaModel, shared: ThreadedEngine, duty: str) -> None:
    stopping = DiffusionGemmaModel(model.transformer, model.tokenizer, model.defaults, (63,))
    (broken,) = stopping.requests("abc", seed=1, rules=Broken(duty), **SHORT)
    good = mixed(model)
    expected = [told(alone(model, request)) for request in good]
    with pytest.raises(ArithmeticError, match=f"{duty} failed"):
        list(model.engine.run([broken]))
    with ThreadPoolExecutor(8) as callers:
        failing = [callers.submit(run, shared, broken) for _ in range(4)]
        results = list(callers.map(lambda request: told(run(shared, request)), good))
    assert results == expected
    assert all(isinstance(one.exception(), ArithmeticError) for one in failing)
    assert shared.drain(timeout=30) and shared.call(lambda: shared.stats.running).result() == 0


def test_a_listener_that_fails_harms_nobody(model: DiffusionGemmaModel, shared: ThreadedEngine) -> None:
    (request,) = model.requests("abc", seed=1, **SHORT)
    ended = threading.Event()
    shared.submit([request], lambda _: 1 / 0, lambda _: ended.set())  # type: ignore[arg-type, return-value]
    assert told(run(shared, request)) == told(alone(model, request)) and ended.wait(30)


def test_drain_waits_for_what_runs_and_takes_nothing_new(model: DiffusionGemmaModel, shared: ThreadedEngine) -> None:
    (request,) = model.requests("abc", seed=1, num_diffusion_steps=60, early_stop=False, max_tokens=8)
    results: queue.SimpleQueue[Event] = queue.SimpleQueue()
    shared.submit([request], results.put, lambda _: None)
    assert not shared.drain(timeout=0)
    assert shared.draining and shared.drain(timeout=60)
    kinds = []
    while not results.empty():
        kinds.append(type(results.get()))
    assert kinds[-1] is Done
    with pytest.raises(OverloadedError, match="shutting down"):
        run(shared, request)


def test_rewriting_and_deciding_go_through_the_shared_engine(
    model: DiffusionGemmaModel, shared: ThreadedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusiongemma.text.questions import Choice

    own = model.infill("abc", "xyz", min_tokens=1, max_tokens=4, seed=1, num_diffusion_steps=3)
    decided = model.decide("abc", [Choice("which", ["a", "b"])])
    monkeypatch.setattr(model.engine, "run", None)
    served = model.with_engine(shared.client())
    assert served.infill("abc", "xyz", min_tokens=1, max_tokens=4, seed=1, num_diffusion_steps=3).tried == own.tried
    assert served.decide("abc", [Choice("which", ["a", "b"])]).decisions == decided.decisions
    assert served is not model and served.transformer is model.transformer
    blocking_client = shared.client()
    blocking_client.cancel()
    with pytest.raises(CancelledError):
        model.with_engine(blocking_client).infill("abc", "xyz", min_tokens=1, max_tokens=4)
    with pytest.raises(CancelledError):
        model.with_engine(blocking_client).decide("abc", [Choice("which", ["a", "b"])])


def test_a_decision_lets_others_have_their_steps_and_can_be_given_up(model: DiffusionGemmaModel, shared: ThreadedEngine) -> None:
    """Hundreds of canvases; meanwhile a short request is answered, and between two passes the decision ends."""
    from diffusiongemma.generation import decide

    passes, stop = threading.Semaphore(0), threading.Event()
    real = model.transformer.denoise

    def denoise(*given: Any) -> Any:
        passes.release()
        return real(*given)

    blocking_client = shared.client()
    questions = [Choice(f"q{n}", ["ab", "bc", "cd", "da"]) for n in range(10)]
    outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            while not stop.is_set():
                model.with_engine(blocking_client).decide("abc", questions, draws=decide.MAX_DRAWS)
            outcome.put(None)
        except BaseException as error:
            outcome.put(error)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model.transformer, "denoise", denoise)
        thread = threading.Thread(target=work)
        thread.start()
        assert passes.acquire(timeout=30)
        (request,) = model.requests("abc", seed=1, num_diffusion_steps=3, early_stop=False, max_tokens=8)
        taken = 0
        while passes.acquire(blocking=False):
            pass
        run(shared, request)
        while passes.acquire(blocking=False):
            taken += 1
        assert 1 <= taken <= 8, "a pass of the decision for each step of the other"
        blocking_client.cancel()
        error = outcome.get(timeout=30)
        stop.set()
        thread.join(30)
    assert isinstance(error, CancelledError)
    while passes.acquire(blocking=False):
        pass
    assert shared.call(lambda: 5).result(30) == 5 and not passes.acquire(timeout=0.2), "nothing of it is left"


def test_log_probabilities_are_those_of_the_causal_role(model: DiffusionGemmaModel) -> None:
    from diffusiongemma.generation.score import log_probs

    for mode in ("diffusion", "causal"):
        events = list(model.stream("abc", seed=1, mode=mode, logprobs=3, drafts=False, **SHORT))
        result: Result = next(event.result for event in events if isinstance(event, Done))
        results = [one for event in events if isinstance(event, Commit) for one in event.logprobs]
        assert [one.token_id for one in results] == result.token_ids
        (expected,) = log_probs(model.transformer, model.tokenizer.encode("abc"), [result.token_ids])
        assert [one.logprob for one in results] == pytest.approx(expected, abs=1e-4)
        assert all(len(one.top) == 3 and one.top == sorted(one.top, key=lambda pair: -pair[1]) for one in results)
        assert result.token_ids == model.generate("abc", seed=1, mode=mode, **SHORT).token_ids
    with pytest.raises(OptionError, match="logprobs is 21"):
        model.generate("abc", logprobs=21)
    assert not any(event.logprobs for event in model.stream("abc", seed=1, **SHORT) if isinstance(event, Commit))
    assert any(isinstance(event, Draft) for event in model.stream("abc", seed=1, **SHORT))


def test_n_answers_draw_from_seeds_that_follow_each_other(model: DiffusionGemmaModel) -> None:
    requests = model.requests("abc", n=3, seed=5, **SHORT)
    results = [event.result.token_ids for event in model.engine.run(requests) if isinstance(event, Done)]
    assert len(results) == 3
    each = {tuple(model.generate("abc", seed=seed, **SHORT).token_ids) for seed in (5, 6, 7)}
    assert {tuple(ids) for ids in results} == each and len(each) == 3
    with pytest.raises(OptionError, match="n is 0"):
        model.requests("abc", n=0)
