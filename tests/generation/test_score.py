"""The causal role as a judge: of given texts, of answers that were just committed, and of several of them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.cli.main import app
from diffusiongemma.errors import InputError, OptionError, PromptTooLongError
from tests.tiny import tiny_model, tiny_transformer

PROMPT = "Say it."


@pytest.fixture(scope="module")
def nano() -> DiffusionGemmaModel:
    return DiffusionGemmaModel.from_pretrained("nano")


def test_scores_are_those_of_the_passes(nano: DiffusionGemmaModel) -> None:
    [one, two] = nano.score(PROMPT, ["a b c", "nothing at all"])
    [prompt] = nano.prompt_ids(PROMPT)
    for scored in (one, two):
        assert nano.tokenizer.decode(scored.token_ids) == scored.text and scored.token_ids[-1] in nano.stop_ids
        ids = torch.tensor([[*prompt, *scored.token_ids]])
        logits = nano.logits(nano.encode(ids, nano.new_cache()))[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(-1, torch.tensor(scored.token_ids)[:, None])[:, 0]
        assert scored.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
        assert scored.total == pytest.approx(sum(scored.logprobs)) and scored.perplexity == pytest.approx(1 / scored.confidence)
    assert nano.score(PROMPT, "a b c").logprobs == pytest.approx(one.logprobs, abs=1e-5)
    assert nano.score(PROMPT, "a b c", end=False).token_ids == one.token_ids[:-1]
    assert nano.score(None, "a b c").total != one.total
    said = [{"role": "user", "content": PROMPT}]
    assert nano.score(None, "a b c", messages=said).logprobs == pytest.approx(one.logprobs, abs=1e-5)


@pytest.mark.parametrize("mode", ["diffusion", "causal"])
def test_an_answer_carries_what_the_judge_thinks(nano: DiffusionGemmaModel, mode: str) -> None:
    plain = nano.generate(PROMPT, seed=1, max_tokens=100, mode=mode)  # type: ignore[call-overload]
    judged = nano.generate(PROMPT, seed=1, max_tokens=100, mode=mode, logprobs=0)  # type: ignore[call-overload]
    assert plain.confidence is None and plain.logprobs == []
    assert judged.token_ids == plain.token_ids == [one.token_id for one in judged.logprobs]
    assert judged.confidence == pytest.approx(math.exp(sum(one.logprob for one in judged.logprobs) / len(judged.logprobs)))
    again = nano.score(PROMPT, judged.text)
    if again.token_ids == judged.token_ids:
        assert again.confidence == pytest.approx(judged.confidence, rel=1e-3)


def test_the_best_of_some_is_the_most_probable(nano: DiffusionGemmaModel) -> None:
    several = nano.generate(PROMPT, n=4, seed=3, max_tokens=24, temperature=1.5, logprobs=0)
    best = nano.generate(PROMPT, best_of=4, seed=3, max_tokens=24, temperature=1.5)
    assert best.confidence == max(one.confidence for one in several)  # type: ignore[type-var]
    assert best.token_ids in [one.token_ids for one in several]
    two = nano.generate([PROMPT, "Else."], best_of=2, seed=3, max_tokens=8)
    assert len(two) == 2 and all(one.confidence is not None for one in two)
    with pytest.raises(OptionError, match="n and best_of"):
        nano.generate(PROMPT, best_of=2, n=2)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="n is 0"):
        nano.generate(PROMPT, best_of=0)


def test_another_model_chooses_the_best_of_some(nano: DiffusionGemmaModel, tmp_path: Path) -> None:
    other = tiny_model(tmp_path, tiny_transformer(seed=4, scale=0.4), stop_ids=(1,))
    options: dict[str, Any] = {"seed": 3, "max_tokens": 8, "num_diffusion_steps": 2}
    prompts = ["hello", "xyzzy"]
    (tmp_path / "judge").mkdir()
    judge = tiny_model(tmp_path / "judge", tiny_transformer(seed=9, scale=0.4), stop_ids=(1,))
    differs = 0
    for prompt, best in zip(prompts, other.generate(prompts, best_of=5, judge=judge, **options), strict=True):
        several = [one for one in other.generate(prompt, n=5, **options) if one.text]
        scores = [judge.score(prompt, one.text, end=one.finish_reason == "stop").confidence for one in several]
        assert best.token_ids == several[scores.index(max(scores))].token_ids
        differs += best.token_ids != other.generate(prompt, best_of=5, **options).token_ids
    assert differs
    said = [{"role": "user", "content": PROMPT}]
    own, same = (nano.generate(messages=said, best_of=3, temperature=1.5, judge=one, seed=3, max_tokens=24) for one in (None, nano))
    assert own.text == same.text
    with pytest.raises(OptionError, match="how many answers there are"):
        nano.generate(PROMPT, judge=nano)  # type: ignore[call-overload]


def test_texts_that_cannot_be_scored(nano: DiffusionGemmaModel) -> None:
    for wrong, says in (([], "no text"), ([""], "text 0 is empty"), ([3], "text 0 is of type int")):
        with pytest.raises(InputError, match=says):
            nano.score(PROMPT, wrong, end=False)  # type: ignore[call-overload]
    with pytest.raises(PromptTooLongError):
        nano.score(PROMPT, "word " * 5000)
    with pytest.raises(InputError, match="not both"):
        nano.score(PROMPT, "a", messages=[{"role": "user", "content": "b"}])


def test_the_commands() -> None:
    run = CliRunner().invoke
    scored = run(app, ["score", "a b c", "--prompt", PROMPT, "--json"])
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout).keys() == {"text", "token_ids", "logprobs", "total", "confidence", "perplexity"}
    shown = run(app, ["score", "-", "--no-end"], input="a b c")
    assert shown.exit_code == 0 and "perplexity" in shown.output
    best = run(app, ["generate", PROMPT, "--best-of", "2", "--seed", "1", "--max-tokens", "8", "--json"])
    assert best.exit_code == 0 and 0 < json.loads(best.stdout)["confidence"] <= 1
