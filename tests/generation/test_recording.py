"""Answers with their steps, and how a notebook shows them."""

import json
import re
from pathlib import Path

import pytest

from diffusiongemma.errors import InputError
from diffusiongemma.generation import DiffusionGemmaModel
from tests.tiny import tiny_model, tiny_transformer

QUESTION = "Extract as JSON: age (integer)\nKalrin is 31."


def test_every_step_is_there(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, tiny_transformer(scale=0.4))
    options = {"seed": 1, "num_diffusion_steps": 4, "max_tokens": 20}
    result = model.generate("abc", **options)
    recording = model.record("abc", **options)
    assert recording.result.token_ids == result.token_ids and str(recording) == result.text
    steps = [frame.step for frame in recording.frames]
    assert steps == [step for canvas in result.canvases for step in (*range(1, canvas.steps + 1), 0)]
    assert [token for frame in recording.frames if not frame.step for token in frame.token_ids] == result.token_ids
    rows = recording.rows()
    assert len(rows) == sum(len(frame.texts) for frame in recording.frames)
    assert rows[0].keys() == {"canvas", "step", "position", "token_id", "text", "entropy", "accepted"}
    with pytest.raises(InputError, match="one answer is recorded"):
        model.record(["abc"])  # type: ignore[arg-type]


def test_the_picture_holds_all_frames_and_no_markup_of_the_text() -> None:
    nano = DiffusionGemmaModel.from_pretrained("nano")
    recording = nano.record(QUESTION + "</script><b>", seed=1, max_tokens=40, num_diffusion_steps=6)
    page = recording._repr_html_()
    assert page.count("</script>") == 1 and "<b>" not in page
    [data] = re.findall(r"frames = (\[.*\]);", page)
    frames = json.loads(data)
    assert len(frames) == len(recording.frames)
    assert "".join(text for text, *_ in frames[-1]["tokens"]).startswith(recording.result.text[:5])
    assert "<pad>" not in data
    shown = recording.result._repr_html_()
    assert "tokens in" in shown and "<script" not in shown
