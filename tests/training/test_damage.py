"""What a kill at the worst moment leaves after, and files that something else has damaged."""

from pathlib import Path

import pytest

from diffusiongemma.errors import TrainingError
from diffusiongemma.training.loop import TrainRun
from tests.training.test_loop import logged, small


def test_a_line_of_the_log_that_was_cut_short_does_not_hold_up_the_run(tmp_path: Path) -> None:
    """A kill (or a full disk) can leave half a line; the state is whole, so the run goes on."""
    TrainRun(small(steps=2), tmp_path).train()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"denoising": 5.1, "st')
    TrainRun(small(steps=4), tmp_path).train()
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\x80\x04N."], ids=["empty", "text", "a pickle of None"])
def test_a_state_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    TrainRun(small(steps=1), tmp_path).train()
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(TrainingError, match="remove it to begin anew"):
        TrainRun(small(steps=1), tmp_path)


def test_kept_puzzles_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    TrainRun(small(steps=1), tmp_path)
    (file,) = tmp_path.glob("puzzles-*.npy")
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(TrainingError, match="remove it"):
        TrainRun(small(steps=1), tmp_path)


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    TrainRun(small(steps=1), tmp_path)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(TrainingError, match=r"recipe\.json"):
        TrainRun(small(steps=1), tmp_path)
