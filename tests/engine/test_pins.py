"""What is pinned stays: in every pass, over several canvases, after stop tokens, in any row of a batch, whatever the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.events import Commit, Done, Draft
from diffusiongemma.engine.pins import last_set, pins_by_row
from diffusiongemma.engine.request import Request
from diffusiongemma.errors import InputError
from diffusiongemma.generation import DiffusionGemmaModel
from tests.tiny import letters, text_of, tiny_model, tiny_transformer

CANVAS = 8
MAX_VARIANTS = 3 * CANVAS
ROWS = st.dictionaries(st.integers(0, MAX_VARIANTS - 1), st.integers(0, 63), max_size=MAX_VARIANTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    return tiny_model(tmp_path_factory.mktemp("model"), tiny_transformer(scale=0.4))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=3),
    scale=st.sampled_from([0.0, 0.4, 3.0]),
    stop_ids=st.sets(st.integers(0, 63), max_size=40),
    options=st.fixed_dictionaries(
        {
            "num_diffusion_steps": st.integers(1, 4),
            "commit": st.sampled_from(["best", "canvas", "accepted"]),
            "stop_rule": st.sampled_from(["canvas", "answer"]),
            "seed": st.integers(0, 2**63 - 1),
            "stop": st.sampled_from([(), ("a",), ("bc", "7")]),
        }
    ),
)
def test_pins_come_out_unchanged(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[int, int]], scale: float, stop_ids: set[int], options: dict[str, Any]
) -> None:
    transformer = tiny_transformer(scale=scale)
    tiny = DiffusionGemmaModel(transformer, letters(tmp_path_factory.getbasetemp()), SamplingParams(), tuple(sorted(stop_ids)))
    results = tiny.generate(["ab"] * len(rows), pins=rows, max_tokens=MAX_VARIANTS, **options)
    for pins, result in zip(rows, results, strict=True):
        assert {at: result.token_ids[at] for at in pins} == pins
        end = max(pins, default=-1) + 1
        # Of the text up to the last pin nothing is missing but stop tokens.
        assert result.text.startswith(text_of([token for token in result.token_ids[:end] if token not in stop_ids]))


def test_every_pass_sees_the_pins_as_certain(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = {0: 5, 7: 9, 8: 11, 23: 63}
    passes: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    denoise = model.transformer.denoise_rows

    def watched(canvases: Any, softs: Any, views: Any) -> list[torch.Tensor]:
        passes.append((canvases[0][0].clone(), None if softs[0] is None else softs[0][0].clone()))
        return denoise(canvases, softs, views)

    monkeypatch.setattr(model.transformer, "denoise_rows", watched)
    model.generate("abc", pins=pins, max_tokens=MAX_VARIANTS, num_diffusion_steps=3, early_stop=False, seed=1)
    assert len(passes) == 9
    for number, (canvas_L, soft_LD) in enumerate(passes):
        for at, token in pins.items():
            if at // CANVAS == number // 3:
                assert canvas_L[at % CANVAS] == token
                if soft_LD is not None:
                    torch.testing.assert_close(soft_LD[at % CANVAS], model.transformer.embed(torch.tensor(token)))


def test_drafts_tell_pins_from_the_rest(model: DiffusionGemmaModel) -> None:
    drafts = [event for event in model.stream("a", pins={1: 4, 9: 5}, max_tokens=16, seed=0) if isinstance(event, Draft)]
    for draft in drafts:
        assert [at for at, pinned in enumerate(draft.pinned) if pinned] == [1]
        assert draft.argmax_ids[1] == (4, 5)[draft.canvas] and draft.entropy[1] == 0


def test_a_stop_token_before_a_pin_ends_nothing(model: DiffusionGemmaModel) -> None:
    """Every token but the pinned one is a stop token: the answer is the pin and one stop token after it."""
    stopping = DiffusionGemmaModel(model.transformer, model.tokenizer, model.defaults, tuple(t for t in range(64) if t != 7))
    result = stopping.generate("abc", pins={12: 7}, max_tokens=MAX_VARIANTS, num_diffusion_steps=2, seed=3)
    assert (len(result.token_ids), result.text, result.finish_reason) == (14, text_of([7]), "stop")


def test_a_stop_string_counts_behind_the_last_pin(model: DiffusionGemmaModel) -> None:
    pins = {0: 0, 1: 1, 2: 0, 3: 1, 20: 2}
    free = model.generate("abc", pins=pins, max_tokens=40, num_diffusion_steps=2, seed=3).text
    stop = free[30]
    events = list(model.stream("abc", pins=pins, max_tokens=40, num_diffusion_steps=2, seed=3, stop=["ab", stop]))
    result = next(event.result for event in events if isinstance(event, Done))
    ends = [at for results in ("ab", stop) if (at := free.find(results, 21)) >= 0]
    assert result.text == free[: min(ends)] and result.finish_reason == "stop"
    assert "".join(event.text for event in events if isinstance(event, Commit)) == result.text


def test_rows_may_be_of_different_lengths(model: DiffusionGemmaModel) -> None:
    rows = [
        Request(prompt=[1], params=SamplingParams(num_diffusion_steps=2, max_tokens=len(pins)), pins=pins)
        for pins in ([3, -1, 4], [5] * 11)
    ]
    done = {event.row: event.result for event in model.engine.run(rows) if isinstance(event, Done)}
    assert [len(done[row].token_ids) for row in (0, 1)] == [3, 11] and done[1].token_ids == [5] * 11


def test_a_start_is_what_the_first_pass_of_its_canvas_sees(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    denoise = model.transformer.denoise_rows
    monkeypatch.setattr(
        model.transformer, "denoise_rows", lambda rows, *rest: (seen.append(rows[0][0].tolist()), denoise(rows, *rest))[1]
    )
    init_tokens = [*range(10), -1, 11]
    params = SamplingParams(num_diffusion_steps=2, early_stop=False, max_tokens=16)
    list(model.engine.run([Request(prompt=[1], params=params, init_tokens=init_tokens)]))
    assert seen[0] == init_tokens[:8] and seen[2][:2] == [8, 9] and seen[2][3] == 11
    assert seen[1] != seen[0], "what the model is not sure of is noise again"


@pytest.mark.parametrize(
    ("pins", "rows", "result"),
    [
        ([3, -1, 4], 2, [[3, -1, 4], [3, -1, 4]]),
        ({2: 4, 0: 3}, 1, [[3, -1, 4]]),
        ([(2, 4), (0, 3), (2, 4)], 1, [[3, -1, 4]]),
        ([{1: 5}, [6], [(0, 7)]], 3, [[-1, 5], [6], [7]]),
        ([], 1, [[]]),
        ({}, 1, [[]]),
    ],
)
def test_ways_to_write_pins(pins: Any, rows: int, result: list[list[int]]) -> None:
    assert pins_by_row(pins, rows, 20) == result


@pytest.mark.parametrize(
    ("pins", "needle"),
    [
        ([(3, 1), (3, 2)], "row 0 pins position 3 to 1 and to 2"),
        ({-1: 2}, "row 0 pins position -1; max_tokens 20"),
        ({20: 2}, "positions 0 to 19"),
        ({10**12: 2}, "positions 0 to 19"),
        ([(1, 2, 3)], "write \\(position, token\\) pairs"),
        ([(1, 2), 3], "write \\(position, token\\) pairs"),
        ({0: 64}, "outside 0 to 63"),
        ({0: -5}, "outside 0 to 63"),
        ([-1] * 20 + [4], "row 0 pins 21 positions; max_tokens 20"),
        ([{0: 1}, {0: 1}], "pins for 2 rows and 1 prompts"),
        ([None], "row 0 has None among its pins; write token ids"),
        ([(0, 1), None], "row 0 has None among its pins"),
        ([[1, None]], "row 0 has None among its pins"),
        ([1.5], "row 0 has 1.5 among its pins"),
        ([True], "row 0 has True among its pins"),
        ({"a": 1}, "row 0 has \\('a', 1\\) among its pins"),
        ({1: None}, "row 0 has \\(1, None\\) among its pins"),
        ("ab", "pins is 'ab'; give token ids"),
        (5, "pins is 5; give token ids"),
        (torch.tensor([1]), "pins is tensor"),
    ],
)
def test_bad_pins_are_named(model: DiffusionGemmaModel, pins: Any, needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        model.generate("abc", pins=pins, max_tokens=20)


def test_where_the_last_pin_stands() -> None:
    assert [last_set(row) for row in ([], [-1, -1], [4, -1], [-1, 0, -1])] == [0, 0, 1, 2]


def test_pins_are_checked_before_anything_is_denoised(model: DiffusionGemmaModel, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        model.stream("abc", pins=[(0, 1), (0, 2)])
