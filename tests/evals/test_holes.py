"""Holes are cut so that the pieces make the text again; what is counted lies where it must."""

import json
import random

import pytest

from diffusiongemma.evals.holes import CASES, _spoilt, edits, infills, variants
from diffusiongemma.tasks.base import EVAL_SEED
from diffusiongemma.tasks.json_extract import JsonExtract
from tests.engine.test_held import model_of


@pytest.mark.parametrize("name", ["json-value", "json-key"])
def test_pieces_make_the_answer(name: str) -> None:
    for case, example in zip(CASES[name](20, EVAL_SEED), JsonExtract().examples(20, EVAL_SEED), strict=True):
        assert case.prefix + case.hole + case.suffix == example.answer and case.prompt == example.prompt
        data = json.loads(example.answer or "")
        assert case.hole in data if name == "json-key" else json.loads(case.hole) in data.values()


def test_one_value_is_spoilt() -> None:
    for index, example in enumerate(JsonExtract().examples(20, EVAL_SEED)):
        right, wrong = json.loads(example.answer or ""), json.loads(_spoilt(example.answer or "", random.Random(index)))
        assert list(right) == list(wrong) and sum(right[key] != wrong[key] for key in right) == 1


def test_counts_are_shares() -> None:
    model = model_of()
    model.defaults = model.defaults.replaced(num_diffusion_steps=1)
    found = infills(model, CASES["json-key"](2, EVAL_SEED), EVAL_SEED)
    assert found["steps"] == 1 and all(0 <= found[name] <= 1 for name in found if name != "seconds")
    assert found["any row"] >= found["infill"]
    assert {"anew: steps", "right: exact", "one value wrong: steps"} <= set(edits(model, 2, EVAL_SEED))
    assert all(0 <= value <= 8 for value in variants(model, 1, EVAL_SEED).values())
