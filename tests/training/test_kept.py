"""What a run keeps: nothing lost, nothing doubled, whatever kills it; and one run in a folder at a time."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusiongemma.errors import TrainingError
from diffusiongemma.training import loop
from diffusiongemma.training.loop import Hooks, TrainRun
from tests.training.test_loop import logged, small, weights


def test_one_run_at_a_time(tmp_path: Path) -> None:
    refused: list[str] = []

    def meanwhile(_: dict[str, Any]) -> None:
        with pytest.raises(TrainingError) as raised:
            TrainRun(small(), tmp_path)
        refused.append(str(raised.value))

    TrainRun(small(steps=2), tmp_path, hooks=Hooks(on_step=meanwhile)).train()
    assert len(refused) == 2 and "log.jsonl is being written by" in refused[0]
    late, other = TrainRun(small(steps=4), tmp_path), TrainRun(small(steps=4), tmp_path)
    other.train()
    with pytest.raises(TrainingError, match="another run has gone on"):
        late.train()
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("cut", [0, 1, 4, 30, 1000, -1, -20, -500])
def test_a_cut_state_is_our_error(tmp_path: Path, cut: int) -> None:
    TrainRun(small(steps=2), tmp_path).train()
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:cut])
    with pytest.raises(TrainingError, match=r"state\.pt cannot be resumed .*; remove it to begin anew"):
        TrainRun(small(steps=4), tmp_path)


def test_states_that_are_something_else_are_our_error(tmp_path: Path) -> None:
    TrainRun(small(steps=2), tmp_path).train()
    state = tmp_path / "state.pt"
    whole = torch.load(state, weights_only=True)
    for wrong in ([], 5, {}, {**whole, "step": "x"}, {**whole, "model": {}}, {**whole, "optimisers": []}, {**whole, "line": 5}):
        torch.save(wrong, state)
        with pytest.raises(TrainingError, match="cannot be resumed"):
            TrainRun(small(steps=4), tmp_path)
    for content in (b"a diary", b"\x80\x02", pickle.dumps(test_one_run_at_a_time), b"PK\x03\x04" + b"\0" * 100):
        state.write_bytes(content)
        with pytest.raises(TrainingError, match="cannot be resumed"):
            TrainRun(small(steps=4), tmp_path)
    state.unlink()
    state.mkdir()
    with pytest.raises(TrainingError, match="cannot be resumed"):
        TrainRun(small(steps=4), tmp_path)


@pytest.mark.parametrize("cut", [1, 5, 20, 60])
def test_a_cut_line_of_the_log_is_written_again(tmp_path: Path, cut: int) -> None:
    TrainRun(small(steps=6), tmp_path).train()
    log = tmp_path / "log.jsonl"
    whole = logged(tmp_path)
    log.write_bytes(log.read_bytes()[:-cut])
    TrainRun(small(steps=6), tmp_path).train()
    assert [{**line, "seconds": 0} for line in logged(tmp_path)] == [{**line, "seconds": 0} for line in whole]


def test_a_damaged_log_is_our_error(tmp_path: Path) -> None:
    TrainRun(small(steps=2), tmp_path).train()
    log = tmp_path / "log.jsonl"
    first, second = log.read_bytes().splitlines(keepends=True)
    for content in (first[:9] + second, b"a diary\n", b"[]\n", b'{"step": "x"}\n', b"\xff\n"):
        log.write_bytes(content)
        with pytest.raises(TrainingError, match="line 1 is no line of a training log"):
            TrainRun(small(steps=4), tmp_path)
        assert log.read_bytes() == content


def test_a_line_that_a_kill_kept_from_the_log_is_written_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Path] = []

    def evaluate(folder: Path) -> dict[str, Any]:
        judged.append(folder)
        if len(judged) == 1:
            raise KeyboardInterrupt
        return {"scores": {}}

    hooks = Hooks(evaluate=evaluate)
    recipe = small(steps=6, checkpoint_every=3)  # evaluated at 3 and 6
    with pytest.raises(KeyboardInterrupt):
        TrainRun(recipe, tmp_path, hooks=hooks).train()
    assert [line["step"] for line in logged(tmp_path)] == [1, 2]
    run = TrainRun(recipe, tmp_path, hooks=hooks)
    assert run.step == 3
    run.train()
    lines = logged(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6] and [line["step"] for line in lines if "scores" in line] == [3, 6]
    assert all("denoising" in line for line in lines)


def test_a_full_disk_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainRun(small(steps=6), tmp_path)
    save = torch.save

    def full(state: Any, file: Any) -> None:
        if state["step"] == 4:
            file.write(b"some")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, file)

    with monkeypatch.context() as broken, pytest.raises(TrainingError, match=r"state\.pt cannot be kept .*No space left"):
        broken.setattr(loop.torch, "save", full)
        run.train()
    assert not (tmp_path / "state.pt.part").exists()
    again = TrainRun(small(steps=6), tmp_path)
    assert again.step == 2
    again.train()
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5, 6]
    for folder in (tmp_path / "state.pt" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(TrainingError, match="cannot be the folder of a run"):
            TrainRun(small(), folder)


def test_kill_at_any_moment(tmp_path: Path) -> None:
    """kill -9 until it is done: the same weights and the same log as at one go."""
    straight = TrainRun(small(steps=12), tmp_path / "straight")
    straight.train()
    code = (
        "import sys, pathlib; from tests.training.test_loop import small; from diffusiongemma.training.loop import *\n"
        "hooks = Hooks(on_step=lambda line: print(line['step'], flush=True))\n"
        "TrainRun(small(steps=12), pathlib.Path(sys.argv[1]), hooks=hooks).train()"
    )
    folder = tmp_path / "killed"
    # As many threads as here: sums over two have another order.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for seconds in (0.1, 0.25):
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    last = TrainRun(small(steps=12), folder)
    last.train()
    for name, tensor in weights(straight).items():
        assert torch.equal(tensor, weights(last)[name]), name
    ours, theirs = ([{**line, "seconds": 0} for line in logged(folder)] for folder in (tmp_path / "straight", folder))
    assert json.dumps(ours) == json.dumps(theirs)
