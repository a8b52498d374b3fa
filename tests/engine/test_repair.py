"""Repair: a canvas is denoised anew from the first token that the causal role doubts, and the most probable form is committed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from diffusiongemma.engine import scheduler
from diffusiongemma.engine.engine import Engine
from diffusiongemma.engine.events import Done, Draft
from diffusiongemma.engine.request import max_steps
from diffusiongemma.engine.runner import ModelRunner
from diffusiongemma.engine.sequence import SequenceState
from diffusiongemma.evals.run import evaluate
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.tasks.registry import task_named
from tests.tiny import tiny_model, tiny_transformer

OPTIONS: dict[str, Any] = {"seed": 3, "num_diffusion_steps": 4, "max_tokens": 20}
PROMPTS = ["ab", "hello", "xyzzy", "alongerpromptofletters"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    return tiny_model(tmp_path_factory.mktemp("model"), tiny_transformer(scale=0.4), stop_ids=(1,))


def likelihood(model: DiffusionGemmaModel, prompt: str, **options: Any) -> float:
    result = model.generate(prompt, logprobs=0, **(OPTIONS | options))
    return sum(one.logprob for one in result.logprobs[:8]) / len(result.logprobs[:8])


def test_no_round_makes_it_less_probable(model: DiffusionGemmaModel) -> None:
    """Of the first canvas: later ones have other contexts."""
    counts = (0, 1, 3, 9)
    by_rounds = [[likelihood(model, prompt, repair=count, doubt=0.99, max_tokens=8) for count in counts] for prompt in PROMPTS]
    assert all(rounds == sorted(rounds) for rounds in by_rounds)
    assert any(rounds[-1] > rounds[0] for rounds in by_rounds)


def test_what_is_not_doubted_stays(model: DiffusionGemmaModel) -> None:
    plain = model.generate("hello", **OPTIONS)
    sure = model.generate("hello", repair=5, doubt=1e-30, **OPTIONS)
    assert sure.token_ids == plain.token_ids and sure.usage.denoising_steps == plain.usage.denoising_steps
    events = model.stream("hello", repair=1, doubt=0.99, **(OPTIONS | {"max_tokens": 8}))
    drafts = [event for event in events if isinstance(event, Draft)]
    steps = [event.step for event in drafts]
    assert steps == list(range(1, len(steps) + 1))
    again = model.generate("hello", **(OPTIONS | {"max_tokens": 8})).usage.denoising_steps
    assert len(drafts) > again
    held = [at for at, pinned in enumerate(drafts[again].pinned) if pinned]
    assert held == list(range(len(held))) and len(held) < 8
    assert [drafts[again].argmax_ids[at] for at in held] == [drafts[again - 1].argmax_ids[at] for at in held]


def test_answers_do_not_depend_on_company_or_memory(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    options = OPTIONS | {"repair": 2, "doubt": 0.9}
    alone = [model.generate(prompt, **options).token_ids for prompt in PROMPTS]
    assert [one.token_ids for one in model.generate(PROMPTS, **options)] == alone
    monkeypatch.setattr(scheduler, "BLOCK", 1)
    requests = [model.requests(prompt, **options)[0] for prompt in PROMPTS]
    few = 2 * Engine(model.transformer, model.tokenizer).cache_bytes(requests[-1], 24)
    engine = Engine(model.transformer, model.tokenizer, kv_bytes=few)
    for number, request in enumerate(requests):
        engine.add(request, number=number)
    results = {}
    while engine.busy:
        results |= {event.row: event.result for _, event in engine.step() if isinstance(event, Done)}
    assert [results[number].token_ids for number in range(len(PROMPTS))] == alone
    for number, request in enumerate(requests):
        usage = results[number].usage
        assert usage.denoising_steps + usage.commit_passes <= max_steps(model.transformer, request) + len(results[number].canvases)


def test_pins_and_constraints_hold_through_all_rounds(model: DiffusionGemmaModel) -> None:
    """And the form that is committed is no less probable than without repair: one canvas."""
    options = OPTIONS | {"max_tokens": 8, "logprobs": 0}
    pins = {0: 7, 3: 9, 7: 11}
    changed = 0
    for prompt in PROMPTS:
        for more in ({"pins": pins}, {"regex": "[a-zA-Z]{3,8}"}, {"choices": ["acc", "acd", "fe", "cae"]}):
            plain = model.generate(prompt, **more, **options)
            mended = model.generate(prompt, repair=4, doubt=0.99, **more, **options)
            changed += mended.token_ids != plain.token_ids
            assert (mended.confidence or 0) >= (plain.confidence or 0) - 1e-6
            if "pins" in more:
                assert {at: mended.token_ids[at] for at in pins} == pins
            elif "regex" in more:
                assert re.fullmatch(more["regex"], mended.text)
            else:
                assert mended.text in more["choices"]
    assert changed


def test_a_grammar_s_own_tokens_are_not_doubted(model: DiffusionGemmaModel) -> None:
    """Where nothing else is allowed, denoising anew could change nothing."""
    plain, mended = (
        model.generate("ab", regex="dcea", repair=count, doubt=0.999, **OPTIONS).usage.denoising_steps for count in (0, 9)
    )
    assert mended == plain


def test_other_modes_are_left_alone(model: DiffusionGemmaModel) -> None:
    for mode in ("causal", "exact"):
        plain = model.generate("ab", mode=mode, **OPTIONS)
        assert model.generate("ab", mode=mode, repair=3, doubt=0.99, **OPTIONS).token_ids == plain.token_ids


def test_canvases_are_judged_together_and_encoded_once(model: DiffusionGemmaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = ModelRunner.encode

    def counted(self: ModelRunner, batch: Sequence[tuple[SequenceState, list[int]]]) -> list[Tensor]:
        calls.append(len(batch))
        return encode(self, batch)

    monkeypatch.setattr(ModelRunner, "encode", counted)
    options = {"seed": 3, "num_diffusion_steps": 2, "max_tokens": 24, "early_stop": False}
    plain = model.generate(PROMPTS[:1] * 3, **options)
    assert [len(one.token_ids) for one in plain] == [24] * 3 and calls == [3, 3, 3]
    calls.clear()
    judged = model.generate(PROMPTS[:1] * 3, repair=1, doubt=1e-30, **options)
    # The last canvas is read too; of the others the reading is what they are encoded for anyway.
    assert calls == [3, 3, 3, 3] and [one.token_ids for one in judged] == [one.token_ids for one in plain]
    assert judged[0].usage.commit_passes == 3


def test_judging_keeps_the_log_probabilities(model: DiffusionGemmaModel) -> None:
    options = OPTIONS | {"repair": 2, "doubt": 0.9, "max_tokens": 20}
    plain, asked = model.generate("hello", **options), model.generate("hello", logprobs=0, **options)
    assert asked.token_ids == plain.token_ids and [one.token_id for one in asked.logprobs] == plain.token_ids


def test_it_mends_answers_of_a_trained_model() -> None:
    nano = DiffusionGemmaModel.from_pretrained("nano")
    task = task_named("json-extract")
    examples = task.examples(20, 1_000_000)
    plain, mended = (evaluate(nano, task, examples, repair=rounds).total for rounds in (0, 2))
    assert mended.score > plain.score + 0.02 or plain.score > 0.97
    assert mended.mean_steps < 2 * plain.mean_steps


def test_a_long_answer_of_several_canvases(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, tiny_transformer(seed=2, scale=0.4))
    result = model.generate("hello", repair=2, doubt=0.9, **(OPTIONS | {"max_tokens": 60}))
    assert len(result.token_ids) == 60 and len(result.canvases) == 8
    assert sum(canvas.tokens for canvas in result.canvases) == 60


def test_the_largest_seed_and_texts_to_start_from(model: DiffusionGemmaModel) -> None:
    options = OPTIONS | {"repair": 2, "doubt": 0.99, "seed": 2**63 - 1}
    assert model.generate("hello", **options).token_ids == model.generate("hello", **options).token_ids
    nano = DiffusionGemmaModel.from_pretrained("nano")
    more = {"max_tokens": 8, "num_diffusion_steps": 3, "seed": 2**63 - 1}
    assert nano.edit("The red car.", "Replace red with blue", repair=2, doubt=0.99, **more).token_ids
