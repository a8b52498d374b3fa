"""The load tools of docs/serving.md do what they say against a real server."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "serving"


@pytest.fixture(scope="module", name="host")
def _host() -> Iterator[str]:
    command = [sys.executable, "-m", "diffusiongemma", "serve", "--model", "nano", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        result = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert result, said
        yield result[0]
        server.kill()


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    run(str(TOOLS / "load.py"), *arguments, "--json", str(out))
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
def test_a_short_fuzz(tmp_path: Path) -> None:
    """All kinds of attack, in all manners of sending; how long others wait is measured where nothing else runs."""
    out = tmp_path / "out.json"
    command = [sys.executable, str(TOOLS / "fuzz.py"), "--requests", "70", "--seed", "6", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert out.is_file(), done.stderr
    result = json.loads(out.read_text())
    assert result["requests"] == 70 and len(result["kinds"]) > 15 and result["said_stop"] > 10
    for name in ("5xx", "unanswered", "broken", "tracebacks", "left_over", "ended"):
        assert not result[name], (name, result[name])
    assert not result["second_client"]["wrong"] and result["second_client"]["chat"]["asked"] > 0


def test_a_short_soak(host: str, tmp_path: Path) -> None:
    result = numbers(
        tmp_path, "soak", "--host", host, "--clients", "6", "--minutes", "0.08", "--pool", "4", "--seconds-between", "2"
    )
    assert set(result["statuses"]) <= {"200", "400"} and result["statuses"]["200"] > 3
    assert set(result["counts"]) <= {"the same as alone", "vanished", "malformed, refused"}, result["counts"]
    assert result["counts"]["the same as alone"] > 0
    assert len(result["memory_mib"]) >= 2 and min(result["memory_mib"]) > 50
    assert result["health_after"]["active"] == 0


def test_a_short_curve(host: str, tmp_path: Path) -> None:
    plot = tmp_path / "curve.png"
    options = ("--concurrency", "1", "2", "--seconds", "2", "--pool", "3", "--plot", str(plot))
    points = numbers(tmp_path, "curve", "--host", host, *options)["points"]
    assert [(point["concurrency"], point["mode"]) for point in points] == [
        (n, mode) for n in (1, 2) for mode in ("diffusion", "causal")
    ]
    for point in points:
        assert point["tokens_per_second"] > 0 and 0 < point["first_text_p50"] <= point["whole_p99"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_restart_after_a_kill() -> None:
    result = json.loads(run(str(TOOLS / "single.py"), "restart", "--repeat", "1"))
    assert 0 < result["median"] == result["worst"]
