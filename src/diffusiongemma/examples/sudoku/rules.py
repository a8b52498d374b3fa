"""The rules of sudoku as a constraint on the canvas: every digit once in each row, column and box.

The model decides, the rules object. At each step a cell may not have a digit that the clues or surer cells have in its row, column
or box, and one that has only one digit left holds it; at the end the others take the model's best of what is left to them. With
``complete`` the grid that is committed is a solution, always: of those that there are, the one that a search finds which follows
the model's scores. A puzzle with one solution leaves the model nothing to decide there; docs/canvas.md says what each is worth.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from diffusiongemma.errors import ConstraintError
from diffusiongemma.examples.sudoku.puzzles import ANSWER_LENGTH, UNITS, Sudoku, clue_pins

__all__ = ["SudokuRow", "SudokuRules", "propagate", "solution"]

SURE = 0.02
"""Nats; what a cell that is less sure holds forbids others nothing. 200 puzzles of seed 2,000,000: 0.02 solved 95.5% in 3.33 steps,
0 (clues and cells with one digit left alone) 95.5% in 3.69; one round of elimination a step, and holding replaced digits, did
worse (docs/lab-log.md)."""
_UNITS = tuple(tuple(cells) for _, cells in UNITS)
_PEERS = tuple(tuple(sorted({other for unit in _UNITS if cell in unit for other in unit} - {cell})) for cell in range(81))
_ALL = frozenset(range(1, 10))
_PLACES = tuple(10 * (cell // 9) + cell % 9 for cell in range(81))
"""Where in an answer a cell stands: nine digits and a line break a row."""

BestOf = Callable[[int, Tensor], int]
"""From a position and the allowed tokens ``[V]`` bool to the most probable of them."""
Options = list[frozenset[int]]
"""The digits left to each of the 81 cells."""


def propagate(options: Options, hidden: bool = True) -> Options | None:
    """Cells with one digit left forbid it to others, again and again; None where a cell has none left.

    Args:
        options: of each cell.
        hidden: also, a digit that has one cell left in a row, column or box stands there.
    """
    options, todo = list(options), [cell for cell in range(81) if len(options[cell]) == 1]
    done: set[int] = set()
    while True:
        while todo:
            cell = todo.pop()
            if cell in done:
                continue
            done.add(cell)
            for peer in _PEERS[cell]:
                left = options[peer] - options[cell]
                if not left:
                    return None
                if len(left) == 1 and len(options[peer]) > 1:
                    todo.append(peer)
                options[peer] = left
        if not hidden:
            return options
        for unit in _UNITS:
            for digit in _ALL:
                cells = [cell for cell in unit if digit in options[cell]]
                if not cells:
                    return None
                if len(cells) == 1 and len(options[cells[0]]) > 1:
                    options[cells[0]] = frozenset((digit,))
                    todo.append(cells[0])
        if not todo:
            return options


def solution(clues: Sequence[int], ranked: Callable[[int], Sequence[int]], entropy: Sequence[float]) -> list[int] | None:
    """A grid that keeps every rule and every clue; None where there is none.

    Args:
        clues: a digit for each cell, 0 where it is empty.
        ranked: from an empty cell to the digits, the best first; of several solutions this decides.
        entropy: of each cell; of cells with as few digits left the surest is tried first.
    """
    options = propagate([frozenset((digit,)) if digit else _ALL for digit in clues])
    waiting = [] if options is None else [options]
    while waiting:
        options = waiting.pop()
        open_cells = [cell for cell in range(81) if len(options[cell]) > 1]
        if not open_cells:
            return [next(iter(digits)) for digits in options]
        cell = min(open_cells, key=lambda cell: (len(options[cell]), entropy[cell]))
        for digit in reversed([digit for digit in ranked(cell) if digit in options[cell]]):
            tried = propagate([*options[:cell], frozenset((digit,)), *options[cell + 1 :]])
            if tried is not None:
                waiting.append(tried)
    return None


class SudokuRules:
    """The rules for one puzzle, whose clues they hold fixed; ``rules=`` of ``generate`` and ``stream``.

    Args:
        puzzle: the clues.
        encode: text to a checkpoint's token ids.
        complete: what is committed is a solution, always; else cells are only kept from what others forbid.

    Raises:
        InputError: the tokenizer does not give each digit a token of its own.
    """

    def __init__(self, puzzle: Sudoku, encode: Callable[[str], list[int]], complete: bool = True) -> None:
        self.puzzle, self.complete = puzzle, complete
        self.shape = clue_pins(encode, puzzle)
        self.digits = dict(zip(range(1, 10), encode("123456789"), strict=True))

    def row(self, max_tokens: int, stop_ids: Sequence[int], pins: Sequence[int]) -> "SudokuRow":
        """The place at the beginning of an answer; see ``engine.constraint.Rules``.

        Raises:
            ConstraintError: there is no room for the answer, clues and pins contradict each other, or nothing solves them.
        """
        if max_tokens < ANSWER_LENGTH - 1:
            raise ConstraintError(f"max_tokens is {max_tokens}; a grid takes {ANSWER_LENGTH - 1} tokens")
        values = {token: digit for digit, token in self.digits.items()}
        cell_of = {place: cell for cell, place in enumerate(_PLACES)}
        clues = [int(char) if char != "." else 0 for char in self.puzzle.clues]
        for at, token in enumerate(pins):
            known = self.shape[at] if at < len(self.shape) else -1
            if token == -1 or (known == token and known != -1):
                continue
            fits = token in values if at in cell_of and known == -1 else at >= len(self.shape) and token in stop_ids
            if not fits:
                raise ConstraintError(f"token {token} is pinned at position {at}, where a solution of this puzzle cannot have it")
            if at in cell_of:
                clues[cell_of[at]] = values[token]
        if self.complete and solution(clues, lambda cell: sorted(_ALL), [0.0] * 81) is None:
            raise ConstraintError("no grid keeps every rule and every clue of this puzzle; look for a wrong digit among the clues")
        return SudokuRow(self, clues, stop_ids)


class SudokuRow:
    """One answer under the rules; see ``engine.constraint.ConstraintState``.

    Args:
        rules: of the puzzle.
        clues: a digit for each cell, 0 where it is empty.
        stop_ids: tokens that end the answer.
    """

    def __init__(self, rules: SudokuRules, clues: Sequence[int], stop_ids: Sequence[int]) -> None:
        self._rules, self._stop_ids = rules, stop_ids
        self._known = list(clues)  # and what has been committed
        self._begin = 0  # of the canvas in the answer
        self._entropy = [0.0] * 81

    @property
    def is_complete(self) -> bool:
        """Whether what was committed keeps every rule."""
        return all({self._known[cell] for cell in unit} == _ALL for unit in _UNITS)

    def forced_tokens(self, length: int) -> list[int]:
        """Clues and line breaks: ``[L]``."""
        share = self._grid(self._known)[self._begin : self._begin + length]
        return share + [-1] * (length - len(share))

    def read(self, tokens: Sequence[int], entropy: Sequence[float], best_of: BestOf) -> tuple[list[int], list[int], bool]:
        """Hold the cells that have one digit left."""
        cells = self._open(len(tokens))
        for cell in cells:
            self._entropy[cell] = entropy[_PLACES[cell] - self._begin]
        sole, _ = self._eliminated(tokens, cells, best_of)
        repaired = list(tokens)
        for cell, digit in sole.items():
            repaired[_PLACES[cell] - self._begin] = self._rules.digits[digit]
        # A grid with a mistake may stop too: the model rarely repairs one, but takes all its steps.
        return repaired, [_PLACES[cell] - self._begin for cell in sole], True

    def _eliminated(self, tokens: Sequence[int], cells: Sequence[int], best_of: BestOf) -> tuple[dict[int, int], dict[int, int]]:
        """Cells that have one digit left, and these with the known and the sure ones.

        The surer a cell, the earlier it is asked; then all again, as cells with one digit left may leave others one.
        """
        sole: dict[int, int] = {}
        while True:
            placed = {cell: digit for cell, digit in enumerate(self._known) if digit} | sole
            result: dict[int, int] = {}
            for cell in sorted((cell for cell in cells if cell not in sole), key=lambda cell: self._entropy[cell]):
                left = _ALL - {placed[peer] for peer in _PEERS[cell] if peer in placed}
                if len(left) == 1:
                    result[cell] = placed[cell] = next(iter(left))
                elif left and self._entropy[cell] < SURE:
                    placed[cell] = self._choice(cell, tokens, left, best_of)
            if not result:
                return sole, placed
            sole |= result

    def _choice(self, cell: int, tokens: Sequence[int], left: frozenset[int], best_of: BestOf) -> int:
        """What the canvas has there if it may, else the model's best of the digits left."""
        at = _PLACES[cell] - self._begin
        digit = self._values.get(tokens[at])
        return digit if digit in left and digit is not None else self._values[best_of(at, self._mask(left))]

    def commit(self, tokens: Sequence[int], best_of: BestOf) -> list[int]:
        """Take a canvas; with ``complete``, the solution that the model's scores lead to."""
        cells = self._open(len(tokens))
        if self._rules.complete:
            grid = solution(self._known, lambda cell: self._ranked(cell, cells, best_of), self._entropy)
            assert grid is not None, "solvable clues stay so, since what was committed is part of a solution"
        else:
            _, placed = self._eliminated(tokens, cells, best_of)
            for cell in sorted((cell for cell in cells if cell not in placed), key=lambda cell: self._entropy[cell]):
                left = _ALL - {placed[peer] for peer in _PEERS[cell] if peer in placed}
                placed[cell] = self._choice(cell, tokens, left or _ALL, best_of)
            grid = [placed.get(cell, 0) for cell in range(81)]
        shown = self._grid(grid)[self._begin : self._begin + len(tokens)]
        end = len(self._rules.shape) - self._begin
        out = [token if new == -1 else new for token, new in zip(tokens, shown, strict=False)] + list(tokens[len(shown) :])
        if 0 <= end < len(out) and out[end] not in self._stop_ids:
            stops = torch.zeros(max(self._stop_ids) + 1, dtype=torch.bool)
            stops[list(self._stop_ids)] = True
            out[end] = best_of(end, stops)
        for cell in cells:
            self._known[cell] = grid[cell]
        self._begin += len(tokens)
        return out

    def _open(self, length: int) -> list[int]:
        """Empty cells of this canvas."""
        return [cell for cell, digit in enumerate(self._known) if not digit and 0 <= _PLACES[cell] - self._begin < length]

    def _ranked(self, cell: int, cells: Sequence[int], best_of: BestOf) -> list[int]:
        """The digits as the model ranks them; of cells on a later canvas it has no opinion."""
        if cell not in cells:
            return sorted(_ALL)
        left, ranked = set(_ALL), []
        while left:
            ranked.append(self._values[best_of(_PLACES[cell] - self._begin, self._mask(left))])
            left.remove(ranked[-1])
        return ranked

    def _grid(self, digits: Sequence[int]) -> list[int]:
        """An answer's tokens, -1 for empty cells."""
        tokens = list(self._rules.shape)
        for cell, digit in enumerate(digits):
            if digit:
                tokens[_PLACES[cell]] = self._rules.digits[digit]
        return tokens

    def _mask(self, digits: frozenset[int] | set[int]) -> Tensor:
        mask = torch.zeros(max(self._rules.digits.values()) + 1, dtype=torch.bool)
        mask[[self._rules.digits[digit] for digit in digits]] = True
        return mask

    @cached_property
    def _values(self) -> dict[int, int]:
        return {token: digit for digit, token in self._rules.digits.items()}
