"""``diffusiongemma bench``, run for real on the ``tiny`` preset."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusiongemma.cli.main import app

runner = CliRunner()
QUICK = ["--preset", "tiny", "--threads", "1", "--steps", "2", "--prompt", "8", "--repeat", "2", "--warmup", "0"]


def test_a_table() -> None:
    result = runner.invoke(app, ["bench", *QUICK, "--against", "plain"])
    assert result.exit_code == 0, result.stdout + result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    for title in ("ms a denoising step", "ms a commit", "tokens a second", "peak above the weights, MiB"):
        (row,) = [line for line in lines if line.startswith(title)]
        assert " x" in row and row.count(" to ") == 2
    assert "batch 1" in lines and sum(line.startswith("roofline:") for line in lines) == 1
    assert "2 steps each on both sides" in result.stdout and "\x1b" not in result.stdout


def test_json_of_several_batches_against_causal(tmp_path: Path) -> None:
    plot = tmp_path / "bench.png"
    more = ["--against", "causal", "--batch", "1,3", "--layers", "2", "--json", "--plot", str(plot)]
    result = runner.invoke(app, ["bench", *QUICK, *more])
    assert result.exit_code == 0, result.stdout + result.stderr
    assert result.stdout.count("\n") == 1 and plot.read_bytes().startswith(b"\x89PNG")
    results = json.loads(result.stdout)
    assert [duel["batch"] for duel in results["duels"]] == [1, 3] == [roof["batch"] for roof in results["roofline"]]
    assert results["model"]["reduced"] == "2 of 3 layers"
    for duel in results["duels"]:
        ours, theirs = duel["sides"]
        assert theirs["measures"]["step_ms"] is None and "step_ms" not in duel["ratio"]
        assert theirs["tokens_per_forward_with_commits"] == 1.0
        # Equal tokens, and a pass after each but the last.
        assert ours["samples"][0]["tokens"] == theirs["samples"][0]["tokens"] == 32 * duel["batch"]
        assert theirs["samples"][0]["commits"] == 31


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "no-such-preset"], "no-such-preset"),
        (["--batch", "1,x"], "--batch is '1,x'"),
        (["--steps", "0"], "steps is 0"),
        (["--their-settings", "static"], "--against is not given"),
        (["--plot", "no/such/folder.png"], "there is no folder"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["bench", *arguments, "--json"])
    assert result.exit_code == 2
    assert message in json.loads(result.stdout)["error"]["message"]


def alive(group: int) -> list[str]:
    """Processes of a group that run (Linux); the dead that nobody has asked after yet do not count."""
    result = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended while we looked
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state != "Z":
                result.append(path.parent.name)
    return result


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffusiongemma", "bench", *QUICK, "--repeat", "100000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        # The log is there once the side's process runs.
        while not list(tmp_path.glob("diffusiongemma-bench-log-*/ours")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert not Path("/proc").is_dir() or len(alive(process.pid)) >= 2
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 130 and "interrupted" in said
    assert not list(tmp_path.glob("diffusiongemma-bench*"))
    deadline = time.monotonic() + 10
    while left := alive(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_nothing_is_left_behind_when_it_is_ended(tmp_path: Path) -> None:
    """The weights of a preset are a folder of up to gigabytes in the place for temporary files."""
    command = [sys.executable, "-m", "diffusiongemma", "bench", "-p", "tiny", "--repeat", "100000", "--threads", "1", "--json"]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL) as process:
        for _ in range(600):
            if any(tmp_path.rglob("*.safetensors")):
                break
            time.sleep(0.1)
        assert any(tmp_path.rglob("*.safetensors"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("diffusiongemma")] == []
