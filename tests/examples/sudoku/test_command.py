"""``sudoku --rules``."""

from diffusiongemma.examples.sudoku.command import EXAMPLE
from diffusiongemma.examples.sudoku.puzzles import Sudoku, solves
from tests.cli.test_commands import app, run_json, runner


def test_solve_gives_a_solution_after_one_step() -> None:
    """Without the rules one step does not do (``test_commands``)."""
    data = run_json("sudoku", EXAMPLE, "--steps", "1", "--rules", "solve")
    assert data["steps"] == 1 and solves(Sudoku(EXAMPLE), data["grid"])


def test_eliminate_keeps_the_clues() -> None:
    data = run_json("sudoku", EXAMPLE, "--rules", "eliminate")
    assert all(clue in (".", digit) for clue, digit in zip(EXAMPLE, data["grid"], strict=True))


def test_another_word_is_refused() -> None:
    result = runner.invoke(app, ["sudoku", EXAMPLE, "--rules", "yes"])
    assert result.exit_code == 2 and "eliminate or solve" in result.output
