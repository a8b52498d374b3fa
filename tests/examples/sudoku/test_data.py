"""The training data: a pure function of (seed, step), valid puzzles, and the ids the tokenizer would give."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusiongemma.errors import TrainingError
from diffusiongemma.examples.sudoku.data import SudokuData, SudokuPuzzles, build_tokenizer, vocabulary
from diffusiongemma.examples.sudoku.generator import base_puzzles
from diffusiongemma.examples.sudoku.puzzles import answer_text, grid_of_answer, parse, prompt_text, reasoning_gym_puzzles, solves
from diffusiongemma.examples.sudoku.rules import solution
from diffusiongemma.text.tokenizer import Tokenizer
from diffusiongemma.training.data import CHAT_TEMPLATE, SPECIALS
from diffusiongemma.training.init import write_tokenizer

RECIPE = SudokuPuzzles(base_puzzles=3, base_seed=7, hard_share=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def data(folder: Path) -> SudokuData:
    return SudokuData(RECIPE, 1, folder, lambda done, total: None)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    write_tokenizer(folder, build_tokenizer(), CHAT_TEMPLATE, SPECIALS)
    return Tokenizer.from_folder(folder)


def test_a_batch_depends_on_seed_and_step_alone(data: SudokuData, folder: Path) -> None:
    again = SudokuData(RECIPE, 1, folder, lambda done, total: pytest.fail("the puzzles are kept, not made again"))
    other = SudokuData(RECIPE, 2, folder, lambda done, total: None)
    for step in (0, 5):
        batch, same = data.batch(step, 4), again.batch(step, 4)
        assert torch.equal(batch.prompt_PT, same.prompt_PT) and torch.equal(batch.answer_PL, same.answer_PL)
        assert not torch.equal(batch.prompt_PT, other.batch(step, 4).prompt_PT)
    assert not torch.equal(data.batch(0, 4).prompt_PT, data.batch(1, 4).prompt_PT)


def test_every_example_is_a_puzzle_with_its_solution_in_the_tokenizers_ids(data: SudokuData, tokenizer: Tokenizer) -> None:
    counts = []
    batch = data.batch(3, 40)
    assert tokenizer.template is not None
    for prompt, answer in zip(batch.prompt_PT.tolist(), batch.answer_PL.tolist(), strict=True):
        cells = [token for i in prompt if "=" in (token := tokenizer.token_text(i))]
        puzzle = parse("".join(cell[-1] for cell in cells))
        text = tokenizer.decode(answer)
        assert solves(puzzle, grid_of_answer(text))
        counts.append(puzzle.clue_count)
        rendered = tokenizer.template.render([{"role": "user", "content": prompt_text(puzzle)}])
        assert tokenizer.encode(rendered) == prompt
        grid = grid_of_answer(text)
        assert grid is not None and [*tokenizer.encode(answer_text(grid)), vocabulary()["<eos>"]] == answer
    assert min(counts) >= 31 and max(counts) <= 51
    assert sum(count <= 34 for count in counts) >= 12, "half the examples are from the hardest band"


def test_symmetries_keep_the_single_solution(data: SudokuData) -> None:
    """A varied puzzle has the number of clues asked for, and its clues are a relabelling of its base's and more."""
    base = data.base
    rng = np.random.Generator(np.random.Philox(key=[1, 2]))
    for pair in base.astype(np.int64):
        clues, solution = data.vary(pair.copy(), rng)
        given = clues > 0
        assert (clues[given] == solution[given]).all()
        assert given.sum() >= (pair[0] > 0).sum()


def test_kept_puzzles_of_another_size_are_refused(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "puzzles-7-3-31.npy", np.zeros((2, 2, 81), np.uint8))
    with pytest.raises(TrainingError, match="remove it"):
        SudokuData(RECIPE, 1, tmp_path, lambda done, total: None)


def test_the_base_puzzles_are_the_generators(data: SudokuData) -> None:
    expected = [p.clues for p in reasoning_gym_puzzles(3, 7, (50, 50))]
    assert ["".join(map(str, clues)).replace("0", ".") for clues in data.base[:, 0]] == expected


def test_cell_tokens_begin_as_sums_of_their_parts(data: SudokuData) -> None:
    weight = torch.zeros(len(vocabulary()), 16)
    data.initial_embeddings(weight, torch.Generator().manual_seed(0))
    ids = vocabulary()
    # Exchanging one part (the value) moves every cell by the same vector.
    first = weight[ids["A1=7"]] - weight[ids["A1=?"]]
    second = weight[ids["I5=7"]] - weight[ids["I5=?"]]
    assert torch.allclose(first, second, atol=1e-6) and first.norm() > 0
    assert weight[: ids["A1=?"]].abs().sum() == 0


def test_words_that_are_not_in_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    from diffusiongemma.errors import InputError

    with pytest.raises(InputError, match="no token for 'quantum'"):
        tokenizer.encode("Solve this quantum")


def test_own_puzzles_have_one_solution_and_few_clues() -> None:
    puzzles = base_puzzles(12, 3, 22)
    again = base_puzzles(12, 3, 22)
    assert puzzles.shape == (12, 2, 81) and (puzzles == again).all() and (base_puzzles(12, 4, 22) != puzzles).any()
    assert (puzzles[:, 0] > 0).sum(axis=1).min() >= 22 and (puzzles[:, 0] > 0).sum(axis=1).mean() < 28
    assert (base_puzzles(3, 3, 40)[:, 0] > 0).sum(axis=1).tolist() == [40, 40, 40]
    for clues, grid in puzzles.tolist():
        # From both ends: were there two solutions, one of them would be found by either order.
        assert solution(clues, lambda cell: range(1, 10), [0.0] * 81) == grid
        assert solution(clues, lambda cell: range(9, 0, -1), [0.0] * 81) == grid


def test_a_recipe_takes_own_puzzles(tmp_path: Path) -> None:
    recipe = SudokuPuzzles(base="own", base_puzzles=4, min_clues=25, max_clues=40)
    progress: list[tuple[int, int]] = []
    data = SudokuData(recipe, 1, tmp_path, lambda done, of: progress.append((done, of)))
    assert progress == [(4, 4)] and [path.name for path in tmp_path.iterdir()] == ["puzzles-own-1-4-25.npy"]
    again = SudokuData(recipe, 1, tmp_path, lambda done, of: None)
    assert torch.equal(data.batch(3, 4).prompt_PT, again.batch(3, 4).prompt_PT)
