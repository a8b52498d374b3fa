"""Rows, columns and boxes as a constraint: what is held, what is committed, and that a solution is one, whatever the model says."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.events import Draft
from diffusiongemma.errors import ConstraintError, InputError, OptionError
from diffusiongemma.examples.sudoku.puzzles import (
    Sudoku,
    clue_pins,
    grid_of_answer,
    parse,
    prompt_text,
    reasoning_gym_puzzles,
    solves,
)
from diffusiongemma.examples.sudoku.rules import SudokuRow, SudokuRules, propagate, solution
from tests.examples.sudoku.test_puzzles import CLUES, SOLUTION
from tests.tiny import tiny_config, tiny_transformer

PUZZLE = parse(CLUES)
EMPTY = [cell for cell in range(81) if CLUES[cell] == "."]
PLACE = {cell: 10 * (cell // 9) + cell % 9 for cell in range(81)}


@pytest.fixture(scope="module")
def model() -> DiffusionGemmaModel:
    return DiffusionGemmaModel.from_pretrained("sudoku")


@pytest.fixture(scope="module")
def untrained(model: DiffusionGemmaModel) -> DiffusionGemmaModel:
    """Random weights under the tokenizer of the sudoku checkpoint."""
    transformer = tiny_transformer(tiny_config(90, vocab_size=832, max_position_embeddings=512))
    params = SamplingParams(num_diffusion_steps=3, max_tokens=90)
    return DiffusionGemmaModel(transformer, model.tokenizer, params, model.stop_ids)


def preferring(digits: dict[int, int], rules: SudokuRules) -> Callable[[int, torch.Tensor], int]:
    """A model that wants these digits at these cells, and else the greatest token."""
    wanted = {PLACE[cell]: rules.digits[digit] for cell, digit in digits.items()}

    def best_of(at: int, allowed: torch.Tensor) -> int:
        return wanted[at] if at in wanted and allowed[wanted[at]] else int(allowed.nonzero()[-1])

    return best_of


def row_of(model: DiffusionGemmaModel, puzzle: Sudoku, complete: bool) -> tuple[SudokuRules, SudokuRow]:
    rules = SudokuRules(puzzle, model.tokenizer.encode, complete)
    return rules, rules.row(90, model.stop_ids, ())


def tokens_of(model: DiffusionGemmaModel, grid: str) -> list[int]:
    return [*model.tokenizer.encode("\n".join(grid[9 * r : 9 * r + 9] for r in range(9))), 5]


def test_clues_are_there_from_the_first_step(model: DiffusionGemmaModel) -> None:
    _, row = row_of(model, PUZZLE, True)
    assert row.forced_tokens(90) == [*clue_pins(model.tokenizer.encode, PUZZLE), -1] and not row.is_complete


def test_a_cell_with_one_digit_left_holds_it(model: DiffusionGemmaModel) -> None:
    """All but one cell is sure: that one is held, whatever the canvas has there."""
    _, row = row_of(model, PUZZLE, False)
    tokens = tokens_of(model, SOLUTION)
    open_place = PLACE[EMPTY[7]]
    wrong = list(tokens)
    wrong[open_place] = 0
    repaired, held, may_stop = row.read(wrong, [0.0 if at != open_place else 2.0 for at in range(90)], preferring({}, row._rules))
    assert repaired[open_place] == tokens[open_place] and open_place in held and may_stop


def test_what_is_not_sure_forbids_nothing(model: DiffusionGemmaModel) -> None:
    """A canvas of doubtful ones: held are only the cells that the clues themselves determine."""
    _, row = row_of(model, PUZZLE, False)
    repaired, held, _ = row.read([model.tokenizer.encode("1")[0]] * 90, [3.0] * 90, preferring({}, row._rules))
    result = propagate([frozenset((int(c),)) if c != "." else frozenset(range(1, 10)) for c in CLUES], hidden=False)
    assert result is not None
    sole = {PLACE[cell]: next(iter(result[cell])) for cell in EMPTY if len(result[cell]) == 1}
    assert set(held) == set(sole) != set()
    assert all(repaired[at] == row._rules.digits[digit] for at, digit in sole.items())


def test_without_completion_no_cell_takes_what_surer_ones_forbid(model: DiffusionGemmaModel) -> None:
    """A sure and wrong cell stays; of two alike in a row the less sure gives way."""
    puzzle = Sudoku("." * 81)
    rules, row = row_of(model, puzzle, False)
    tokens = [rules.digits[5] if shape == -1 else shape for shape in rules.shape] + [5]
    entropy = [0.01] + [1.0 + at for at in range(89)]
    row.read(tokens, entropy, preferring({}, rules))
    text = model.tokenizer.decode(row.commit(tokens, preferring({1: 7}, rules))[:89])
    assert text[:2] == "57" and len(set(text.split("\n")[0])) == 9


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_committed_grid_is_a_solution_and_follows_the_model(model: DiffusionGemmaModel, seed: int) -> None:
    """Few clues, many solutions: whatever canvas and scores, one of them; and the one the model wants, if it wants one."""
    rng = random.Random(seed)
    shown = set(rng.sample(range(81), rng.randint(0, 30)))
    puzzle = Sudoku("".join(digit if cell in shown else "." for cell, digit in enumerate(SOLUTION)))
    rules, row = row_of(model, puzzle, True)
    canvas = [rng.randrange(832) for _ in range(90)]
    row.read(canvas, [rng.random() for _ in range(90)], preferring({}, rules))
    out = row.commit(canvas, preferring({cell: rng.randint(1, 9) for cell in range(81)}, rules))
    assert row.is_complete and solves(puzzle, grid_of_answer(model.tokenizer.decode(out[:89]))) and out[89] in model.stop_ids
    _, row = row_of(model, puzzle, True)
    out = row.commit(canvas, preferring({cell: int(digit) for cell, digit in enumerate(SOLUTION)}, rules))
    assert grid_of_answer(model.tokenizer.decode(out[:89])) == SOLUTION


def test_canvases_shorter_than_a_grid(untrained: DiffusionGemmaModel) -> None:
    rules = SudokuRules(PUZZLE, untrained.tokenizer.encode)
    result = untrained.generate(prompt_text(PUZZLE), rules=rules, canvas_length=17, seed=1)
    assert grid_of_answer(result.text) == SOLUTION and len(result.canvases) == 6


def test_random_weights_solve_under_the_rules(untrained: DiffusionGemmaModel) -> None:
    puzzles = list(reasoning_gym_puzzles(4, 77))
    prompts = [prompt_text(puzzle) for puzzle in puzzles]
    rules = [SudokuRules(puzzle, untrained.tokenizer.encode) for puzzle in puzzles]
    results = untrained.generate(prompts, rules=rules, seed=1)
    assert all(solves(puzzle, result.text.replace("\n", "")) for puzzle, result in zip(puzzles, results, strict=True))
    assert all(result.finish_reason == "stop" for result in results)


def test_the_model_shows_held_cells(model: DiffusionGemmaModel) -> None:
    rules = SudokuRules(PUZZLE, model.tokenizer.encode, complete=False)
    first = next(e for e in model.stream(prompt_text(PUZZLE), rules=rules, seed=1) if isinstance(e, Draft))
    clues = clue_pins(model.tokenizer.encode, PUZZLE)
    assert [token for at, token in enumerate(first.argmax_ids[:89]) if clues[at] != -1] == [token for token in clues if token != -1]
    assert sum(first.accepted) > sum(first.pinned)


def test_pins_add_clues_and_may_not_contradict(model: DiffusionGemmaModel) -> None:
    rules = SudokuRules(PUZZLE, model.tokenizer.encode)
    ten = rules.digits
    right, wrong = int(SOLUTION[2]), next(d for d in range(1, 10) if str(d) != SOLUTION[2])
    result = model.generate(prompt_text(PUZZLE), rules=rules, pins={2: ten[right]}, seed=1)
    assert grid_of_answer(result.text) == SOLUTION
    for pins, needle in (
        ({2: ten[wrong]}, "no grid"),
        ({0: ten[9]}, "position 0"),
        ({9: ten[1]}, "position 9"),
        ({3: 0}, "position 3"),
    ):
        with pytest.raises(ConstraintError, match=needle):
            list(model.stream(prompt_text(PUZZLE), rules=rules, pins=pins))


def test_a_puzzle_without_a_solution_is_refused_before_anything_runs(model: DiffusionGemmaModel) -> None:
    broken = parse(CLUES[:2] + "1" + CLUES[3:])
    with pytest.raises(ConstraintError, match="no grid keeps every rule"):
        list(model.stream(prompt_text(broken), rules=SudokuRules(broken, model.tokenizer.encode)))
    assert solution([int(c) if c != "." else 0 for c in broken.clues], lambda cell: range(1, 10), [0.0] * 81) is None


@pytest.mark.parametrize(
    ("options", "error", "needle"),
    [
        ({"max_tokens": 60}, ConstraintError, "takes 89 tokens"),
        ({"mode": "causal"}, OptionError, "diffusion"),
        ({"regex": "1"}, InputError, "give one"),
        ({"stop": "1"}, InputError, "stop strings"),
    ],
)
def test_what_rules_do_not_go_with(
    model: DiffusionGemmaModel, options: dict[str, Any], error: type[Exception], needle: str
) -> None:
    rules = SudokuRules(PUZZLE, model.tokenizer.encode)
    with pytest.raises(error, match=needle):
        list(model.stream(prompt_text(PUZZLE), rules=rules, **options))


def test_rules_for_another_number_of_rows(model: DiffusionGemmaModel) -> None:
    rules = SudokuRules(PUZZLE, model.tokenizer.encode)
    with pytest.raises(InputError, match="rules is a list of 1 for 2 prompts"):
        list(model.stream([prompt_text(PUZZLE)] * 2, rules=[rules]))


def test_propagation_finds_what_is_forced_and_no_more() -> None:
    every = frozenset(range(1, 10))
    result = propagate([frozenset((int(char),)) if char != "." else every for char in CLUES])
    assert result is not None and all(int(SOLUTION[cell]) in digits for cell, digits in enumerate(result))
    assert propagate([frozenset((1,)), frozenset((1,))] + [every] * 79) is None
