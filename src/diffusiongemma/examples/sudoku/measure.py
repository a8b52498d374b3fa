"""What the rules of sudoku add to the model, and what they do without it.

``python -m diffusiongemma.examples.sudoku.measure --n 500`` prints the table.
"""

import argparse
import time
from collections.abc import Sequence

from diffusiongemma.examples.sudoku.puzzles import Sudoku, clue_pins, grid_of_answer, prompt_text, reasoning_gym_puzzles, solves
from diffusiongemma.examples.sudoku.rules import SudokuRules, propagate
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.tasks.base import EVAL_SEED

__all__ = ["main", "model_alone", "propagation_alone"]

KINDS = ("free", "pinned", "eliminate", "solve")
_BATCH = 50


def model_alone(
    model: DiffusionGemmaModel, puzzles: Sequence[Sudoku], kind: str, steps: int | None = None, seed: int = EVAL_SEED
) -> tuple[float, float, float]:
    """How many of the puzzles are solved (0 to 1), the mean steps and the seconds a puzzle.

    Args:
        model: a sudoku checkpoint.
        puzzles: what to solve.
        kind: ``free``, clues ``pinned``, under the rules (``eliminate``), or with a solution at the end (``solve``).
        steps: most steps; None: the checkpoint's.
        seed: puzzle i draws from seed + i.
    """
    encode, solved, taken, began = model.tokenizer.encode, 0, 0, time.perf_counter()
    for start in range(0, len(puzzles), _BATCH):
        part = puzzles[start : start + _BATCH]
        results = model.generate(
            [prompt_text(puzzle) for puzzle in part],
            seeds=[seed + start + i for i in range(len(part))],
            pins=[clue_pins(encode, puzzle) for puzzle in part] if kind == "pinned" else None,
            rules=[SudokuRules(puzzle, encode, kind == "solve") for puzzle in part] if kind in ("eliminate", "solve") else None,
            num_diffusion_steps=steps,
        )
        for puzzle, result in zip(part, results, strict=True):
            solved += solves(puzzle, grid_of_answer(result.text))
            taken += result.usage.denoising_steps
    return solved / len(puzzles), taken / len(puzzles), (time.perf_counter() - began) / len(puzzles)


def propagation_alone(puzzles: Sequence[Sudoku], hidden: bool) -> tuple[float, float]:
    """How many are solved by propagation without a model or a guess (0 to 1), and the seconds a puzzle."""
    solved, began = 0, time.perf_counter()
    for puzzle in puzzles:
        every = frozenset(range(1, 10))
        result = propagate([frozenset((int(char),)) if char != "." else every for char in puzzle.clues], hidden)
        solved += result is not None and all(len(digits) == 1 for digits in result)
    return solved / len(puzzles), (time.perf_counter() - began) / len(puzzles)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=EVAL_SEED)
    parser.add_argument("--model", default="sudoku")
    parser.add_argument("--steps", type=int, nargs="*", default=[])
    given = parser.parse_args()
    model = DiffusionGemmaModel.from_pretrained(given.model)
    puzzles = list(reasoning_gym_puzzles(given.n, given.seed))
    print("| | solved | mean steps | ms a puzzle |\n|---|---|---|---|")
    for most in (None, *given.steps):
        for kind in KINDS:
            solved, steps, seconds = model_alone(model, puzzles, kind, most, given.seed)
            print(
                f"| {kind}{f', at most {most}' if most else ''} | {solved:.1%} | {steps:.2f} | {1000 * seconds:.0f} |", flush=True
            )
    for name, hidden in (("naked singles alone, no model", False), ("naked and hidden singles alone, no model", True)):
        solved, seconds = propagation_alone(puzzles, hidden)
        print(f"| {name} | {solved:.1%} | | {1000 * seconds:.1f} |")


if __name__ == "__main__":
    main()
