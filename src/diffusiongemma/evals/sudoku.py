"""Sudoku scores in the terms of a training log. Thin, on ``evals.run``."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusiongemma.api import DiffusionGemmaModel
from diffusiongemma.evals.run import evaluate
from diffusiongemma.tasks.base import Example
from diffusiongemma.tasks.sudoku import Sudoku, SudokuTask, band_of, prompt_text

__all__ = ["BandScore", "SudokuReport", "evaluate_sudoku"]


@dataclass(frozen=True)
class BandScore:
    """Share of the puzzles of a clue band that are solved."""

    solve_rate: float


@dataclass(frozen=True)
class SudokuReport:
    """Share of solved puzzles, denoising passes a puzzle, and the share by clue band, hardest first."""

    solve_rate: float
    mean_steps: float
    bands: dict[str, BandScore]


def evaluate_sudoku(model: DiffusionGemmaModel, puzzles: Sequence[Sudoku]) -> SudokuReport:
    """Solve puzzles with the checkpoint's own sampling settings, and score them.

    Raises:
        InputError: no puzzles.
    """
    examples = [Example(prompt_text(puzzle), None, band_of(puzzle.clue_count), puzzle) for puzzle in puzzles]
    report = evaluate(model, SudokuTask(), examples, seed=0)
    bands = {name: BandScore(group.score) for name, group in report.groups.items()}
    return SudokuReport(report.total.score, report.total.mean_steps or 0.0, bands)
