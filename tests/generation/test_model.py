"""The model as its users call it: what comes back for how many prompts and answers, streams of prompts, what it says of itself."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, field_validator

from diffusiongemma import DiffusionGemmaModel, Result
from diffusiongemma.engine.offline import MAX_ROWS as AT_ONCE
from diffusiongemma.engine.request import Request
from diffusiongemma.errors import ConstraintError, InputError, OptionError
from tests.tiny import tiny_model

QUICK: dict[str, Any] = {"num_diffusion_steps": 2, "max_tokens": 8}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["age"]}


class Person(BaseModel):
    """What an answer is to be."""

    age: int


@pytest.fixture
def model(tmp_path: Path) -> DiffusionGemmaModel:
    return tiny_model(tmp_path, **QUICK)


def test_as_many_answers_as_were_asked_for(model: DiffusionGemmaModel) -> None:
    alone = [model.generate("abc", seed=5 + answer).token_ids for answer in range(3)]
    assert [result.token_ids for result in model.generate("abc", n=3, seed=5)] == alone
    assert [result.token_ids for result in model.generate("abc", n=1, seed=5)] == alone[:1]
    assert isinstance(model.generate("abc"), Result)
    other = model.generate("xyz", seed=5).token_ids
    assert [result.token_ids for result in model.generate(["abc", "xyz"], seed=5)] == [alone[0], other]
    many = model.generate(["abc", "xyz"], n=2, seed=5)
    assert [len(answers) for answers in many] == [2, 2]
    assert [answers[0].token_ids for answers in many] == [alone[0], other]
    said = [{"role": "user", "content": "abc"}]
    with pytest.raises(InputError, match="no chat template"):
        model.generate(messages=said, n=2)


@pytest.mark.parametrize("given", [SCHEMA, {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, Person], ids=str)
def test_a_schema_however_it_is_given(given: Any) -> None:
    nano = DiffusionGemmaModel.from_pretrained("nano")
    result = nano.generate("How old?", response_format=given, seed=1, max_tokens=40)
    assert result.finish_reason == "stop" and isinstance(json.loads(result.text)["age"], int)


def test_what_is_no_schema_is_refused(model: DiffusionGemmaModel) -> None:
    for wrong in ({"type": "json_schema"}, {"schema": SCHEMA}, int, "object"):
        with pytest.raises(InputError, match="response_format is") as caught:
            model.generate("abc", response_format=wrong)  # type: ignore[arg-type]
        assert caught.value.param == "response_format"


def test_it_says_what_it_is(model: DiffusionGemmaModel) -> None:
    count = sum(weight.numel() for weight in model.transformer.state_dict().values())
    assert repr(model) == (f"DiffusionGemmaModel(in memory: {count:,} parameters, float32 on cpu, canvas of 8, weights plain)")
    assert repr(DiffusionGemmaModel.from_pretrained("nano")).startswith("DiffusionGemmaModel(nano: ")


def test_temperature_means_the_same_through_every_door(model: DiffusionGemmaModel) -> None:
    """On a canvas it scales the draws, above 1 the schedule; token by token it is the temperature, and 0 where it is not given."""
    warm = {"t_min": model.defaults.t_min * 1.5, "t_max": model.defaults.t_max * 1.5}
    (asked,), (scaled,) = model.requests("abc", temperature=1.5, seed=1), model.requests("abc", seed=1, **warm)
    assert asked == scaled
    tokens = [
        model.generate("abc", seed=1, **options).token_ids for options in ({"temperature": 1.5}, warm, {}, {"temperature": 1})
    ]
    assert tokens[0] == tokens[1] and tokens[2] == tokens[3]
    assert model._context(None, None, {"temperature": 1.5, "seed": 1}).params.t_max == warm["t_max"]
    (cold,) = model.requests("abc", temperature=0.5, seed=1)
    assert (cold.params.noise, cold.params.t_min, cold.params.t_max) == (0.5, model.defaults.t_min, model.defaults.t_max)
    (causal,) = model.requests("abc", mode="causal", temperature=0.5, seed=1)
    assert (causal.params.temperature, causal.params.t_max) == (0.5, model.defaults.t_max)
    greedy = [model.generate("abc", mode="causal", seed=seed).token_ids for seed in (1, 2)]
    assert greedy[0] == greedy[1] == model.generate("abc", mode="causal", temperature=0, seed=3).token_ids
    with pytest.raises(OptionError, match="temperature is 3; it must be a finite number >= 0 and <= 2"):
        model.generate("abc", temperature=3)


def test_a_stream_of_prompts_is_taken_as_there_is_room(model: DiffusionGemmaModel) -> None:
    taken = 0

    def prompts() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "abc"[: 1 + taken % 3]

    results = model.generate_iter(prompts(), seed=3)
    first, result = next(results)
    assert first < AT_ONCE and taken <= 2 * AT_ONCE
    assert result.token_ids == model.generate("abc"[: 1 + (first + 1) % 3], seed=3).token_ids
    numbers = [first] + [next(results)[0] for _ in range(3 * AT_ONCE - 1)]
    assert len(set(numbers)) == 3 * AT_ONCE and max(numbers) < taken <= 5 * AT_ONCE


def test_two_thousand_prompts_in_bounded_memory(tmp_path: Path) -> None:
    """Requests that are alive at a time are those of the engine; results are told as they come."""
    model = tiny_model(tmp_path, num_diffusion_steps=1, max_tokens=1, canvas_length=1)
    alive, told = [], []

    def seen(number: int, result: Result) -> None:
        told.append(number)
        if not number % 200:
            gc.collect()
            alive.append(sum(isinstance(thing, Request) for thing in gc.get_objects()))

    results = model.generate([f"a{number:04}" for number in range(2000)], seed=1, on_result=seen)
    assert len(results) == 2000 and sorted(told) == list(range(2000))
    assert len(alive) >= 10 and max(alive) <= 2 * AT_ONCE


def test_an_error_of_a_prompt_comes_when_its_turn_does(model: DiffusionGemmaModel) -> None:
    results = model.generate_iter(["abc"] * 2 * AT_ONCE + ["a" * 600])
    assert len([next(results) for _ in range(AT_ONCE)]) == AT_ONCE
    with pytest.raises(InputError, match="tokens"):
        list(results)
    with pytest.raises(OptionError, match="unknown option nonsense"):
        model.generate_iter(["abc"], nonsense=1)  # type: ignore[call-arg]


def test_passes_refuse_what_is_no_tensor(model: DiffusionGemmaModel) -> None:
    cache = model.new_cache(1, 16)
    assert model.encode(torch.tensor([[1, 2]]), cache).shape == (1, 2, 32)
    with pytest.raises(InputError, match="soft has shape"):
        model.denoise(torch.zeros(1, 8, dtype=torch.int64), cache, torch.zeros(1, 8, 3))


def test_a_pydantic_class_gives_objects_of_it() -> None:
    nano = DiffusionGemmaModel.from_pretrained("nano")
    question = "Extract as JSON: age (integer)\nKalrin is 31."
    person = nano.generate(question, schema=Person, seed=1)
    assert isinstance(person, Person)
    people = nano.generate([question, question], schema=Person, seed=1)
    assert people == [person, person]
    assert [len(one) for one in nano.generate([question], schema=Person, n=2, seed=1)] == [2]
    with pytest.raises(ConstraintError, match="the answer was cut after 2 tokens, and is no Person yet"):
        nano.generate(question, schema=Person, max_tokens=2)
    with pytest.raises(OptionError, match="give one"):
        nano.generate(question, schema=Person, response_format=SCHEMA)
    with pytest.raises(OptionError, match="give a pydantic class"):
        nano.generate(question, schema=SCHEMA)  # type: ignore[call-overload]

    class Picky(Person):
        """Of an age that no answer has."""

        @field_validator("age")
        @classmethod
        def no_age(cls, value: int) -> int:
            raise ValueError("never")

    with pytest.raises(ConstraintError, match="its own checks refuse it"):
        nano.generate(question, schema=Picky, seed=1)
