"""Clients that send half of something, take nothing, or are too many; the end of the process whatever they do."""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from diffusiongemma.engine.bridge import DRAFTS_AHEAD
from diffusiongemma.engine.events import Draft
from diffusiongemma.engine.threaded import EngineStats
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.server.connection import room_for_files
from tests.server.running import Job, Running, StillEngine, running, until

BODY = {"messages": [{"role": "user", "content": "hi"}]}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALF_BODY = HEAD + b"Content-Length: 50\r\n\r\n{"


@contextmanager
def connections(started: Running, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(stack.enter_context(socket.create_connection(started.address, timeout=20)))
            made[-1].sendall(sent)
        yield made


def ended(raw: socket.socket, seconds: float) -> bytes:
    """What came before the end of a connection."""
    raw.settimeout(seconds)
    result = b""
    try:
        while piece := raw.recv(1 << 16):
            result += piece
    except ConnectionResetError:
        pass
    return result


def json_answer(raw: socket.socket) -> bytes:
    """The first line of an answer that is read to its end."""
    result = b""
    while not result.endswith(b"}"):
        piece = raw.recv(1 << 16)
        assert piece, result
        result += piece
    return result.split(b"\r\n")[0]


@pytest.mark.parametrize("sent", [b"", b"GET /hea", HEAD, HEAD + b"X: " + b"a" * 5000])
def test_a_head_has_its_time(nano: DiffusionGemmaModel, sent: bytes) -> None:
    with running(nano, StillEngine(), head_seconds=0.3) as started, connections(started, 1, sent) as (raw,):
        assert ended(raw, 10) == b""


def test_bytes_that_drip_do_not_set_the_clock_back(nano: DiffusionGemmaModel) -> None:
    with running(nano, StillEngine(), head_seconds=0.5) as started, connections(started, 1, HEAD) as (raw,):
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 10:
                raw.sendall(b"X: y\r\n")
                time.sleep(0.05)
        assert time.monotonic() - began < 5


def test_a_connection_that_is_used_again_has_its_time_each_time(nano: DiffusionGemmaModel) -> None:
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    with running(nano, StillEngine(), head_seconds=0.5) as started, connections(started, 1, get + b"\r\n") as (raw,):
        assert b" 200 " in json_answer(raw)
        time.sleep(0.8)  # between two requests there is more time
        for _ in range(3):
            raw.sendall(get)
            time.sleep(0.2)
            raw.sendall(b"\r\n")
            assert b" 200 " in json_answer(raw)
        raw.sendall(get)
        assert ended(raw, 10) == b""


def test_a_body_that_is_never_whole_is_no_request_under_way(nano: DiffusionGemmaModel) -> None:
    with (
        running(nano, StillEngine(), body_seconds=0.7, max_requests=2) as started,
        connections(started, 20, HALF_BODY) as raws,
    ):
        assert started.state.active == 0
        assert started.http.post("/v1/chat/completions", content=b"{}", headers={"content-type": "a/b"}).status_code == 400
        assert all(b" 408 " in ended(raw, 10).split(b"\r\n")[0] for raw in raws)
        until(lambda: started.state.receiving == 0)


def test_the_bytes_of_all_bodies_have_a_bound(nano: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusiongemma.server.security._MAX_BODIES", 3)
    part = HEAD + b"Content-Length: 2000\r\n\r\n" + b" " * 1900
    with running(nano, StillEngine(), max_body_bytes=2000) as started:
        with connections(started, 3, part):
            until(lambda: started.state.receiving == 3 * 1900)
            with connections(started, 1, part) as (one_more,):
                assert b" 429 " in json_answer(one_more)
        until(lambda: started.state.receiving == 0)
        assert started.http.post("/v1/chat/completions", json={}).status_code == 400


def test_a_body_that_nobody_waits_for_is_cut_off(nano: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusiongemma.server.connection._GRACE", 0.1)
    refused = HALF_BODY.replace(b"Content-Length: 50", b"Content-Length: 99999999")
    with running(nano, StillEngine(), body_seconds=0.5) as started, connections(started, 1, refused) as (raw,):
        assert b" 413 " in json_answer(raw)
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 10:
                raw.sendall(b" ")
                time.sleep(0.05)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("sent", [b"", HEAD, HALF_BODY])
def test_new_clients_come_in_however_many_connections_are_held(nano: DiffusionGemmaModel, sent: bytes) -> None:
    with running(nano, StillEngine(), max_connections=10) as started, connections(started, 100, sent):
        for _ in range(5):
            with httpx.Client(base_url=started.url, timeout=20) as another:
                assert another.get("/health").json()["status"] == "ok"
        assert len(started.server.server_state.connections) <= 10


def test_answers_under_way_are_not_closed_for_new_clients(nano: DiffusionGemmaModel) -> None:
    engine = StillEngine()
    with running(nano, engine, max_connections=4) as started, httpx.Client(base_url=started.url, timeout=10) as other:
        threads = [threading.Thread(target=other.post, args=("/v1/chat/completions",), kwargs={"json": BODY}) for _ in range(2)]
        for thread in threads:
            thread.start()
        jobs = [engine.next(), engine.next()]
        with connections(started, 30, HEAD):
            assert not any(job.cancelled.is_set() for job in jobs)
            for job in jobs:
                job.finish("done")
                job.on_end(None)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def flood(job: Job, count: int) -> None:
    """More than the system keeps for a connection."""
    draft = Draft(0, 0, 1, [7] * 256, [0.5] * 256, [True] * 256, "x" * 256, [False] * 256)
    for _ in range(count):
        job.on_event(draft)
    for _ in range(40):
        job.say("x" * 250_000)


def test_who_takes_nothing_is_cut_off_and_holds_little(nano: DiffusionGemmaModel) -> None:
    engine = StillEngine()
    body = b'{"messages":[{"role":"user","content":"hi"}],"stream":true,"diffusing":true}'
    sent = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with running(nano, engine, write_seconds=0.5) as started, connections(started, 2, sent):
        jobs = [engine.next(), engine.next()]
        for job in jobs:
            flood(job, 20 * DRAFTS_AHEAD)
        assert all(job.cancelled.wait(20) for job in jobs)
        until(lambda: started.state.active == 0)
        until(lambda: not started.server.server_state.connections)


def test_who_reads_slowly_gets_all_of_it(nano: DiffusionGemmaModel) -> None:
    engine = StillEngine()
    body = b'{"messages":[{"role":"user","content":"hi"}],"stream":true}'
    sent = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with running(nano, engine, write_seconds=1.0) as started, connections(started, 1, sent) as (raw,):
        job = engine.next()
        flood(job, 0)
        job.finish("x")
        job.on_end(None)
        result = b""
        while piece := raw.recv(1 << 18):
            result += piece
            time.sleep(0.05)
        assert result.count(b"x" * 250_000) == 40
        assert b"data: [DONE]" in result


def test_draining_ends_in_its_time(nano: DiffusionGemmaModel) -> None:
    engine = StillEngine()
    body = b'{"messages":[{"role":"user","content":"hi"}],"stream":true}'
    sent = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with (
        running(nano, engine, drain_seconds=0.5) as started,
        connections(started, 3, sent),
        connections(started, 3, HALF_BODY),
        connections(started, 3, HEAD),
    ):
        for _ in range(3):
            flood(engine.next(), 0)
        began = time.monotonic()
        started.server.handle_exit(15, None)
        until(lambda: started.server.should_exit)
        until(lambda: not started.server.server_state.connections)
        assert time.monotonic() - began < 10


def test_an_engine_that_cannot_go_on_ends_the_server(nano: DiffusionGemmaModel) -> None:
    class Dead(StillEngine):
        failure: str | None = None

        @property
        def stats(self) -> EngineStats:
            return EngineStats(**{**vars(super().stats), "failure": self.failure})

    engine = Dead()
    with running(nano, engine) as started:
        assert started.http.get("/health").status_code == 200
        metrics = started.http.get("/metrics").text
        assert 'diffusiongemma_engine_failure{model="nano"} 0.0' in metrics
        engine.failure = "the device is gone"
        answer = started.http.get("/health")
        assert answer.status_code == 503
        assert answer.json()["status"] == "failed"
        assert answer.json()["engines"]["nano"]["failure"] == "the device is gone"
        until(lambda: started.server.failure == "the device is gone")
        until(lambda: started.server.should_exit)


def test_room_for_files() -> None:
    code = (
        "import resource, sys\nfrom diffusiongemma.server.connection import room_for_files\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))\n"
        "print(room_for_files(512), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    for soft, hard, expected in ((4096, 4096, "512 4096"), (256, 4096, "512 768"), (300, 300, "44 300"), (64, 64, "1 64")):
        command = [sys.executable, "-c", code, str(soft), str(hard)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == expected.split()
    assert room_for_files(8) == 8


@contextmanager
def process(code: str, files: int | None = None, stderr: int | None = None) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """``serve`` in a process of its own, after some code."""
    start = f"import sys\n{code}\nfrom diffusiongemma.cli.main import main\nsys.argv = ['diffusiongemma', *sys.argv[1:]]\nmain()"
    command = [sys.executable, "-c", start, "serve", "--port", "0", "-m", "sudoku", "--drain-seconds", "3"]
    limit = None if files is None else (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if stderr is None else stderr, text=True, preexec_fn=limit
    ) as made:
        assert made.stdout is not None
        try:
            line = made.stdout.readline()
            assert line.startswith("serving at"), line
            yield made, line.split()[2]
        finally:
            made.kill()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
def test_more_half_sent_heads_than_files(tmp_path: Path) -> None:
    with process("", files=400) as (made, url), ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        for _ in range(450):
            raw = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            raw.sendall(b"GET /hea")
        before = cpu_seconds(made.pid)
        for _ in range(10):
            assert httpx.get(f"{url}/health", timeout=10).status_code == 200
            time.sleep(0.1)
        assert cpu_seconds(made.pid) - before < 1.0
        made.send_signal(signal.SIGTERM)
        assert made.wait(20) == 0
        assert made.stderr is not None
        assert len(made.stderr.read().splitlines()) < 10


def test_files_that_run_out_are_told_once(tmp_path: Path) -> None:
    """Where the server's own bound does not hold: other parts of the process have taken the files."""
    greedy = """
import signal, threading, time
held = []
def take():
    try:
        while True: held.append(open("/dev/null"))
    except OSError:
        time.sleep(3)
        held.clear()
signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=take, daemon=True).start())
"""
    with process(greedy, files=400) as (made, url):
        host, port = url.removeprefix("http://").split(":")
        made.send_signal(signal.SIGUSR1)
        time.sleep(1)
        raws = [socket.create_connection((host, int(port)), timeout=20) for _ in range(20)]
        time.sleep(1)
        for raw in raws:
            raw.close()
        until_seconds = time.monotonic() + 20
        while time.monotonic() < until_seconds:
            try:
                assert httpx.get(f"{url}/health", timeout=20).status_code == 200
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        else:
            raise AssertionError("it never answered again")
        made.send_signal(signal.SIGTERM)
        made.wait(20)
        assert made.stderr is not None
        assert len(made.stderr.read().splitlines()) < 10


def test_it_drains_though_nobody_reads_what_it_says() -> None:
    reading, writing = os.pipe()
    with process("", stderr=writing) as (made, url):
        os.close(writing)
        os.close(reading)
        assert httpx.get(f"{url}/health").status_code == 200
        made.send_signal(signal.SIGTERM)
        assert made.wait(20) == 0


def test_an_engine_that_dies_ends_the_process() -> None:
    code = """
import signal
from diffusiongemma.model.transformer import Transformer
class PanicException(BaseException): pass
def broken(*_): raise PanicException("the device is gone")
signal.signal(signal.SIGUSR1, lambda *_: setattr(Transformer, "encode_rows", broken))
"""
    with process(code) as (made, url):
        made.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "1", "max_tokens": 4}, timeout=20)
        assert answer.status_code in (500, 503), answer.text
        assert made.wait(20) == 1
        assert made.stderr is not None
        assert "the engine has ended (PanicException)" in " ".join(made.stderr.read().split())


def test_a_port_that_is_taken_is_our_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "diffusiongemma", "serve", "--model", "sudoku", "--port", str(port)]
        made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 2
    said = " ".join(made.stderr.split())
    assert said.startswith(f"error: 127.0.0.1 port {port} cannot be listened on: address already in use; give another --port")
    wrong = [sys.executable, "-m", "diffusiongemma", "serve", "--model", "sudoku", "--host", "127.0.0.1.nowhere.invalid"]
    assert subprocess.run(wrong, capture_output=True, text=True, timeout=60, check=False).returncode == 2
