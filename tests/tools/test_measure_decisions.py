"""Calibration by hand, and problems whose right answer is among those compared."""

from pathlib import Path

import pytest
from tools.decision_problems import PROBLEMS, problems
from tools.measure_decisions import Judged, calibration_error, plot_reliability, reliability

from diffusiongemma.errors import InputError
from diffusiongemma.text.questions import sheets


def test_calibration_by_hand() -> None:
    judged = Judged(confidence=[0.95, 0.93, 0.51, 0.59, 1.0], correct=[True, False, True, True, True], surprise=[0.0] * 5)
    low, high = reliability(judged)
    assert low == (pytest.approx(0.55), 1.0, 2)
    assert high == (pytest.approx(0.96), pytest.approx(2 / 3), 3)
    assert calibration_error(judged) == pytest.approx((2 * 0.45 + 3 * (0.96 - 2 / 3)) / 5)


def test_who_is_right_as_often_as_sure_is_calibrated() -> None:
    assert calibration_error(Judged([0.75] * 4, [True, True, True, False], [0.0] * 4)) == 0
    assert calibration_error(Judged([1.0] * 4, [False] * 4, [0.0] * 4)) == 1


def test_probabilities_become_answers() -> None:
    judged = Judged.of([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]], [1, 1, 0])
    assert judged.confidence == [0.8, 0.6, 0.5] and judged.correct == [True, False, True]
    assert judged.surprise == pytest.approx([0.22314, 0.91629, 0.69315], abs=1e-4)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_right_answer_is_among_those_compared(name: str) -> None:
    for problem in problems(name, 5, 7):
        (sheet,) = sheets(problem.questions, joint=True, template=problem.template, threshold=0)
        combination = sheet.answers.index(problem.answer)
        sure = [float(i == combination) for i in range(len(sheet.answers))]
        assert [decision.answer for decision in sheet.decisions(sure, 0)] == problem.values


def test_unknown_problems_are_refused() -> None:
    with pytest.raises(InputError, match="syllogism"):
        problems("none", 5, 7)
    with pytest.raises(InputError, match="at least one"):
        problems("aiw", 0, 7)


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    plot_reliability({"a": {"x": [(0.5, 0.4, 3), (0.9, 1.0, 7)]}, "b": {"x": [(0.7, 0.7, 10)]}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
