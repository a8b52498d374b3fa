"""``top_k``, ``top_p`` and ``min_p`` in both roles, alone and beside rows that draw from all tokens or follow a grammar."""

from typing import Any

import pytest

from diffusiongemma.engine import runner
from diffusiongemma.engine.engine import Engine
from diffusiongemma.engine.events import Done
from diffusiongemma.evals.run import evaluate
from diffusiongemma.generation import DiffusionGemmaModel
from diffusiongemma.tasks.registry import task_named
from tests.tiny import tiny_model, tiny_transformer

OPTIONS = {"num_diffusion_steps": 4, "max_tokens": 20, "seed": 3, "early_stop": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemmaModel:
    return tiny_model(tmp_path_factory.mktemp("model"), tiny_transformer(scale=0.3), stop_ids=(1,))


def test_one_token_is_the_most_probable(model: DiffusionGemmaModel) -> None:
    greedy = model.generate("abc", mode="causal", **OPTIONS).token_ids
    assert model.generate("abc", mode="causal", temperature=1.5, **OPTIONS).token_ids != greedy
    for cut_off in ({"top_k": 1}, {"top_p": 0}, {"min_p": 1.0}):
        assert model.generate("abc", mode="causal", temperature=1.5, **cut_off, **OPTIONS).token_ids == greedy
        # Accepted draws are then the most probable tokens, so that two rules of what is committed say the same.
        best, accepted = by_rule(model, **cut_off)
        assert best == accepted
    best, accepted = by_rule(model)
    assert best != accepted


def test_at_temperature_0_the_most_probable_tokens_are_accepted_and_no_sooner(model: DiffusionGemmaModel) -> None:
    plain, cold = by_rule(model), by_rule(model, temperature=0)
    assert cold[0] == cold[1] and plain[0] != plain[1]
    nano = DiffusionGemmaModel.from_pretrained("nano")
    task = task_named("json-extract")
    examples = task.examples(16, 1_000_000)
    usual, greedy = (evaluate(nano, task, examples, temperature=temperature).total for temperature in (None, 0.0))
    assert greedy.score > usual.score - 0.1 and greedy.mean_steps > 0.8 * usual.mean_steps
    halfway = model.generate(["abc", "xyz"], temperature=0.5, **OPTIONS)
    assert halfway[0].token_ids == model.generate("abc", temperature=0.5, **OPTIONS).token_ids


def by_rule(model: DiffusionGemmaModel, **options: Any) -> list[list[int]]:
    return [
        model.generate("abc", commit=rule, t_max=1.5, t_min=1.5, **options, **OPTIONS).token_ids for rule in ("best", "accepted")
    ]


@pytest.mark.parametrize("mode", ["diffusion", "causal", "exact"])
def test_what_cuts_nothing_off_changes_nothing(model: DiffusionGemmaModel, mode: str) -> None:
    plain = model.generate("abc", mode=mode, temperature=1.2, **OPTIONS).token_ids
    assert model.generate("abc", mode=mode, temperature=1.2, top_p=1.0, min_p=0.0, **OPTIONS).token_ids == plain
    shaped = model.generate("abc", mode=mode, temperature=1.2, top_p=0.5, top_k=5, min_p=0.01, **OPTIONS).token_ids
    assert shaped != plain


def test_the_exact_mode_draws_as_the_causal_one(model: DiffusionGemmaModel) -> None:
    options: dict[str, Any] = {**OPTIONS, "temperature": 1.1, "top_p": 0.6}
    assert model.generate("abc", mode="exact", **options).token_ids == model.generate("abc", mode="causal", **options).token_ids


@pytest.mark.parametrize("large", [0, 1 << 24])
def test_rows_keep_their_tokens_in_company(model: DiffusionGemmaModel, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LARGE_TABLE", large)
    kinds: list[dict[str, Any]] = [
        {}, {"top_k": 3}, {"regex": "[a-f]{3,9}"}, {"regex": "[a-f]{3,9}", "top_p": 0.4}, {"min_p": 0.3},
        {"mode": "causal", "top_p": 0.5, "temperature": 1.0},
    ]  # fmt: skip
    alone = [model.generate("abc", **kind, **OPTIONS).token_ids for kind in kinds]
    engine = Engine(model.transformer, model.tokenizer)
    for number, kind in enumerate(kinds):
        [request] = model.requests("abc", **kind, **OPTIONS)
        engine.add(request, number=number)
    together: dict[int, list[int]] = {}
    while engine.busy:
        together |= {event.row: event.result.token_ids for _, event in engine.step() if isinstance(event, Done)}
    assert [together[number] for number in range(len(kinds))] == alone
