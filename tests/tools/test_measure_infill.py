"""Spans are cut so that the pieces make the text again; what is counted lies where it must."""

import json
import random

import pytest
from tools.measure_infill import CASES, _spoilt, edits, infills, variants

from diffusiongemma.tasks.base import EVAL_SEED
from diffusiongemma.tasks.json_extract import JsonExtract
from tests.engine.test_constraint import model_of


@pytest.mark.parametrize("name", ["json-value", "json-key"])
def test_pieces_make_the_answer(name: str) -> None:
    for case, example in zip(CASES[name](20, EVAL_SEED), JsonExtract().examples(20, EVAL_SEED), strict=True):
        assert case.prefix + case.span + case.suffix == example.answer and case.prompt == example.prompt
        data = json.loads(example.answer or "")
        assert case.span in data if name == "json-key" else json.loads(case.span) in data.values()


def test_one_value_is_spoilt() -> None:
    for index, example in enumerate(JsonExtract().examples(20, EVAL_SEED)):
        right, wrong = json.loads(example.answer or ""), json.loads(_spoilt(example.answer or "", random.Random(index)))
        assert list(right) == list(wrong) and sum(right[key] != wrong[key] for key in right) == 1


def test_counts_are_shares() -> None:
    model = model_of()
    model.defaults = model.defaults.replaced(num_diffusion_steps=1)
    result = infills(model, CASES["json-key"](2, EVAL_SEED), EVAL_SEED)
    assert result["steps"] == 1 and all(0 <= result[name] <= 1 for name in result if name != "seconds")
    assert result["any row"] >= result["infill"]
    assert {"anew: steps", "right: exact", "one value wrong: steps"} <= set(edits(model, 2, EVAL_SEED))
    assert all(0 <= value <= 8 for value in variants(model, 1, EVAL_SEED).values())
