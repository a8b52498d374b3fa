"""Real processes on the ``tiny`` preset: what is reported, that sides take turns, and what happens when one dies."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from diffusiongemma.bench.recorder import MEASURES, Sample
from diffusiongemma.bench.report import report
from diffusiongemma.bench.run import check_work, generations, run
from diffusiongemma.bench.settings import Case, Settings, SideSpec
from diffusiongemma.bench.worker import Worker
from diffusiongemma.errors import BenchError, CheckpointError, InputError, OptionError

QUICK: dict[str, Any] = {"model": "tiny", "threads": 1, "steps": 3, "prompt": 8, "repeat": 2, "warmup": 0}


def spec(tmp_path: Path, **changes: Any) -> SideSpec:
    fields = {"name": "ours", "kind": "ours", "setting": "", "folder": "sudoku", "device": "cpu", "dtype": None,
              "quantize": None, "threads": 1}  # fmt: skip
    return SideSpec(**{**fields, "log": str(tmp_path / "log"), **changes})


@pytest.fixture(scope="module", name="against_transformers")
def _against_transformers() -> tuple[dict[str, Any], list[str]]:
    settings = Settings(**QUICK, against="transformers", their_settings=("static+eager",))
    seen: list[str] = []
    outcome = run(settings, seen.append)
    assert seen.count("generation") == generations(settings) == 4
    return report(outcome, settings), seen


def test_both_sides_do_the_same_work(against_transformers: tuple[dict[str, Any], list[str]]) -> None:
    result, _ = against_transformers
    (duel,) = result["duels"]
    assert [side["name"] for side in duel["sides"]] == ["diffusiongemma", "transformers static+eager"]
    for side in duel["sides"]:
        for sample in side["samples"]:
            assert (sample["steps"], sample["commits"], sample["tokens"]) == (6, 1, 32)
            assert all(sample[name] > 0 for name in MEASURES if name != "peak_bytes")
            # All parts are inside the whole.
            parts = 6 * sample["step_ms"] + sample["commit_ms"] + 8 * sample["prefill_token_ms"]
            assert 0.3 < parts / (1000 * sample["seconds"]) < 1
        assert side["tokens_per_forward"] == pytest.approx(32 / 6)
        assert side["tokens_per_forward_with_commits"] == pytest.approx(32 / 7)


def test_sides_take_turns(against_transformers: tuple[dict[str, Any], list[str]]) -> None:
    result, _ = against_transformers
    for duel in result["duels"]:
        assert [[sample["order"] for sample in side["samples"]] for side in duel["sides"]] == [[0, 2], [1, 3]]


def test_the_report_says_where_and_what(against_transformers: tuple[dict[str, Any], list[str]]) -> None:
    result, _ = against_transformers
    assert result["versions"]["torch"] and result["versions"]["transformers"] and result["machine"]["processor"]
    assert result["settings"]["steps"] == 3 and result["model"]["weights"] == "random" and result["model"]["reduced"] is None
    weights = {name: side["weight_bytes"] for name, side in result["sides"].items()}
    # theirs has a blank vision tower besides the same weights
    assert weights["diffusiongemma"] < weights["transformers static+eager"] < 1.1 * weights["diffusiongemma"]
    (roof,) = result["roofline"]
    assert roof["context"] == 8 + 16 / 2
    assert roof["ratio"] == pytest.approx(roof["step_ms"] / roof["floor_ms"]) and roof["ratio"] > 1


def test_a_killed_side_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Worker(spec(tmp_path, name="the victim")) as worker:
        worker.loaded()
        assert worker.pid is not None
        (tmp_path / "log").write_text("about to be killed")
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(BenchError, match=r"the victim died while \w+, by SIGKILL.*memory.*about to be killed"):
            worker.ask("rates")


def test_what_a_side_refuses_keeps_its_class(tmp_path: Path) -> None:
    with Worker(spec(tmp_path, folder=str(tmp_path))) as worker, pytest.raises(CheckpointError, match=r"^ours: .*config\.json"):
        worker.loaded()


def test_a_failure_of_another_kind_is_told(tmp_path: Path) -> None:
    """Settings never let this through; it stands for whatever torch may say."""
    with Worker(spec(tmp_path, threads=0)) as worker, pytest.raises(BenchError, match="the side ours failed while loading: Runt"):
        worker.loaded()
    assert "Traceback" in (tmp_path / "log").read_text()


def test_unequal_work_is_refused() -> None:
    """One canvas settled a step early: its side would look faster than it is."""
    case = Case(prompts=((1,),), steps=3, canvases=2, canvas_length=16, seed=0)
    measures: dict[str, Any] = dict.fromkeys(MEASURES, 1.0)
    whole, short = (Sample(**measures, steps=steps, commits=1, tokens=32, seconds=1.0) for steps in (6, 5))
    check_work(["ours", "theirs"], ([whole], [whole]), case)
    with pytest.raises(BenchError, match="theirs took 5 denoising steps and 1 commits, not 6 and 1"):
        check_work(["ours", "theirs"], ([whole], [short]), case)
    with pytest.raises(BenchError, match="causal took 6"):
        check_work(["ours", "causal"], ([whole], [whole]), case)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"repeat": 0}, "repeat is 0"),
        ({"batches": (1, 0)}, "batch is 0"),
        ({"batches": (2, 2)}, "each once"),
        ({"threads": 100_000}, "this process may use"),
        ({"against": "vllm"}, "allowed: transformers, causal, plain"),
        ({"against": "transformers", "their_settings": ("quick",)}, "their setting is 'quick'"),
        ({"against": "transformers", "their_settings": ("static+",)}, "their setting is 'static[+]'"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Settings(**{"model": "tiny", **changes})


def test_layers_are_of_presets(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="it is for a preset"):
        run(Settings(**{**QUICK, "model": "nano"}, layers=1))
    with pytest.raises(OptionError, match="the preset has 3"):
        run(Settings(**QUICK, layers=4))


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'diffusiongemma\[dev\]'"):
        Settings(model="tiny", against="transformers")
    Settings(model="tiny", against="causal")
