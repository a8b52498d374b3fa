"""Signals that tell right answers from wrong ones, against their plain definitions."""

import json
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from diffusiongemma.cli.main import app
from diffusiongemma.evals.judging import auroc, coverage_at, risk_coverage

CASES = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30)


@given(CASES)
def test_the_area_is_the_chance_that_a_right_answer_is_surer(cases: list[tuple[int, bool]]) -> None:
    values, right = [float(value) for value, _ in cases], [good for _, good in cases]
    pairs = [(a, b) for (a, good), (b, other) in product(zip(values, right, strict=True), repeat=2) if good and not other]
    area = auroc(values, right)
    if not pairs:
        assert area is None
    else:
        assert area == pytest.approx(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs))


@given(CASES, st.sampled_from([0.0, 0.05, 0.3]))
def test_the_curve_and_the_threshold(cases: list[tuple[int, bool]], risk: float) -> None:
    values, right = [float(value) for value, _ in cases], [good for _, good in cases]
    curve = risk_coverage(values, right)
    plain = []
    for bound in sorted(set(values), reverse=True):
        given = [good for value, good in zip(values, right, strict=True) if value >= bound]
        plain.append((len(given) / len(values), given.count(False) / len(given)))
    assert [share for point in curve for share in point] == pytest.approx([share for point in plain for share in point])
    coverage, threshold = coverage_at(values, right, risk)
    if threshold is not None:
        given = [good for value, good in zip(values, right, strict=True) if value >= threshold]
        assert len(given) / len(values) == pytest.approx(coverage) and given.count(False) / len(given) <= risk
    assert all(share <= coverage for share, wrong in plain if wrong <= risk)


def test_the_command_tells_and_draws_it(tmp_path: Path) -> None:
    out, plot = tmp_path / "out.jsonl", tmp_path / "judge.png"
    arguments = ["eval", "extract", "--n", "12", "--judge", "--out", str(out), "--plot", str(plot)]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    [judge] = json.loads(result.stdout)["judges"]
    assert judge["examples"] == 12 and 0 < judge["right"] < 1
    for name in ("confidence", "least", "entropy"):
        assert 0 <= judge[name]["auroc"] <= 1 and 0 <= judge[name]["coverage_at_5_percent_risk"] <= 1
    assert plot.stat().st_size > 10_000
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(line["least"] <= line["confidence"] <= 0 <= line["entropy"] for line in lines)
    told = CliRunner().invoke(app, arguments)
    assert "area under ROC" in told.output and "of an earlier run" in told.output
    token_by_token = ["--mode", "causal", "--out", str(out), "--json"]
    causal = CliRunner().invoke(app, ["eval", "extract", "--n", "4", "--judge", *token_by_token])
    assert set(json.loads(causal.stdout)["judges"][0]) == {"task", "examples", "right", "confidence", "least"}
    assert CliRunner().invoke(app, [*arguments, "--sweep", "stability=1,2"]).exit_code == 2
