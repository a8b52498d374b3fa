"""The noise of a training step: the same whenever the step is done again, and another one at every other step."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusiongemma.training.loop import TrainRun
from tests.training.test_loop import small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    return TrainRun(small(prompts=4, canvases=4), tmp_path_factory.mktemp("run"))


def at(run: TrainRun, step: int) -> tuple[Tensor, Tensor]:
    """Clean and noisy canvases of a step."""
    run.step = step
    batch, corrupted = run._noisy_batch(run._data.batch(run.step, run.recipe.train.prompts), run.step)
    return batch.answer_PL.repeat_interleave(4, 0), corrupted.noisy_BL


def agreement(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """How often two batches have the same noise, where both have any."""
    both = (one[0] != one[1]) & (other[0] != other[1])
    assert both.sum() > 50
    return float((one[1] == other[1])[both].double().mean())


def test_a_step_is_the_same_again_and_no_other(run: TrainRun) -> None:
    first, second = at(run, 7), at(run, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, at(run, 7), strict=True))
    assert agreement(first, first) == 1.0
    assert agreement(first, second) < 0.05, "noise comes from the whole vocabulary, so it hardly ever agrees"


def test_another_seed_is_another_run(run: TrainRun, tmp_path: Path) -> None:
    recipe = small(prompts=4, canvases=4)
    other = TrainRun(recipe.model_copy(update={"seed": recipe.seed + 1}), tmp_path)
    assert agreement(at(run, 7), at(other, 7)) < 0.05


def test_canvases_of_one_prompt_have_their_own_noise(run: TrainRun) -> None:
    clean, noisy = at(run, 9)
    assert torch.equal(clean[0], clean[3])
    shares = (clean != noisy).double().mean(-1)
    assert len({round(float(share), 3) for share in shares}) > 8, "every canvas has a level of its own"
    assert len({tuple(row) for row in noisy.tolist()}) == 16
