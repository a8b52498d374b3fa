"""Sudoku as text: reading puzzles in the usual notations, the prompt, the answer, and the score.

A puzzle is 81 characters, row by row, ``1``-``9`` for a clue and ``.`` for an empty cell. The prompt names every cell
(``A1=7``, ``A2=?``: row letter, column number), one line a row, so that each token carries its own place; the answer is
nine lines of nine digits. Clue bands follow reasoning-gym's default range of 30 to 50 empty cells.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from diffusiongemma.errors import InputError
from diffusiongemma.tasks.base import Example

__all__ = [
    "ANSWER_LENGTH",
    "CLUE_BANDS",
    "Sudoku",
    "SudokuTask",
    "answer_text",
    "band_of",
    "clue_pins",
    "grid_of_answer",
    "parse",
    "prompt_text",
    "reasoning_gym_puzzles",
    "solves",
]

ROWS = "ABCDEFGHI"
INSTRUCTION = "Solve this sudoku:"
ANSWER_LENGTH = 90
"""Tokens of an answer: 81 digits, 8 line breaks, one end token."""
CLUE_BANDS = ((31, 34), (35, 39), (40, 44), (45, 51))


@dataclass(frozen=True)
class Sudoku:
    """A puzzle and, where it is known, its solution: 81 characters each."""

    clues: str
    solution: str | None = None

    @property
    def clue_count(self) -> int:
        """How many cells are given."""
        return 81 - self.clues.count(".")


def _units() -> Iterator[tuple[str, list[int]]]:
    for r in range(9):
        yield f"row {ROWS[r]}", [9 * r + c for c in range(9)]
    for c in range(9):
        yield f"column {c + 1}", [9 * r + c for r in range(9)]
    for b in range(9):
        r0, c0 = 3 * (b // 3), 3 * (b % 3)
        yield f"box {b + 1}", [9 * (r0 + i) + c0 + j for i in range(3) for j in range(3)]


UNITS = tuple(_units())


def parse(text: str) -> Sudoku:
    """Read one puzzle from text.

    Args:
        text: 81 cells in any layout: digits are clues; ``.``, ``0``, ``_``, ``?``, ``*`` and ``x`` are empty cells; spaces,
            line breaks, commas and the frame characters ``|+-`` are skipped.

    Returns:
        The puzzle, without a solution.

    Raises:
        InputError: another character, not 81 cells, fewer than 17 clues, or two equal clues in a row, column or box.
    """
    cells = []
    for i, char in enumerate(text):
        if char in "123456789":
            cells.append(char)
        elif char in ".0_?*xX":
            cells.append(".")
        elif not (char.isspace() or char in ",;|+-"):
            raise InputError(
                f"the puzzle has {char!r} at character {i + 1}; allowed are the digits 1-9 for clues and one of "
                f"'. 0 _ ? *' for an empty cell"
            )
    if len(cells) != 81:
        raise InputError(f"the puzzle has {len(cells)} cells; a sudoku has 81 (9 rows of 9). Write every empty cell as '.'")
    clues = "".join(cells)
    for name, cell_ids in UNITS:
        seen: set[str] = set()
        for cell in cell_ids:
            digit = clues[cell]
            if digit != "." and digit in seen:
                raise InputError(f"the puzzle has the clue {digit} twice in {name}; each digit may stand there once")
            seen.add(digit)
    if (count := 81 - clues.count(".")) < 17:
        raise InputError(f"the puzzle has {count} clues; fewer than 17 never have a single solution")
    return Sudoku(clues)


def prompt_text(puzzle: Sudoku) -> str:
    """The user's message that states the puzzle: one line a row, ``A1=7 A2=? ...``."""
    lines = [" ".join(f"{ROWS[r]}{c + 1}={puzzle.clues[9 * r + c].replace('.', '?')}" for c in range(9)) for r in range(9)]
    return INSTRUCTION + "\n" + "\n".join(lines)


def answer_text(grid: str) -> str:
    """Nine lines of nine digits for an 81-character grid."""
    return "\n".join(grid[9 * r : 9 * r + 9] for r in range(9))


def grid_of_answer(text: str) -> str | None:
    """The 81-character grid an answer states, or None where the answer is not nine lines of nine digits."""
    lines = text.strip().split("\n")
    if len(lines) != 9 or any(not re.fullmatch("[1-9]{9}", line) for line in lines):
        return None
    return "".join(lines)


def solves(puzzle: Sudoku, grid: str | None) -> bool:
    """Whether a grid is complete, keeps every clue and has each digit once in each row, column and box."""
    if grid is None or len(grid) != 81:
        return False
    if any(clue not in (".", digit) for clue, digit in zip(puzzle.clues, grid, strict=True)):
        return False
    return all({grid[cell] for cell in cells} == set("123456789") for _, cells in UNITS)


def band_of(clue_count: int) -> str:
    """The name of the clue band a puzzle belongs to, hardest first: ``31-34``, ``35-39``, ``40-44``, ``45-51``."""
    for low, high in CLUE_BANDS:
        if low <= clue_count <= high:
            return f"{low}-{high}"
    return f"<{CLUE_BANDS[0][0]}" if clue_count < CLUE_BANDS[0][0] else f">{CLUE_BANDS[-1][1]}"


def clue_pins(encode: Callable[[str], list[int]], puzzle: Sudoku) -> list[int]:
    """Pins that hold a puzzle's clues and the line breaks of the answer fixed on the canvas.

    Args:
        encode: text to a checkpoint's token ids.
        puzzle: the clues.

    Returns:
        89 token ids, -1 for the empty cells.

    Raises:
        InputError: the tokenizer does not give each digit a token of its own.
    """
    # The answer's tokens with a 1 in every empty cell tell where each cell stands.
    ids = encode(answer_text(puzzle.clues.replace(".", "1")))
    if len(ids) != ANSWER_LENGTH - 1:
        raise InputError("this checkpoint's tokenizer does not give each digit a token, so clues cannot be pinned")
    shape = answer_text(puzzle.clues)
    return [-1 if char == "." else token for char, token in zip(shape, ids, strict=True)]


def reasoning_gym_puzzles(count: int, seed: int, empty: tuple[int, int] = (30, 50)) -> Iterable[Sudoku]:
    """Unique-solution puzzles from reasoning-gym's ``sudoku`` generator.

    Args:
        count: how many.
        seed: the generator's seed; puzzle i is made from ``seed + i``, so ranges of near seeds overlap.
        empty: fewest and most empty cells; (30, 50) is the generator's default.

    Raises:
        InputError: reasoning-gym is not installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise InputError(
            "the puzzles come from reasoning-gym, which is not installed; install it with: pip install 'diffusiongemma[train]'"
        ) from error
    data = reasoning_gym.create_dataset("sudoku", size=count, seed=seed, min_empty=empty[0], max_empty=empty[1])
    for item in data:
        puzzle, solution = item["metadata"]["puzzle"], item["metadata"]["solution"]
        yield Sudoku(
            "".join(str(d) if d else "." for row in puzzle for d in row),
            "".join(str(d) for row in solution for d in row),
        )


@lru_cache(maxsize=10_000)
def _example(seed: int) -> Example:
    # A puzzle takes some 70 ms to make, and one evaluation asks for it several times.
    [puzzle] = reasoning_gym_puzzles(1, seed)
    assert puzzle.solution is not None
    return Example(prompt_text(puzzle), answer_text(puzzle.solution), band_of(puzzle.clue_count), puzzle)


class SudokuTask:
    """Puzzles of reasoning-gym with 30 to 50 empty cells and one solution; judged by the rules of the game, by clue band."""

    name = "sudoku"
    summary = "sudoku with 31 to 51 clues and one solution, by clue band"
    max_tokens = ANSWER_LENGTH
    model = "sudoku"
    """The checkpoint that is asked where none is named."""

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        """See ``Task``; puzzle i is the generator's ``seed + i``, and ``detail`` is the ``Sudoku``."""
        return [_example(seed + index) for index in range(count)]

    def score(self, example: Example, text: str) -> float:
        """1 for a grid that keeps every rule and every clue."""
        return float(solves(example.detail, grid_of_answer(text)))

    def pins(self, encode: Callable[[str], list[int]], example: Example) -> list[int]:
        """The clues and the line breaks; see ``PinnedTask``."""
        return clue_pins(encode, example.detail)
