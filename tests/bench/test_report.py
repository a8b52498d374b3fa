"""Medians, ratios, the best rival and plots, from samples that were made up."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffusiongemma.bench.plot import plot
from diffusiongemma.bench.recorder import Sample
from diffusiongemma.bench.report import report
from diffusiongemma.bench.run import Duel, Outcome
from diffusiongemma.bench.settings import Settings
from diffusiongemma.generation.roles import RoleRates
from tests.tiny import tiny_config

SAMPLE = Sample(
    step_ms=10.0, commit_ms=5.0, prefill_token_ms=1.0, first_text_ms=50.0, tokens_per_second=100.0, peak_bytes=1000,
    steps=4, commits=1, tokens=16, seconds=1.0,
)  # fmt: skip
FACTS = {"device": "cpu", "dtype": "float32", "threads": 1, "weight_bytes": 1, "gpu": None}

ROLES = RoleRates(canvas_length=8, step=0.02, commit=0.01, token=0.03)


def outcome_of(*duels: Duel) -> Outcome:
    names = dict.fromkeys(name for duel in duels for name in duel.names)
    rates = {"copy_bytes_per_second": 1e9, "operations_per_second": 1e9}
    return Outcome(tiny_config(), {name: dict(FACTS) for name in names}, rates, list(duels), ROLES)


def side(*steps: float, speed: float = 100.0) -> list[Sample]:
    return [replace(SAMPLE, step_ms=step, tokens_per_second=speed) for step in steps]


def duel(name: str, ours: list[Sample], theirs: list[Sample], batch: int = 1) -> Duel:
    return Duel(batch, ("ours", name), (ours, theirs), (None, None))


def test_median_and_quartiles() -> None:
    result = report(outcome_of(Duel(1, ("ours",), (side(1, 2, 3, 4, 100),), (None,))), Settings(model="tiny"))
    (alone,) = result["duels"][0]["sides"]
    assert alone["measures"]["step_ms"] == {"median": 3, "low": 2, "high": 4}
    assert result["duels"][0]["ratio"] == {} and result["best"] == []
    assert (alone["tokens_per_forward"], alone["tokens_per_forward_with_commits"]) == (4.0, 3.2)


def test_a_ratio_above_one_is_in_our_favour() -> None:
    theirs = [replace(sample, peak_bytes=0) for sample in side(30, speed=20)]
    result = report(outcome_of(duel("theirs", side(10, speed=50), theirs)), Settings(model="tiny"))
    ratio = result["duels"][0]["ratio"]
    assert (ratio["step_ms"], ratio["tokens_per_second"], ratio["commit_ms"]) == (3.0, 2.5, 1.0)
    assert "peak_bytes" not in ratio, "nothing is a multiple of zero"


def test_the_best_rival_of_each_measure_with_the_ratio_of_its_own_duel() -> None:
    """Ours was faster in the second duel: the ratio to a rival is that of the samples taken beside it."""
    first = duel("first", side(10), side(20, speed=10))
    second = duel("second", side(5), side(25, speed=30))
    best = {entry["measure"]: entry for entry in report(outcome_of(first, second), Settings(model="tiny"))["best"]}
    assert (best["step_ms"]["rival"], best["step_ms"]["ratio"]) == ("first", 2.0)
    assert (best["tokens_per_second"]["rival"], best["tokens_per_second"]["ratio"]) == ("second", pytest.approx(100 / 30))


def test_the_roofline_takes_our_median() -> None:
    result = report(outcome_of(duel("theirs", side(1, 2, 9), side(50, 50, 50))), Settings(model="tiny", prompt=20))
    (roof,) = result["roofline"]
    assert (roof["step_ms"], roof["context"], roof["bound"]) == (2, 24, "arithmetic")
    assert roof["floor_ms"] == pytest.approx(1000 * roof["operations"] / 1e9)


@pytest.mark.parametrize("batches", [(1,), (1, 4)])
def test_plots(tmp_path: Path, batches: tuple[int, ...]) -> None:
    """Bars or curves; a side without steps has neither."""
    causal = [replace(SAMPLE, step_ms=None)]
    duels = [duel("causal", side(10.0 * batch), causal, batch) for batch in batches]
    target = tmp_path / "bench.png"
    plot(report(outcome_of(*duels), Settings(model="tiny", batches=batches)), target)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_roles_are_held_against_what_was_measured() -> None:
    causal = replace(SAMPLE, commit_ms=60.0, step_ms=None)
    both = Duel(1, ("diffusiongemma", "causal"), (side(10), [causal]), (None, None))
    result = report(outcome_of(both), Settings(model="tiny"))["roles"]
    assert result["predicted_to_measured"] == {"step_ms": 2.0, "commit_ms": 2.0, "token_ms": 0.5}
    assert result["diffusion_is_faster_up_to_steps"] == pytest.approx((8 * 0.03 - 0.01) / 0.02)
    assert result["faster"] == "diffusion" and result["tokens_per_second"]["causal"] == pytest.approx(1 / 0.03)
    assert result["tokens_per_second"]["diffusion"] == pytest.approx(8 / (8 * 0.02 + 0.01))
