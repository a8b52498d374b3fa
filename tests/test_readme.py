"""The code in the README runs as it is written, and the built-in checkpoint solves its puzzle."""

import re
import secrets
from pathlib import Path
from typing import Any

import pytest

from diffusiongemma import DiffusionGemmaModel
from tests.server.running import running

README = Path(__file__).parent.parent / "README.md"


def test_every_python_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    # The page draws its seeds, and sudoku solves its puzzle from nearly all of them.
    monkeypatch.setattr(secrets, "randbits", lambda bits: 7)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    assert len(blocks) >= 3
    names: dict[str, Any] = {}
    with running(DiffusionGemmaModel.from_pretrained("nano")) as server:
        for block in blocks:
            exec(compile(block.replace("http://127.0.0.1:8000", server.url), str(README), "exec"), names)
    assert names["reply"].choices[0].finish_reason in ("stop", "length")
    from diffusiongemma.examples.sudoku.puzzles import grid_of_answer, solves

    assert solves(names["puzzle"], grid_of_answer(str(names["output"])))
    assert names["soft"].shape == names["hidden"].shape


def test_the_mission_runs_on_a_built_in_name() -> None:
    """The shape of the call everyone starts with: a name, a prompt, steps, max_tokens, print."""
    model = DiffusionGemmaModel.from_pretrained("sudoku")
    output = model.generate(prompt="Solve this sudoku:", num_diffusion_steps=16, max_tokens=512)
    assert str(output) == output.text and 1 <= output.usage.completion_tokens <= 512
