"""``serve``: what it refuses to start with, and how it starts and ends, in a process of its own."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from diffusiongemma.cli.main import app
from diffusiongemma.cli.serve import _is_loopback

KEY = "0123456789abcdef"
LONG = {
    "messages": [{"role": "user", "content": "hi"}],
    "num_diffusion_steps": 150,
    "early_stop": False,
    "max_tokens": 64,
    "seed": 1,
}


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_others_may_not_reach_it_without_a_key(host: str) -> None:
    assert "--api-key-file" in refused("--host", host)


def test_loopback_names() -> None:
    assert all(map(_is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1")))


def test_a_key_that_is_no_key(tmp_path: Path) -> None:
    assert "cannot be read" in refused("--api-key-file", str(tmp_path / "none"))
    for text in ("", "short", f"{KEY} {KEY}", f"{KEY}\n{KEY}", f"{KEY}é"):
        (tmp_path / "key").write_text(text)
        output = refused("--host", "0.0.0.0", "--api-key-file", str(tmp_path / "key"))
        assert "at least 16" in output
        assert KEY not in output


def test_models_that_cannot_be_served() -> None:
    assert "no-such-model" in refused("--model", "no-such-model")
    assert "two models have the name" in refused("-m", "sudoku", "-m", "sudoku")
    assert "two models have the name" in refused("sudoku", "-m", "sudoku")
    assert "--cors is 'example.org'" in refused("sudoku", "--cors", "example.org")


def test_how_models_are_loaded() -> None:
    assert "quantize is 'int3'" in refused("-m", "sudoku", "--quantize", "int3")
    assert "soft_top_k is 0" in refused("-m", "sudoku", "--soft-top-k", "0", "--quantize", "int8")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "diffusiongemma", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("serving at http://127.0.0.1:"), line
            yield process, line.split()[2]
        finally:
            process.kill()


def test_it_serves_drains_and_ends(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    with serving("--model", "nano", "--model", "sudoku", "--api-key-file", str(tmp_path / "key")) as (process, url):
        headers = {"Authorization": f"Bearer {KEY}"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        models = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
        assert [model["id"] for model in models] == ["nano", "sudoku"]
        with ThreadPoolExecutor() as pool:
            under_way = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=LONG, headers=headers, timeout=60)
            while not httpx.get(f"{url}/health").json()["active"]:
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            while (status := httpx.get(f"{url}/health").json()["status"]) == "ok":
                time.sleep(0.02)
            assert status == "draining"
            assert httpx.post(f"{url}/v1/chat/completions", json=LONG, headers=headers).status_code == 503
            answer = under_way.result()
        assert answer.json()["usage"]["diffusion"]["denoising_steps"] == 150
        assert process.wait(10) == 0


def test_a_second_signal_stops_at_once() -> None:
    with serving("--model", "nano") as (process, url), ThreadPoolExecutor() as pool:
        body = LONG | {"num_diffusion_steps": 100_000}
        lost = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=body, timeout=60)
        while not httpx.get(f"{url}/health").json()["active"]:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        while httpx.get(f"{url}/health").json()["status"] == "ok":
            time.sleep(0.02)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
        assert isinstance(lost.exception(), httpx.HTTPError)


def test_it_ends_though_nobody_reads_what_it_says() -> None:
    """What it is started by may be gone: a pipe that nothing reads fails at each line."""
    with serving("sudoku", "--log-requests", "--allow-host", "box.local") as (process, url):
        assert process.stderr is not None and process.stdout is not None
        process.stderr.close()
        process.stdout.close()
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "diffusiongemma", "serve", "--model", "sudoku", "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr
