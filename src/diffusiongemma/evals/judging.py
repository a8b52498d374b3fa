"""Whether a signal tells right answers from wrong ones: area under the ROC curve, and risk by coverage.

Sources: Fawcett, An introduction to ROC analysis (2006); El-Yaniv and Wiener, On the foundations of noise-free selective
classification (2010).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusiongemma.evals.results import Outcome

__all__ = ["SIGNALS", "JudgeReport", "Signal", "auroc", "coverage_at", "judge", "risk_coverage"]

SIGNALS = {
    "confidence": "mean log-probability a token, by the causal role",
    "least": "the least probable token's log-probability, by the causal role",
    "entropy": "mean entropy of the canvases' last step, negated",
}
"""What an answer can be judged by; higher means surer."""
RISK = 0.05
"""Share of wrong answers among those given, for which the coverage is told."""


@dataclass(frozen=True)
class Signal:
    """How well one signal tells right from wrong.

    Attributes:
        auroc: the chance that a right answer has a higher value than a wrong one; 0.5 says nothing; None: all are right, or all
            are wrong.
        coverage: the largest share of answers, the surest, of which at most 5% are wrong.
        threshold: the least value among those; None: there are none.
        curve: (share of answers given, share of them that is wrong), the surest first.
    """

    auroc: float | None
    coverage: float
    threshold: float | None
    curve: list[tuple[float, float]]


@dataclass(frozen=True)
class JudgeReport:
    """The signals of one task's answers.

    Attributes:
        task: its name.
        examples: answers that were judged.
        right: share of them with score 1.
        signals: by name (``SIGNALS``).
    """

    task: str
    examples: int
    right: float
    signals: dict[str, Signal]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"task": self.task, "examples": self.examples, "right": self.right} | {
            name: {"auroc": one.auroc, "coverage_at_5_percent_risk": one.coverage, "threshold": one.threshold}
            for name, one in self.signals.items()
        }


def judge(outcomes: Sequence[Outcome]) -> JudgeReport | None:
    """The signals of one task's outcomes; None where none was judged."""
    judged = [one for one in outcomes if one.confidence is not None]
    if not judged:
        return None
    right = [one.score == 1 for one in judged]
    signals = {}
    for name in SIGNALS:
        values = [getattr(one, name) for one in judged]
        if any(value is None for value in values):
            continue  # token by token there is no canvas
        surer = [-value for value in values] if name == "entropy" else values
        coverage, threshold = coverage_at(surer, right, RISK)
        signals[name] = Signal(auroc(surer, right), coverage, threshold, risk_coverage(surer, right))
    return JudgeReport(judged[0].task, len(judged), sum(right) / len(right), signals)


def auroc(values: Sequence[float], right: Sequence[bool]) -> float | None:
    """The chance that a right answer has the higher value, ties counted half; None where one kind is missing."""
    good, bad = sum(right), len(right) - sum(right)
    if not good or not bad:
        return None
    order = sorted(range(len(values)), key=values.__getitem__)
    total, at = 0.0, 0
    while at < len(order):
        end = at
        while end < len(order) and values[order[end]] == values[order[at]]:
            end += 1
        middle = (at + end + 1) / 2  # ranks from 1
        total += middle * sum(right[place] for place in order[at:end])
        at = end
    return (total - good * (good + 1) / 2) / (good * bad)


def risk_coverage(values: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """(share of answers given, share of them that is wrong), the surest first; answers of one value are given together."""
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    curve, wrong = [], 0
    for count, place in enumerate(order, 1):
        wrong += not right[place]
        if count == len(order) or values[order[count]] != values[place]:
            curve.append((count / len(order), wrong / count))
    return curve


def coverage_at(values: Sequence[float], right: Sequence[bool], risk: float) -> tuple[float, float | None]:
    """The largest share of the surest answers with at most so large a share of wrong ones, and the least value among them."""
    given = [coverage for coverage, wrong in risk_coverage(values, right) if wrong <= risk]
    if not given:
        return 0.0, None
    most = max(given)
    return most, sorted(values, reverse=True)[round(most * len(values)) - 1]
