"""Answers constrained to a grammar are valid, whatever the weights: here they are random."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import diffusiongemma
from diffusiongemma import DiffusionGemmaModel
from diffusiongemma.constraints import Constraint, compile_grammar
from diffusiongemma.diffusion import SamplingParams
from diffusiongemma.engine.events import Draft
from diffusiongemma.errors import ConstraintError, InputError, OptionError
from diffusiongemma.text.tokenizer import Tokenizer
from tests.constraints.schemas import own
from tests.constraints.test_walks import validator
from tests.tiny import tiny_config, tiny_transformer

NANO = Path(diffusiongemma.__file__).parent / "checkpoints" / "nano"
SCHEMAS = own()
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def model_of(sharpness: float = 1.0, canvas: int = 16) -> DiffusionGemmaModel:
    """Random weights under nano's tokenizer."""
    config = tiny_config(canvas, vocab_size=4096, max_position_embeddings=8192, sliding_window=64)
    transformer = tiny_transformer(config)
    transformer.norm.weight.data *= sharpness
    return DiffusionGemmaModel(transformer, Tokenizer.from_folder(NANO), SamplingParams(num_diffusion_steps=3), [1, 5])


@pytest.fixture(scope="module", name="model")
def _model() -> DiffusionGemmaModel:
    return model_of()


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_every_schema_is_obeyed(model: DiffusionGemmaModel, name: str) -> None:
    """With room for a shortest text and a few tokens more, the answer is whole and valid, in one canvas or in several."""
    schema = SCHEMAS[name]
    judge = validator(schema)
    least = len(compile_grammar(Constraint.json_schema(schema), model.vocabulary).shortest)
    for spare in (0, 5):
        result = model.generate("x", response_format=schema_of(schema), max_tokens=least + spare, seed=spare)
        assert result.finish_reason == "stop", result.text
        judge.validate(json.loads(result.text))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.01, 1.0, 20.0]),
    st.sampled_from(["best", "canvas", "accepted"]),
    st.integers(1, 60),
    st.sampled_from([8, 64]),
)
def test_any_seed_temperature_rule_and_budget(seed: int, temperature_: float, rule: str, budget: int, canvas: int) -> None:
    model = model_of(canvas=canvas)
    least = len(compile_grammar(Constraint.json_schema(PERSON), model.vocabulary).shortest)
    result = model.generate(
        "x", response_format=schema_of(PERSON), max_tokens=budget, seed=seed, t_max=temperature_, t_min=temperature_, commit=rule
    )
    assert result.usage.completion_tokens <= budget
    if budget >= least:
        assert result.finish_reason == "stop"
    if result.finish_reason == "stop":
        Draft202012Validator(PERSON).validate(json.loads(result.text))


@pytest.mark.parametrize("pattern", [r"\d{3}-[a-f]{2}", r"(ab|cd)+e?", r"[A-Z][a-z]{0,40}\.", r"x*", "é😀{2}"])
def test_regex(model: DiffusionGemmaModel, pattern: str) -> None:
    import re

    for budget in (12, 40):
        result = model.generate("x", regex=pattern, max_tokens=budget, seed=budget)
        assert result.finish_reason == "stop" and re.fullmatch(pattern, result.text)


def test_choices_and_grammar(model: DiffusionGemmaModel) -> None:
    choices = ["yes", "no", "perhaps not", "yes and no"]
    assert {model.generate("x", choices=choices, max_tokens=12, seed=seed).text for seed in range(6)} <= set(choices)
    grammar = 'start: "(" start ")" | "x"'
    text = model.generate("x", grammar=grammar, max_tokens=9, seed=1).text
    assert text.strip("()") == "x" and text.count("(") == text.count(")")


def test_too_little_room_says_length_and_claims_nothing(model: DiffusionGemmaModel) -> None:
    result = model.generate("x", response_format=schema_of(PERSON), max_tokens=3, seed=1)
    assert result.finish_reason == "length"
    with pytest.raises(ValueError, match=r"."):
        json.loads(result.text)


def test_rows_of_one_batch_obey_each_its_own_pace(model: DiffusionGemmaModel) -> None:
    """Several rows and canvases; a row is what it is alone."""
    options: dict[str, Any] = {"response_format": schema_of(PERSON), "max_tokens": 40, "seed": 4}
    together = model.generate(["x", "yy", "a longer prompt"], **options)
    assert [result.text for result in together] == [model.generate(p, **options).text for p in ("x", "yy", "a longer prompt")]


def test_what_the_grammar_forces_is_there_from_the_first_step(model: DiffusionGemmaModel) -> None:
    first = next(e for e in model.stream("x", response_format=schema_of(PERSON), seed=1) if isinstance(e, Draft))
    assert first.text.startswith('{"name":')
    assert all(first.accepted[:2]) and first.entropy[0] == 0


def test_free_rows_are_left_alone(model: DiffusionGemmaModel) -> None:
    free = model.generate("x", seed=3, max_tokens=16)
    assert free.text == model.generate("x", seed=3, max_tokens=16, response_format={"type": "text"}).text


def test_errors_come_before_any_denoising(model: DiffusionGemmaModel) -> None:
    broken = DiffusionGemmaModel(model.transformer, model.tokenizer, model.defaults, model.stop_ids)
    broken.transformer.denoise = None  # type: ignore[assignment, method-assign]
    try:
        for options in (
            {"regex": "a("},
            {"choices": []},
            {"grammar": "start: nothing"},
            {"response_format": {"type": "xml"}},
            {"response_format": schema_of({"type": "string", "pattern": "("})},
            {"response_format": schema_of({"enum": []})},
            {"regex": "a", "choices": ["a"]},
        ):
            with pytest.raises(ConstraintError):
                list(broken.stream("x", **options))
        with pytest.raises(OptionError, match="diffusion"):
            broken.stream("x", regex="a", mode="causal")
        with pytest.raises(ConstraintError, match="row 0 pins token 3"):
            list(broken.stream("x", regex="a", pins=[3]))
        with pytest.raises(InputError, match="stop strings"):
            list(broken.stream("x", regex="a", stop="b"))
    finally:
        del broken.transformer.denoise


def test_the_head_is_asked_only_where_a_token_is_replaced(model: DiffusionGemmaModel) -> None:
    """A canvas that obeys by itself costs no product with the head."""
    from diffusiongemma.engine.constraint import GrammarState

    grammar = compile_grammar(Constraint.json_schema(PERSON), model.vocabulary)
    tokens = model.tokenizer.encode('{"name": "Bo", "age": 3}')
    asked: list[int] = []

    def best_of(at: int, allowed: torch.Tensor) -> int:
        asked.append(at)
        return int(allowed.nonzero()[0])

    row = GrammarState(grammar.start(), 64, [1, 5])
    assert row.read([*tokens, 1, 77, 78], [0.0] * 99, best_of) == ([*tokens, 1, 77, 78], [], True)
    assert not asked
    repaired, constraint, complete = row.read([*tokens[:-1], 1, 77, 78, 79], [0.0] * 99, best_of)
    assert complete and asked == [constraint[0]] == [len(tokens) - 1] and repaired[: len(tokens) - 1] == tokens[:-1]


@given(st.integers(0, 99), st.sampled_from([1, 5, 400, 4096]))
def test_the_best_of_few_tokens_is_the_best_of_all_logits(seed: int, count: int) -> None:
    transformer = model_of().transformer
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, 3, 32, generator=generator)
    allowed = torch.zeros(4096, dtype=torch.bool)
    allowed[torch.randperm(4096, generator=generator)[:count]] = True
    expected = transformer.logits(hidden[1, 2]).masked_fill(~allowed, -torch.inf)
    assert expected[transformer.best_of(hidden[1, 2], allowed)] == pytest.approx(float(expected.max()), abs=1e-4)
