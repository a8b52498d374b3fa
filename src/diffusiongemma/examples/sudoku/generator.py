"""Base puzzles for training, thousands at a time: solved grids, and clues taken away while the solution stays the only one.

A clue may go where every other digit in its place leads to a contradiction by elimination alone (one digit left for a cell, one
cell left for a digit). That proves the solution unique; of the puzzles that are unique it leaves out those that need deeper trials.
Shapes: N puzzles.
"""

import random

import numpy as np

__all__ = ["base_puzzles"]

_ALL = 0x1FF
_UNITS = np.array(
    [[9 * r + c for c in range(9)] for r in range(9)]
    + [[9 * r + c for r in range(9)] for c in range(9)]
    + [[9 * (3 * (b // 3) + i // 3) + 3 * (b % 3) + i % 3 for i in range(9)] for b in range(9)]
)
_UNITS_OF = np.array([[u for u in range(27) if cell in _UNITS[u]] for cell in range(81)])
_COUNT = np.array([bin(mask).count("1") for mask in range(512)], dtype=np.uint8)


def base_puzzles(count: int, seed: int, fewest: int) -> np.ndarray:
    """Puzzles with one solution each, and as few clues as go, not below a number.

    Args:
        count: N.
        seed: decides all of them.
        fewest: clues at least.

    Returns:
        ``[N, 2, 81]`` uint8: clues with 0 for an empty cell, and the solution.
    """
    rng = random.Random(f"sudoku-base/{seed}")
    grids = np.array([_filled(rng) for _ in range(count)], dtype=np.uint8)
    order = np.array([rng.sample(range(81), 81) for _ in range(count)])
    clues = grids.copy()
    rows = np.arange(count)
    for trial in range(81):
        cells = order[:, trial]
        digits = grids[rows, cells]
        open_rows = np.flatnonzero((clues > 0).sum(axis=1) > fewest)
        puzzle = np.repeat(open_rows, 8)
        other = np.tile(np.arange(1, 9), len(open_rows))
        other = (other + digits[puzzle] - 1) % 9 + 1  # the eight other digits
        tried = clues[puzzle].copy()
        tried[np.arange(len(puzzle)), cells[puzzle]] = other
        contradicted = _contradicted(tried).reshape(-1, 8).all(axis=1)
        gone = open_rows[contradicted]
        clues[gone, cells[gone]] = 0
    return np.stack((clues, grids), axis=1)


def _contradicted(puzzles: np.ndarray) -> np.ndarray:
    """Whether elimination refutes each puzzle ``[N, 81]``: ``[N]`` bool."""
    masks = np.where(puzzles > 0, 1 << (puzzles.astype(np.int16) - 1).clip(0), _ALL).astype(np.int16)
    refuted, going = np.zeros(len(puzzles), bool), np.arange(len(puzzles))
    while len(going):
        now = masks[going]
        units = now[:, _UNITS]
        single = np.where(_COUNT[units] == 1, units, 0)
        placed = np.bitwise_or.reduce(single, axis=2)
        twice = _COUNT[placed] != (single > 0).sum(axis=2)
        once, more = np.zeros_like(placed), np.zeros_like(placed)
        for place in range(9):
            more |= once & units[:, :, place]
            once |= units[:, :, place]
        hidden = once & ~more
        forbidden = placed[:, _UNITS_OF[:, 0]] | placed[:, _UNITS_OF[:, 1]] | placed[:, _UNITS_OF[:, 2]]
        new = np.where(_COUNT[now] == 1, now, now & ~forbidden)
        sole = new & (hidden[:, _UNITS_OF[:, 0]] | hidden[:, _UNITS_OF[:, 1]] | hidden[:, _UNITS_OF[:, 2]])
        new = np.where(sole > 0, sole, new)
        bad = twice.any(axis=1) | (once != _ALL).any(axis=1) | (new == 0).any(axis=1) | (_COUNT[sole] > 1).any(axis=1)
        refuted[going[bad]] = True
        masks[going] = new
        going = going[~bad & (new != now).any(axis=1)]
    return refuted


def _filled(rng: random.Random) -> list[int]:
    """A solved grid."""
    while True:
        grid, used = [0] * 81, [0] * 27
        units = _UNITS_OF.tolist()
        for box in (0, 4, 8):
            for cell, digit in zip(_UNITS[18 + box].tolist(), rng.sample(range(1, 10), 9), strict=True):
                grid[cell] = digit
                for unit in units[cell]:
                    used[unit] |= 1 << (digit - 1)
        if _complete(grid, used, units, rng, [400]):
            return grid


def _complete(grid: list[int], used: list[int], units: list[list[int]], rng: random.Random, left: list[int]) -> bool:
    """Fill the empty cells, the most bound first; gives up after so many tries."""
    best, options = -1, 0
    for cell in range(81):
        if not grid[cell]:
            a, b, c = units[cell]
            free = _ALL & ~(used[a] | used[b] | used[c])
            if best < 0 or _COUNT[free] < _COUNT[options]:
                best, options = cell, free
                if _COUNT[free] <= 1:
                    break
    if best < 0:
        return True
    digits = [digit for digit in range(1, 10) if options >> (digit - 1) & 1]
    rng.shuffle(digits)
    for digit in digits:
        left[0] -= 1
        if left[0] < 0:
            return False
        grid[best] = digit
        for unit in units[best]:
            used[unit] ^= 1 << (digit - 1)
        if _complete(grid, used, units, rng, left):
            return True
        grid[best] = 0
        for unit in units[best]:
            used[unit] ^= 1 << (digit - 1)
    return False
