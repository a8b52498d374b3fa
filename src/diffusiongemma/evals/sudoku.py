"""Sudoku scores: solve rate, steps, and both by clue band."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffusiongemma.api import DiffusionGemmaModel, Mode
from diffusiongemma.engine.events import Done
from diffusiongemma.errors import InputError
from diffusiongemma.tasks.sudoku import Sudoku, answer_text, band_of, grid_of_answer, prompt_text, solves

__all__ = ["BandScore", "SudokuReport", "clue_pins", "evaluate_sudoku"]


@dataclass(frozen=True)
class BandScore:
    """Scores of one clue band: puzzles, how many are solved, mean denoising passes."""

    puzzles: int
    solved: int
    solve_rate: float
    mean_steps: float


@dataclass(frozen=True)
class SudokuReport:
    """Scores of a set of puzzles.

    Attributes:
        solve_rate: solved / puzzles.
        mean_steps: denoising passes a puzzle (causal mode: tokens decoded).
        mean_steps_solved: the same over solved puzzles only; None where none is solved.
        tokens_per_forward: completion tokens / denoising passes.
        seconds: wall time of all.
        bands: by clue band, hardest first.
    """

    puzzles: int
    solved: int
    solve_rate: float
    mean_steps: float
    mean_steps_solved: float | None
    tokens_per_forward: float
    seconds: float
    mode: str
    pinned: bool
    bands: dict[str, BandScore]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def clue_pins(model: DiffusionGemmaModel, puzzle: Sudoku) -> list[int]:
    """Pins that hold a puzzle's clues and the line breaks of the answer fixed on the canvas."""
    # The answer's tokens with a 1 in every empty cell tell where each cell stands.
    ids = model.tokenizer.encode(answer_text(puzzle.clues.replace(".", "1")))
    if len(ids) != 89:
        raise InputError("this checkpoint's tokenizer does not give each digit a token, so clues cannot be pinned")
    shape = answer_text(puzzle.clues)
    return [-1 if char == "." else token for char, token in zip(shape, ids, strict=True)]


def evaluate_sudoku(
    model: DiffusionGemmaModel,
    puzzles: Sequence[Sudoku],
    *,
    mode: Mode = "diffusion",
    pinned: bool = False,
    batch_size: int = 50,
    seed: int = 0,
    on_done: Callable[[int], None] = lambda solved: None,
    **options: Any,
) -> SudokuReport:
    """Solve puzzles and score them.

    Args:
        model: any checkpoint.
        puzzles: what to solve.
        mode: the role that solves.
        pinned: also hold the clues fixed on the canvas (diffusion only).
        batch_size: puzzles at a time; results do not depend on it.
        seed: of the sampler.
        on_done: called with 1 for a solved and 0 for an unsolved puzzle.
        **options: sampling parameters.

    Raises:
        InputError: no puzzles.
    """
    if not puzzles:
        raise InputError("there are no puzzles; give at least one")
    began = time.perf_counter()
    outcome: list[tuple[Sudoku, bool, int, int]] = []
    for start in range(0, len(puzzles), batch_size):
        batch = puzzles[start : start + batch_size]
        pins = [clue_pins(model, puzzle) for puzzle in batch] if pinned else None
        prompts = [prompt_text(puzzle) for puzzle in batch]
        for event in model.stream(prompts, mode=mode, pins=pins, seed=seed, **options):
            if isinstance(event, Done):
                puzzle, usage = batch[event.row], event.result.usage
                solved = solves(puzzle, grid_of_answer(event.result.text))
                outcome.append((puzzle, solved, usage.denoising_steps or usage.commit_passes, usage.completion_tokens))
                on_done(int(solved))
    bands = {}
    for name in sorted({band_of(puzzle.clue_count) for puzzle, *_ in outcome}):
        rows = [row for row in outcome if band_of(row[0].clue_count) == name]
        solved_count = sum(solved for _, solved, _, _ in rows)
        bands[name] = BandScore(len(rows), solved_count, solved_count / len(rows), sum(r[2] for r in rows) / len(rows))
    total = len(outcome)
    passes = sum(steps for *_, steps, _ in outcome)
    steps_solved = [steps for _, solved, steps, _ in outcome if solved]
    return SudokuReport(
        puzzles=total,
        solved=len(steps_solved),
        solve_rate=len(steps_solved) / total,
        mean_steps=passes / total,
        mean_steps_solved=sum(steps_solved) / len(steps_solved) if steps_solved else None,
        tokens_per_forward=sum(tokens for *_, tokens in outcome) / passes,
        seconds=time.perf_counter() - began,
        mode=mode,
        pinned=pinned,
        bands=bands,
    )
