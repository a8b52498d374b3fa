"""How good decisions are: accuracy, calibration, and the time against generating the same answer.

``python -m tools.measure_decisions --model nano`` prints what docs/decide.md reports; ``--plot`` draws the reliability.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tools.decision_problems import PROBLEMS, Problem, problems

from diffusiongemma.evals.plot import check_plot, figure_of, write_plot
from diffusiongemma.generation import DiffusionGemmaModel, Mode
from diffusiongemma.generation.decide import OPEN, Alternatives, Factor, Rule, alternatives_of, chain, decide
from diffusiongemma.generation.score import log_probs
from diffusiongemma.tasks.base import EVAL_SEED
from diffusiongemma.text.questions import sheets

__all__ = ["BINS", "RULES", "Judged", "calibration_error", "judge", "reliability", "speed"]

BINS = 10
"""Bins of equal width that the expected calibration error takes: Guo et al., "On calibration of modern neural networks" (2017)."""


@dataclass(frozen=True)
class Judged:
    """One way of deciding on one task.

    Attributes:
        confidence: probability of the answer taken, an example each.
        correct: whether it was right.
        surprise: minus the logarithm of the right answer's probability, in nats.
    """

    confidence: list[float]
    correct: list[bool]
    surprise: list[float]

    @classmethod
    def of(cls, probabilities: Sequence[Sequence[float]], right: Sequence[int]) -> "Judged":
        """From the probabilities of each example's answers and the index of the right one."""
        best = [max(range(len(row)), key=row.__getitem__) for row in probabilities]
        return cls(
            confidence=[row[i] for row, i in zip(probabilities, best, strict=True)],
            correct=[i == wanted for i, wanted in zip(best, right, strict=True)],
            surprise=[-math.log(max(row[wanted], 1e-12)) for row, wanted in zip(probabilities, right, strict=True)],
        )

    def line(self) -> str:
        """Accuracy, mean confidence, expected calibration error, negative log-likelihood; what a threshold of 0.9 answers."""
        count = len(self.correct)
        sure = [right for right, p in zip(self.correct, self.confidence, strict=True) if p >= 0.9]
        kept = f"{sum(sure) / len(sure):7.1%} of {len(sure) / count:6.1%}" if sure else "nothing"
        return (
            f"{sum(self.correct) / count:7.1%}  {sum(self.confidence) / count:6.3f}  {calibration_error(self):6.3f}  "
            f"{sum(self.surprise) / count:6.3f}  {kept}"
        )


def reliability(judged: Judged) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, examples) of each bin of confidence that has any."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for p, right in zip(judged.confidence, judged.correct, strict=True):
        bins[min(int(p * BINS), BINS - 1)].append((p, right))
    return [(sum(p for p, _ in b) / len(b), sum(right for _, right in b) / len(b), len(b)) for b in bins if b]


def calibration_error(judged: Judged) -> float:
    """Expected calibration error: the mean distance of accuracy from confidence over the bins, weighted by examples."""
    return sum(n * abs(accuracy - p) for p, accuracy, n in reliability(judged)) / len(judged.correct)


def left_to_right(answers: Sequence[Sequence[int]], length: int) -> list[list[Factor]]:
    """The chain rule from left to right: nothing to the right is known, the template's rest neither."""
    first = _first(answers)
    return [[Factor(_known(a, set(range(at)), length), at, a[at]) for at in range(first, len(a))] for a in answers]


def pseudo(answers: Sequence[Sequence[int]], length: int) -> list[list[Factor]]:
    """Pseudo-likelihood: each token of an option with all others of its answer known."""
    first, tail = _first(answers), _first([answer[::-1] for answer in answers])
    return [
        [Factor(_known(a, set(range(len(a))) - {at}, length), at, a[at]) for at in range(first, len(a) - tail)] for a in answers
    ]


def marginals(answers: Sequence[Sequence[int]], length: int) -> list[list[Factor]]:
    """The factors of ``chain`` with none of those before known: one canvas, no token sees another."""
    return [[Factor(mine[0].canvas, f.position, f.token) for f in mine] for mine in chain(answers, length)]


def padded(answers: Sequence[Sequence[int]], length: int) -> list[list[Factor]]:
    """``chain``, with padding (token 0, as in nano) instead of noise after the longest answer's end."""
    longest = max(map(len, answers))
    padding = (0,) * (length - longest)
    return [[Factor((*f.canvas[:longest], *padding), f.position, f.token) for f in mine] for mine in chain(answers, length)]


RULES: dict[str, Rule] = {
    "chain": chain, "whole tail": partial(chain, whole_tail=True), "left to right": left_to_right,
    "pseudo-likelihood": pseudo, "marginals": marginals, "padded": padded,
}  # fmt: skip


def judge(model: DiffusionGemmaModel, problems: Sequence[Problem], draws: int = 1, rule: Rule | None = chain) -> Judged:
    """Decide problems and look at the answers.

    Args:
        model: any checkpoint.
        problems: of one task.
        draws: of noise.
        rule: which factors are read; None: the causal role's log-probabilities instead.
    """
    asked: list[Alternatives] = []
    right = []
    for problem in problems:
        (sheet,) = sheets(problem.questions, joint=True, template=problem.template, threshold=0)
        asked += alternatives_of(model.checkpoint, problem.prompt, None, [sheet])
        right.append(sheet.answers.index(problem.answer))
    if rule is not None:
        return Judged.of(decide(model.transformer, asked, seed=EVAL_SEED, draws=draws, rule=rule).probabilities, right)
    return Judged.of([_causal(model, one) for one in asked], right)


def speed(model: DiffusionGemmaModel, problems: Sequence[Problem]) -> dict[str, tuple[float, float]]:
    """Median seconds and accuracy of deciding and of generating, in turns, one example at a time."""
    seconds: dict[str, list[float]] = {"decide": [], "generate": [], "generate, causal": []}
    right = dict.fromkeys(seconds, 0)
    for i, problem in enumerate([problems[0], *problems]):
        for way in seconds:
            began = time.perf_counter()
            if way == "decide":
                result = model.decide(problem.prompt, problem.questions, joint=True, template=problem.template)
                correct = [decision.answer for decision in result.decisions] == problem.values
            else:
                mode: Mode = "causal" if "causal" in way else "diffusion"
                text = model.generate(problem.prompt, mode=mode, seed=EVAL_SEED + i, max_tokens=64).text
                correct = text == problem.answer
            if i:  # The first one warms up.
                seconds[way].append(time.perf_counter() - began)
                right[way] += correct
    return {way: (median(times), right[way] / len(problems)) for way, times in seconds.items()}


def plot_reliability(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, int]]]], target: Path) -> None:
    """Draw accuracy against confidence: on the diagonal an answer is right as often as it says.

    Args:
        panels: title to curves; a curve is (mean confidence, accuracy, examples) of each bin, its points as large as their bins.
        target: the PNG.
    """
    figure, axes = figure_of(1, len(panels), (5.4 * len(panels) + 2.2, 5), sharey=True, squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linestyle="--", zorder=0)
        for i, (name, bins) in enumerate(curves.items()):
            total = sum(count for _, _, count in bins)
            sure, right, counts = zip(*bins, strict=True)
            axis.plot(sure, right, color=f"C{i % 10}", alpha=0.5)
            axis.scatter(sure, right, [10 + 300 * count / total for count in counts], color=f"C{i % 10}", label=name, alpha=0.8)
        axis.set(title=title, xlabel="probability of the answer", xlim=(0, 1.02), ylim=(-0.02, 1.02))
    axes[0][0].set(ylabel="share that is right")
    legend = figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center")
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    write_plot(figure, target)


def _causal(model: DiffusionGemmaModel, one: Alternatives) -> list[float]:
    logs = [sum(row) for row in log_probs(model.transformer, one.prompt, one.answers)]
    weights = [math.exp(log - max(logs)) for log in logs]
    return [weight / sum(weights) for weight in weights]


def _first(answers: Sequence[Sequence[int]]) -> int:
    """The first position at which answers differ."""
    return next((at for at, tokens in enumerate(zip(*answers, strict=False)) if len(set(tokens)) > 1), min(map(len, answers)))


def _known(answer: Sequence[int], known: set[int], length: int) -> tuple[int, ...]:
    return tuple(answer[at] if at in known else OPEN for at in range(length))


def _measure(
    model: DiffusionGemmaModel, name: str, count: int, timed: int, rules: Sequence[str], draws: Sequence[int]
) -> dict[str, Judged]:
    """Print the table of one task."""
    result, judged = problems(name, count, EVAL_SEED), {}
    options = max(len(question.texts) for question in result[0].questions)
    print(f"\n{name}: {len(result)} problems, {options} options\n{'':22}accuracy  confid.   ECE     NLL   right where sure by 0.9")
    for rule_name in dict.fromkeys(["chain", *rules]):
        judged[rule_name] = judge(model, result, 1, RULES[rule_name])
        print(f"  {rule_name:20}{judged[rule_name].line()}", flush=True)
    for many in draws:
        print(f"  {f'chain, {many} draws':20}{judge(model, result, many).line()}", flush=True)
    judged["causal"] = judge(model, result, rule=None)
    print(f"  {'causal role':20}{judged['causal'].line()}", flush=True)
    for way, (seconds, right) in speed(model, result[:timed]).items():
        print(f"  {way:20}{right:7.1%}  {1000 * seconds:7.1f} ms (median of {min(timed, len(result))})", flush=True)
    return judged


def main() -> None:
    """Print the tables and draw the plot."""
    parser = argparse.ArgumentParser(prog="python -m tools.measure_decisions", description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--count", type=int, default=300, help="problems a task")
    parser.add_argument("--timed", type=int, default=50, help="problems that are timed, one at a time")
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES), help="to compare with chain")
    parser.add_argument("--draws", type=int, nargs="*", default=[4, 8], help="numbers of draws of noise to compare")
    parser.add_argument("--task", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--plot", type=Path, help="a PNG: reliability of each task, by denoising and by the causal role")
    options = parser.parse_args()
    if options.plot is not None:
        check_plot(options.plot)
    model = DiffusionGemmaModel.from_pretrained(options.model)
    judged = {name: _measure(model, name, options.count, options.timed, options.rules, options.draws) for name in options.task}
    if options.plot is not None:
        panels = {"one denoising pass": "chain", "causal role": "causal"}
        plot_reliability(
            {title: {name: reliability(ways[way]) for name, ways in judged.items()} for title, way in panels.items()}, options.plot
        )


if __name__ == "__main__":
    main()
