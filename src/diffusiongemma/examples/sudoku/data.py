"""Sudoku for training: the vocabulary, and batches that are a pure function of (seed, step).

Shapes: P prompts, T prompt tokens, L answer tokens.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from diffusiongemma.errors import TrainingError
from diffusiongemma.examples.sudoku.generator import base_puzzles
from diffusiongemma.examples.sudoku.puzzles import ANSWER_LENGTH, CLUE_BANDS, INSTRUCTION, ROWS, reasoning_gym_puzzles
from diffusiongemma.training.data import CHAT_TEMPLATE, SPECIALS, TrainBatch

__all__ = ["SudokuData", "SudokuPuzzles", "build_tokenizer", "vocabulary"]

_WORDS = ("user", "model", "system", "\n", *INSTRUCTION.split())
_CHUNK = 500
"""Own puzzles that are made at once."""
_DIGITS = tuple("123456789")
_CELLS = tuple(f"{row}{column}={value}" for row in ROWS for column in range(1, 10) for value in "?123456789")


def vocabulary() -> dict[str, int]:
    """Token to id: special tokens, words, digits, and one token for each cell and value of a puzzle."""
    return {token: i for i, token in enumerate((*SPECIALS, *_WORDS, *_DIGITS, *_CELLS))}


def build_tokenizer() -> Tokenizer:
    """A word-level tokenizer: cells (``A1=7``), words, single digits and line breaks; spaces only separate."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIALS))
    pattern = Regex(r"[A-I][1-9]=[1-9?]|[0-9]|\n|[^\s0-9]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


class SudokuPuzzles(BaseModel):
    """The data part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sudoku"] = "sudoku"
    base: Literal["reasoning-gym", "own"] = "reasoning-gym"
    """Whose puzzles: reasoning-gym's with ``min_clues`` clues, or our own with as few clues as go (``generator``)."""
    base_puzzles: int = Field(6000, ge=1)
    """Unique-solution puzzles; symmetries and clues given back make the rest."""
    base_seed: int = Field(1, ge=0)
    min_clues: int = Field(31, ge=17, le=81)
    max_clues: int = Field(51, ge=17, le=81)
    hard_share: float = Field(0.0, ge=0, le=1)
    """Share of the examples drawn from the hardest clue band alone."""


class SudokuData:
    """Batches of (prompt, answer) token ids.

    Args:
        recipe: the data part of a recipe.
        seed: of the run.
        folder: where the base puzzles are kept between runs.
        progress: called with (done, of) while base puzzles are made.
    """

    Recipe = SudokuPuzzles
    chat_template = CHAT_TEMPLATE

    def __init__(self, recipe: SudokuPuzzles, seed: int, folder: Path, progress: Callable[[int, int], None]) -> None:
        self._recipe = recipe
        self._seed = seed
        self.base = _base_puzzles(recipe, folder, progress)
        self.tokenizer = build_tokenizer()
        self.canvas_length = ANSWER_LENGTH
        ids = vocabulary()
        self._newline, self._first_cell, self._first_digit = ids["\n"], ids[_CELLS[0]], ids["1"]
        self._head = [ids[t] for t in ("<bos>", "<|turn>", "user", "\n", *INSTRUCTION.split(), "\n")]
        self._tail = [ids[t] for t in ("\n", "<|turn>", "model", "\n")]
        self._turn_end, self._eos = ids["<turn|>"], ids["<eos>"]

    def batch(self, step: int, prompts: int) -> TrainBatch:
        """The examples of one step."""
        rng = np.random.Generator(np.random.Philox(key=[self._seed, step]))
        clues = np.empty((prompts, 81), np.int64)
        solution = np.empty((prompts, 81), np.int64)
        for i, base in enumerate(rng.integers(0, len(self.base), prompts)):
            clues[i], solution[i] = self.vary(self.base[base].astype(np.int64), rng)
        cells = self._first_cell + 10 * np.arange(81) + clues
        digits = self._first_digit + solution - 1
        prompt = np.concatenate(
            (np.tile(self._head, (prompts, 1)), self._lines(cells, self._turn_end), np.tile(self._tail, (prompts, 1))),
            axis=1,
        )
        return TrainBatch(torch.from_numpy(prompt), torch.from_numpy(self._lines(digits, self._eos)))

    def initial_embeddings(self, weight_VD: Tensor, generator: torch.Generator) -> None:
        """Start each cell token as the sum of a row, a column, a box and a value vector: the puzzle's own factors.

        Otherwise 810 unrelated vectors have to be learnt before any rule can be (what it gains alone was not measured).
        """
        hidden = weight_VD.shape[1]
        row, column, box, value = (torch.randn(n, hidden, generator=generator) for n in (9, 9, 9, 10))
        first = vocabulary()[_CELLS[0]]
        for cell in range(81):
            r, c = divmod(cell, 9)
            start = first + 10 * cell
            weight_VD[start : start + 10] = (row[r] + column[c] + box[3 * (r // 3) + c // 3] + value) / 2 * hidden**-0.5

    def _lines(self, cells_PC: np.ndarray, last: int) -> np.ndarray:
        grid = cells_PC.reshape(-1, 9, 9)
        ends = np.full((len(grid), 9, 1), self._newline)
        ends[:, 8] = last
        return np.concatenate((grid, ends), axis=2).reshape(len(grid), 90)

    def vary(self, pair: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A puzzle and its solution ``[2, 81]`` under a random symmetry, with a random number of clues given back."""
        grid = pair.reshape(2, 9, 9)
        if rng.random() < 0.5:
            grid = grid.transpose(0, 2, 1)
        grid = grid[:, _line_order(rng)][:, :, _line_order(rng)]
        relabel = np.concatenate(([0], 1 + rng.permutation(9)))
        pair = relabel[grid].reshape(2, 81)
        high = CLUE_BANDS[0][1] if rng.random() < self._recipe.hard_share else self._recipe.max_clues
        want = rng.integers(self._recipe.min_clues, high + 1)
        empty = rng.permutation(np.flatnonzero(pair[0] == 0))
        back = empty[: max(0, want - (81 - len(empty)))]
        pair[0, back] = pair[1, back]
        return pair


def _line_order(rng: np.random.Generator) -> np.ndarray:
    """An order of nine rows (or columns) that keeps each band together."""
    return np.concatenate([3 * band + rng.permutation(3) for band in rng.permutation(3)])


def _base_puzzles(recipe: SudokuPuzzles, folder: Path, progress: Callable[[int, int], None]) -> np.ndarray:
    """Base puzzles ``[N, 2, 81]`` uint8 (clues with 0 for empty, solution), from the folder or made now."""
    own = "own-" if recipe.base == "own" else ""
    path = folder / f"puzzles-{own}{recipe.base_seed}-{recipe.base_puzzles}-{recipe.min_clues}.npy"
    if path.is_file():
        try:
            base: np.ndarray = np.load(path)
        except (ValueError, EOFError, OSError) as error:
            raise TrainingError(f"{path} cannot be read ({error}); remove it, and it is made again") from error
        if base.shape != (recipe.base_puzzles, 2, 81):
            raise TrainingError(f"{path} has shape {base.shape}; remove it, and it is made again")
        return base
    base = _own_puzzles(recipe, progress) if own else _reasoning_gym_puzzles(recipe, progress)
    part = path.with_suffix(".part.npy")
    np.save(part, base)
    part.replace(path)
    return base


def _own_puzzles(recipe: SudokuPuzzles, progress: Callable[[int, int], None]) -> np.ndarray:
    found: list[np.ndarray] = []
    for begin in range(0, recipe.base_puzzles, _CHUNK):
        count = min(_CHUNK, recipe.base_puzzles - begin)
        found.append(base_puzzles(count, recipe.base_seed * 1_000_003 + begin // _CHUNK, recipe.min_clues))
        progress(begin + count, recipe.base_puzzles)
    return np.concatenate(found)


def _reasoning_gym_puzzles(recipe: SudokuPuzzles, progress: Callable[[int, int], None]) -> np.ndarray:
    empty = 81 - recipe.min_clues
    pairs = []
    for puzzle in reasoning_gym_puzzles(recipe.base_puzzles, recipe.base_seed, (empty, empty)):
        assert puzzle.solution is not None
        pairs.append([[int(c) for c in text.replace(".", "0")] for text in (puzzle.clues, puzzle.solution)])
        progress(len(pairs), recipe.base_puzzles)
    return np.array(pairs, dtype=np.uint8)
