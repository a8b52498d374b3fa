"""A server with work under way: clients that leave, too much work, errors in the middle, an end."""

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import httpx
import openai
import pytest

from diffusiongemma.engine.bridge import DRAFTS_AHEAD
from diffusiongemma.engine.events import Draft
from diffusiongemma.generation import DiffusionGemmaModel
from tests.server.running import Job, Running, StillEngine, running, until

BODY = {"messages": [{"role": "user", "content": "hi"}]}
STREAM = BODY | {"stream": True}


@contextmanager
def still(nano: DiffusionGemmaModel, most: int = 100, **settings: object) -> Iterator[tuple[Running, StillEngine]]:
    engine = StillEngine(most)
    with running(nano, engine, **settings) as started:
        yield started, engine


def chat(started: Running, **more: object) -> httpx.Response:
    return started.http.post("/v1/chat/completions", json=BODY | more)


def test_text_comes_as_it_is_committed(nano: DiffusionGemmaModel) -> None:
    with still(nano) as (started, engine), started.http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        lines = response.iter_lines()
        job = engine.next()
        for text in ("One", " two"):
            job.say(text)
            until(lambda text=text: f'"content":"{text}"' in next(lines))  # before there is any more
        job.finish("One two")
        job.on_end(None)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert not job.cancelled.is_set()


def test_a_client_that_leaves_frees_its_rows(nano: DiffusionGemmaModel) -> None:
    with still(nano) as (started, engine), ThreadPoolExecutor() as pool:
        with started.http.stream("POST", "/v1/chat/completions", json=STREAM) as response:
            job = engine.next()
            job.say("One")
            next(response.iter_lines())
        assert job.cancelled.wait(30)

        with httpx.Client(timeout=0.5) as hasty, pytest.raises(httpx.ReadTimeout):
            hasty.post(f"{started.url}/v1/chat/completions", json=BODY)
        assert engine.next().cancelled.wait(30)
        until(lambda: started.state.active == 0)
        later = pool.submit(chat, started)
        job = engine.next()
        job.finish("still here")
        job.on_end(None)
        assert later.result().json()["choices"][0]["message"]["content"] == "still here"


def test_a_row_of_a_real_engine_is_freed(server: Running) -> None:
    engine = server.state.models["nano"].engine
    endless = STREAM | {"num_diffusion_steps": 100_000, "early_stop": False, "diffusing": True, "repair": 0}
    with server.http.stream("POST", "/v1/chat/completions", json=endless) as response:
        next(line for line in response.iter_lines() if line == "event: draft")
        assert engine.stats.running == 1
    until(lambda: engine.stats.running == 0)


def test_an_infill_that_nobody_waits_for_ends(nano: DiffusionGemmaModel) -> None:
    with still(nano) as (started, engine):
        for path, body in (
            ("completions", {"prompt": "a", "suffix": "b"}),
            ("edit/completions", {"input": "a", "instruction": "b", "stream": True}),
        ):
            with httpx.Client(timeout=0.5) as hasty, pytest.raises(httpx.ReadTimeout):
                hasty.post(f"{started.url}/v1/{path}", json=body)
            assert engine.next().cancelled.wait(30)
        until(lambda: started.state.active == 0)
        until(lambda: started.state.models["nano"].rewriting.taken == 0)


def test_rewrites_have_a_bound(nano: DiffusionGemmaModel) -> None:
    with still(nano) as (started, engine), ThreadPoolExecutor() as pool:
        started.state.models["nano"].rewriting.most = 1
        body = {"input": "a", "instruction": "b"}
        first = pool.submit(started.http.post, "/v1/edit/completions", json=body)
        job = engine.next()
        assert started.http.post("/v1/edit/completions", json=body).status_code == 429
        job.finish("done")
        job.on_end(None)
        assert first.result().json()["choices"][0]["message"]["content"] == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
def test_one_client_leaves_places_for_the_rewrites_of_others(nano: DiffusionGemmaModel) -> None:
    with (
        still(nano) as (started, engine),
        ThreadPoolExecutor() as pool,
        httpx.Client(base_url=started.url, transport=httpx.HTTPTransport(local_address="127.0.0.2"), timeout=60) as other,
    ):
        started.state.models["nano"].rewriting.most = 4
        body = {"input": "a", "instruction": "b"}
        running = [pool.submit(started.http.post, "/v1/edit/completions", json=body) for _ in range(3)]
        jobs = [engine.next() for _ in running]
        refused = started.http.post("/v1/edit/completions", json=body)
        assert refused.status_code == 429 and "3 of this client, of at most 3" in refused.json()["error"]["message"]
        running.append(pool.submit(other.post, "/v1/edit/completions", json=body))
        for job in [*jobs, engine.next()]:
            job.finish("done")
            job.on_end(None)
        assert [one.result().status_code for one in running] == [200] * 4
        until(lambda: started.state.models["nano"].rewriting.taken == 0)


def test_a_schema_that_takes_long_holds_up_no_plain_request(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, requests = threading.Event(), server.model.requests

    def slow(*args: object, **options: object) -> object:
        assert "regex" not in options or compiled.wait(20)
        return requests(*args, **options)

    monkeypatch.setattr(server.model, "requests", slow)
    with ThreadPoolExecutor() as pool:
        held = [pool.submit(chat, server, max_tokens=4, regex="ab|ba") for _ in range(5)]
        assert chat(server, max_tokens=1, num_diffusion_steps=1).status_code == 200
        compiled.set()
        assert {answer.result().json()["choices"][0]["message"]["content"] for answer in held} <= {"ab", "ba"}


def test_an_engine_that_stops_says_so(nano: DiffusionGemmaModel) -> None:
    with still(nano) as (started, engine), ThreadPoolExecutor() as pool:
        lost = pool.submit(chat, started)
        engine.next().on_end(CancelledError())
        assert lost.result().status_code == 503
        assert lost.result().json()["error"]["code"] == "stopped"


def test_too_much_is_told_to_come_back(nano: DiffusionGemmaModel) -> None:
    with still(nano, most=0) as (started, _):
        answer = chat(started)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "3"
        assert answer.json()["error"] == {
            "message": "0 requests wait", "type": "rate_limit_error", "param": None, "code": "overloaded"
        }  # fmt: skip
        assert chat(started, stream=True).status_code == 429
        with (
            openai.OpenAI(base_url=f"{started.url}/v1", api_key="none", max_retries=0) as client,
            pytest.raises(openai.RateLimitError),
        ):
            client.chat.completions.create(model="nano", messages=BODY["messages"])
    with still(nano, max_requests=1) as (started, engine), ThreadPoolExecutor() as pool:
        first = pool.submit(chat, started)
        job = engine.next()
        assert chat(started).status_code == 429
        assert started.http.get("/health").status_code == 200
        job.finish("done")
        job.on_end(None)
        assert first.result().status_code == 200


def test_an_error_in_the_middle_ends_a_stream(nano: DiffusionGemmaModel) -> None:
    with still(nano) as (started, engine), ThreadPoolExecutor() as pool:
        stream = pool.submit(chat, started, stream=True)
        job = engine.next()
        job.say("One")
        job.on_end(RuntimeError("a secret"))
        *_, last = [block for block in stream.result().text.split("\n\n") if block]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
        assert "secret" not in last
        whole = pool.submit(chat, started)
        engine.next().on_end(RuntimeError("a secret"))
        assert whole.result().status_code == 500

        with openai.OpenAI(base_url=f"{started.url}/v1", api_key="none", max_retries=0) as client:
            chunks = client.chat.completions.create(model="nano", messages=BODY["messages"], stream=True)
            engine.next().on_end(RuntimeError("a secret"))
            with pytest.raises(openai.APIError, match="went wrong"):
                list(chunks)


def test_a_slow_reader_misses_drafts_and_no_text(nano: DiffusionGemmaModel) -> None:
    draft = Draft(0, 0, 1, [7] * 64, [0.0] * 64, [True] * 64, "x" * 64, [False] * 64)
    most = 20 * DRAFTS_AHEAD
    with still(nano) as (started, engine):
        body = STREAM | {"diffusing": True}
        with started.http.stream("POST", "/v1/chat/completions", json=body) as response:
            job = engine.next()
            for step in range(most):  # without a pause: nobody could read as fast
                job.on_event(replace(draft, step=step))
            job.say("One")
            job.finish("One")
            job.on_end(None)
            text = response.read().decode()
    assert 0 < text.count("event: draft") <= most
    assert text.count("event: commit") == text.count("event: finish") == 1
    assert text.endswith("data: [DONE]\n\n")


def test_draining_finishes_what_is_under_way(nano: DiffusionGemmaModel) -> None:
    with still(nano) as (started, engine), ThreadPoolExecutor() as pool:
        under_way = pool.submit(chat, started, stream=True)
        job: Job = engine.next()
        started.server.handle_exit(15, None)
        until(lambda: started.http.get("/health").json()["status"] == "draining")
        refused = chat(started)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        job.say("All of it")
        job.finish("All of it")
        job.on_end(None)
        assert "All of it" in under_way.result().text
        assert under_way.result().text.endswith("data: [DONE]\n\n")
        until(lambda: started.server.should_exit)


def test_the_counts_for_prometheus(server: Running) -> None:
    chat(server, max_tokens=1)
    server.http.get("/no/such/path")
    text = server.http.get("/metrics").text
    assert 'diffusiongemma_http_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert 'diffusiongemma_http_requests_total{path="other",status="404"}' in text
    assert 'diffusiongemma_engine_running{model="nano"}' in text
    assert 'diffusiongemma_engine_completion_tokens_total{model="nano"}' in text


def test_the_list_of_paths_needs_no_other_site(server: Running) -> None:
    page = server.http.get("/docs")
    assert page.status_code == 200
    assert "/v1/decisions" in page.text
    assert "num_diffusion_steps" in page.text
    assert "<script" not in page.text
    assert "http://" not in page.text + page.headers.get("link", "")
    described = server.http.get("/openapi.json").json()
    assert "400" in described["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert "422" not in described["paths"]["/v1/chat/completions"]["post"]["responses"]
