"""Reading puzzles, and the score that decides what counts as solved."""

import pytest

from diffusiongemma.errors import InputError
from diffusiongemma.examples.sudoku.puzzles import (
    Sudoku,
    answer_text,
    band_of,
    grid_of_answer,
    parse,
    prompt_text,
    reasoning_gym_puzzles,
    solves,
)

CLUES = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


@pytest.mark.parametrize(
    "text",
    [
        CLUES,
        CLUES.replace(".", "0"),
        CLUES.replace(".", "_"),
        CLUES.replace(".", "x"),
        "\n".join(" ".join(CLUES[9 * r : 9 * r + 9]) for r in range(9)),
        "\n------+-------+------\n".join(
            "\n".join("|".join(CLUES[9 * r + c : 9 * r + c + 3] for c in (0, 3, 6)) for r in range(b, b + 3)) for b in (0, 3, 6)
        ),
        ",".join(CLUES),
    ],
)
def test_every_usual_notation_reads_the_same(text: str) -> None:
    assert parse(text) == Sudoku(CLUES)


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        (CLUES[:80], "80 cells"),
        (CLUES + "1", "82 cells"),
        ("", "0 cells"),
        ("5" + CLUES[1:8] + "5" + CLUES[9:], "the clue 5 twice in row A"),
        (CLUES[:72] + "5" + CLUES[73:], "the clue 5 twice in column 1"),
        (CLUES[:10] + "3" + CLUES[11:], "twice in column 2"),
        (CLUES.replace("53", "5é", 1), "'é' at character 2"),
        ("12345678" + "." * 73, "8 clues"),
    ],
)
def test_a_broken_puzzle_is_named(text: str, needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        parse(text)


def test_a_box_is_checked_too() -> None:
    # An 8 in B2 shares neither row nor column with the 8 in C3.
    with pytest.raises(InputError, match="the clue 8 twice in box 1"):
        parse(CLUES[:10] + "8" + CLUES[11:])


def test_the_prompt_names_every_cell() -> None:
    lines = prompt_text(parse(CLUES)).split("\n")
    assert len(lines) == 10
    assert lines[1] == "A1=5 A2=3 A3=? A4=? A5=7 A6=? A7=? A8=? A9=?"
    assert lines[9].endswith("I8=7 I9=9")


def test_an_answer_goes_there_and_back() -> None:
    assert grid_of_answer(answer_text(SOLUTION)) == SOLUTION
    for broken in (
        "",
        SOLUTION,
        answer_text(SOLUTION)[:-1],
        answer_text(SOLUTION).replace("5", "0"),
        answer_text(SOLUTION) + "\n1",
    ):
        assert grid_of_answer(broken) is None


def test_solved_means_every_rule_and_every_clue() -> None:
    puzzle = parse(CLUES)
    assert solves(puzzle, SOLUTION)
    assert not solves(puzzle, None)
    assert not solves(puzzle, SOLUTION[:-1])
    # Exchanging two digits everywhere keeps every rule and breaks the clues.
    assert not solves(puzzle, SOLUTION.translate(str.maketrans("12", "21")))
    # Two digits of an open pair exchanged break a column.
    assert not solves(puzzle, SOLUTION[:2] + SOLUTION[3] + SOLUTION[2] + SOLUTION[4:])


def test_bands_cover_the_generators_range() -> None:
    assert [band_of(n) for n in (31, 34, 35, 39, 40, 44, 45, 51)] == ["31-34"] * 2 + ["35-39"] * 2 + ["40-44"] * 2 + ["45-51"] * 2
    assert (band_of(30), band_of(52)) == ("<31", ">51")


def test_reasoning_gym_puzzles_are_solvable_and_repeatable() -> None:
    first, second = (list(reasoning_gym_puzzles(5, 99)) for _ in range(2))
    assert first == second != list(reasoning_gym_puzzles(5, 100))
    for puzzle in first:
        assert solves(puzzle, puzzle.solution)
        assert 31 <= puzzle.clue_count <= 51
