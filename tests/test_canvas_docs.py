"""The code in docs/canvas.md runs as it is written."""

import re
from pathlib import Path
from typing import Any

from diffusiongemma.examples.sudoku.puzzles import grid_of_answer, solves

DOCS = Path(__file__).parent.parent / "docs" / "canvas.md"


def test_every_python_block_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.S)
    assert len(blocks) == 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)
    filled, letter = names["filled"], names["letter"]
    assert (
        filled.text
        == '{"temperature": -1.8, "site": "' + filled.spans["span"] + '", "humidity": 43, "time": "15:15", "sensor": "v87"}'
    )
    assert list(letter.spans) == ["site", "humidity", "sensor"]
    assert solves(names["puzzle"], grid_of_answer(names["solved"].text))
    assert names["edited"].usage.denoising_steps >= 1
