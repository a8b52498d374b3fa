"""The borders of an answer: positions, max_tokens and stop strings, one token to either side."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.answer import Answer
from diffusiongemma.errors import InputError, PromptTooLongError
from diffusiongemma.generation import DiffusionGemmaModel
from tests.tiny import text_of, tiny_config, tiny_model, tiny_transformer

POSITIONS = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    """40 positions, canvases of 8."""
    config = tiny_config(max_position_embeddings=POSITIONS)
    return tiny_model(tmp_path_factory.mktemp("model"), tiny_transformer(config, scale=0.4), num_diffusion_steps=3)


def test_an_answer_that_just_fits(model: DiffusionGemmaModel) -> None:
    """Whole canvases are denoised, so 9 tokens need 16 positions."""
    assert len(model.generate("a" * 24, max_tokens=9, seed=0).token_ids) == 9
    with pytest.raises(PromptTooLongError, match="41 positions; the model has 40"):
        model.generate("a" * 25, max_tokens=9, seed=0)


def test_one_prompt_too_long_names_its_row(model: DiffusionGemmaModel) -> None:
    with pytest.raises(PromptTooLongError, match="prompt 1 has 39 tokens"):
        model.generate(["a", "b" * 39], max_tokens=8, seed=0)


def test_causal_answers_need_no_more_positions_than_tokens(model: DiffusionGemmaModel) -> None:
    """There is no canvas to make room for: 31 + 9 = 40 tokens fit, though two canvases after 31 would not."""
    assert len(model.generate("a" * 31, mode="causal", max_tokens=9).token_ids) == 9
    with pytest.raises(PromptTooLongError):
        model.generate("a" * 32, mode="causal", max_tokens=9)


def test_a_stop_token_counts_only_within_max_tokens(model: DiffusionGemmaModel) -> None:
    free = model.generate("abc", max_tokens=8, seed=0).token_ids
    last = next(i for i in range(7, 0, -1) if free[i] not in free[:i])
    stopping = DiffusionGemmaModel(model.transformer, model.tokenizer, model.defaults, (free[last],))
    inside, outside = (stopping.generate("abc", max_tokens=most, seed=0) for most in (last + 1, last))
    assert (inside.token_ids, inside.finish_reason) == (free[: last + 1], "stop")
    assert (outside.token_ids, outside.finish_reason) == (free[:last], "length")
    assert inside.text == outside.text == text_of(free[:last])


@given(
    ids=st.lists(st.integers(0, 2), min_size=1, max_size=24),
    cuts=st.lists(st.integers(1, 5), max_size=24),
    stop=st.text("abc", min_size=1, max_size=4),
    most=st.integers(1, 24),
)
def test_stop_strings_do_not_depend_on_where_canvases_end(
    model: DiffusionGemmaModel, ids: list[int], cuts: list[int], stop: str, most: int
) -> None:
    """However the tokens come, the text is cut before the first stop string, and nothing is sent that is taken back."""
    answer = Answer(model.tokenizer, SamplingParams(max_tokens=most, stop=(stop,)), (), 1)
    rest, sent = list(ids), ""
    while rest and answer.finish is None:
        size = cuts.pop() if cuts else len(rest)
        commit = answer.add(0, rest[:size])
        rest, sent = rest[size:], sent + commit.text
    text = text_of(ids[:most])
    if stop in text:
        assert (sent, answer.finish) == (text[: text.index(stop)], "stop")
    elif len(ids) >= most:
        assert (sent, answer.finish) == (text, "length")
    else:
        # Not at its end yet: at most the start of a stop string is held back.
        assert answer.finish is None
        assert text.startswith(sent)
        assert stop.startswith(text[len(sent) :])


@pytest.mark.parametrize("lengths", [[5, 1], [-1, 1], [1], [[1, 1]], [0.5, 1.0]], ids=str)
def test_lengths_that_do_not_fit_the_tokens_are_refused(model: DiffusionGemmaModel, lengths: list[object]) -> None:
    """A row cannot gain more tokens than it was given: the cache would count slots that hold nothing."""
    cache = model.new_cache(2, 32)
    with pytest.raises(InputError, match="lengths"):
        model.encode(torch.zeros(2, 4, dtype=torch.int64), cache, torch.tensor(lengths))
    assert cache.lengths.tolist() == [0, 0]
