"""What moments say: a generation of known times."""

import pytest

from diffusiongemma.bench.recorder import Recorder, sample_of
from diffusiongemma.bench.settings import Case
from diffusiongemma.errors import BenchError

CASE = Case(prompts=((1, 2, 3, 4), (5, 6, 7, 8)), steps=2, canvases=2, canvas_length=10, seed=0)


def a_generation() -> Recorder:
    """Prefill 1 to 3 s, steps at 4 and 6 s, commit pass 7 to 8 s, steps at 9 and 11 s."""
    recorder = Recorder(lambda: None)
    recorder.encodes = [(1.0, 2.0), (2.0, 3.0), (7.0, 8.0)]
    recorder.drafts = {(0, 1): 4.0, (0, 2): 6.0, (1, 1): 9.0, (1, 2): 11.0}
    recorder.commits = [6.5, 12.0]
    return recorder


def test_measures_of_a_generation() -> None:
    sample = sample_of(a_generation(), CASE, began=0.5, ended=12.5, peak_bytes=7)
    assert sample.step_ms == pytest.approx(1000 * ((6 - 3) + (11 - 8)) / 4)
    assert sample.commit_ms == pytest.approx(1000)
    assert sample.prefill_token_ms == pytest.approx(2000 / 8)
    assert sample.first_text_ms == pytest.approx(6000)
    assert sample.tokens_per_second == pytest.approx(2 * 20 / 12)
    assert (sample.steps, sample.commits, sample.tokens, sample.peak_bytes) == (4, 1, 40, 7)


def test_token_by_token() -> None:
    """No drafts: every encoder pass after the first token is a token's."""
    recorder = Recorder(lambda: None)
    recorder.encodes = [(1.0, 3.0), (4.0, 5.0), (6.0, 9.0)]
    recorder.commits = [3.5, 5.5, 9.5]
    sample = sample_of(recorder, CASE, began=1.0, ended=10.0, peak_bytes=0)
    assert sample.step_ms is None and sample.steps == 0
    assert (sample.commits, sample.commit_ms) == (2, pytest.approx(2000))
    assert sample.first_text_ms == pytest.approx(2500)


def test_a_loop_that_is_not_seen_is_an_error() -> None:
    """Rather that than a measure of zero."""
    silent = a_generation()
    silent.encodes = []
    with pytest.raises(BenchError, match="no encoder pass"):
        sample_of(silent, CASE, 0.0, 1.0, 0)


def test_the_device_is_waited_for() -> None:
    waits: list[int] = []
    recorder = Recorder(lambda: waits.append(1))
    recorder.encode_began()
    recorder.encode_ended()
    recorder.draft(0, 1)
    recorder.commit()
    assert len(waits) == 4
