"""Grammars that nobody should send: whoever sends one gets an error, and the others do not wait."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from diffusiongemma.constraints import process
from tests.cli.test_serve import serving
from tests.constraints.test_confined import HOSTILE, SLOW_BEHIND, TWO_STEPS, alike
from tests.server.running import Running, until
from tests.server.test_hostile_constraints import CHAT, HI, formatted

SCHEMAS = {
    "multipleOf 99999989": formatted({"type": "integer", "multipleOf": 99_999_989}, strict=True),
    "multipleOf 9973 and 9967": formatted(TWO_STEPS),
    "alternatives that begin alike": formatted(
        {"anyOf": [{"type": "array", "items": {"$ref": "#"}, "maxItems": n} for n in range(600)]}
    ),
}
GRAMMARS = {
    "1,000 rules that begin alike": HI | {"grammar": alike(1000)},
}


PATIENCE = 8.0
"""Seconds that the second client may wait on a busy machine; one call of these grammars took tens of seconds of everyone."""


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMPILE_SECONDS", 0.5)
    monkeypatch.setattr(process, "_AT_ONCE", 0.3)


@contextmanager
def company(server: Running) -> Iterator[list[float]]:
    """A second client that asks for ``/health`` and short answers all the time; how long it waited for each."""
    waits, over = list[float](), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while not over.is_set():
                for answer in (lambda: http.get("/health"), lambda: http.post(CHAT, json=HI)):
                    began = time.monotonic()
                    assert answer().status_code == 200
                    waits.append(time.monotonic() - began)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            until(lambda: len(waits) > 3 or asking.done())
            yield waits
            seen = len(waits)
            until(lambda: len(waits) > seen + 1 or asking.done())
        finally:
            over.set()
            asking.result()


@pytest.mark.parametrize("name", [*SCHEMAS, *GRAMMARS])
def test_a_hostile_constraint_is_refused_and_the_others_go_on(server: Running, name: str) -> None:
    body = (SCHEMAS | GRAMMARS)[name]
    with company(server) as waits:
        answer = server.http.post(CHAT, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] in ("grammar", "response_format")
    assert max(waits) < PATIENCE


def test_one_that_is_slow_on_its_way_ends_alone(server: Running) -> None:
    """Its first texts are cheap; what it takes is counted on the engine, while it writes."""
    (digit,) = server.model.vocabulary.spell(b"1") or []
    body = HI | {"max_tokens": 16, "num_diffusion_steps": 16, "grammar": SLOW_BEHIND, "pins": [[0, digit]]}
    with company(server) as waits:
        answer = server.http.post(CHAT, json=body)
    assert answer.status_code == 400 and "following the grammar took more than" in answer.text, answer.text
    assert max(waits) < PATIENCE


def test_pins_that_cannot_be_are_refused_soon(server: Running) -> None:
    with company(server) as waits:
        for position in (0, 50, 200):
            body = HI | {"max_tokens": 256, "regex": "(?s:.*)", "pins": [[position, 100]]}
            answer = server.http.post(CHAT, json=body)
            assert answer.status_code in (200, 400), answer.text
    assert max(waits) < PATIENCE


def test_nobody_compiles_for_clients_that_left(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "COMPILE_SECONDS", 600.0)
    before, asked = len(process._alive), list[Any]()
    compile_: Callable[..., Any] = process.Process.compile
    monkeypatch.setattr(process.Process, "compile", lambda self, *rest: asked.append(self) or compile_(self, *rest))
    with company(server) as waits:
        for _ in range(4):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}{CHAT}", json=SCHEMAS["multipleOf 9973 and 9967"], timeout=0.5)
        until(lambda: len(asked) == 4 and not any(one.usable for one in asked))
        asked.clear()
        assert len(process._alive) <= before
        assert server.http.post(CHAT, json=HI | {"grammar": 'start: "a" start?'}).status_code == 200
    assert max(waits) < PATIENCE


def test_a_signal_ends_a_server_that_compiles() -> None:
    constraint = HOSTILE["1,000 rules that begin alike"].source
    with serving("--model", "nano", "--drain-seconds", "1") as (made, url), ThreadPoolExecutor() as pool:
        lost = [pool.submit(httpx.post, f"{url}{CHAT}", json=HI | {"grammar": constraint}, timeout=60) for _ in range(6)]
        while httpx.get(f"{url}/health").json()["active"] < 6:
            time.sleep(0.02)
        made.send_signal(signal.SIGTERM)
        assert made.wait(20) == 0
        for one in lost:
            assert one.exception() is not None or one.result().status_code in (400, 429, 503)
