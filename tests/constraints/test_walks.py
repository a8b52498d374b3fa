"""Random texts under a schema's mask, judged by ``jsonschema``; also near the end of their budget."""

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from diffusiongemma.constraints import Constraint, Vocabulary, compile_grammar
from diffusiongemma.errors import ConstraintError
from tests.constraints.conftest import walk
from tests.constraints.schemas import metaschemas, own

SCHEMAS = own()
META = metaschemas()
REFUSED_META = 15
"""Metaschemas with unique items or dynamic references."""


def validator(schema: dict[str, Any]) -> Any:
    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def check(schema: dict[str, Any], vocabulary: Vocabulary, seed: int, spacing: str = "spaced") -> None:
    grammar = compile_grammar(Constraint.json_schema(schema, spacing), vocabulary)  # type: ignore[arg-type]
    judge, rng, least = validator(schema), random.Random(seed), len(grammar.shortest)
    judge.validate(json.loads(vocabulary.text(grammar.shortest)))
    for budget in (least, least + 4, least + 24):
        judge.validate(json.loads(walk(grammar, rng, budget).text))


def test_the_collection_is_large() -> None:
    assert len(SCHEMAS) >= 100


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_text_is_valid(name: str, nano: Vocabulary) -> None:
    check(SCHEMAS[name], nano, 1)


@pytest.mark.parametrize("name", list(SCHEMAS)[::3])
def test_with_byte_fallback(name: str, fallback: Vocabulary) -> None:
    check(SCHEMAS[name], fallback, 2, ("compact", "either")[len(name) % 2])


def test_metaschemas(nano: Vocabulary) -> None:
    refused = 0
    for schema in META.values():
        try:
            check(schema, nano, 3)
        except ConstraintError:
            refused += 1
    assert refused == REFUSED_META < len(META)


def test_any_object(nano: Vocabulary) -> None:
    grammar = compile_grammar(Constraint.json_object(), nano)
    rng = random.Random(4)
    for budget in range(len(nano.spell(b"{}") or ()), 40):
        assert isinstance(json.loads(walk(grammar, rng, budget).text), dict)


@pytest.mark.parametrize(
    ("spacing", "text"), [("spaced", b'{"a": [1, 2]}'), ("compact", b'{"a":[1,2]}'), ("either", b'{"a": [1,2]}')]
)
def test_spacing(spacing: str, text: bytes, nano: Vocabulary) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    cursor = compile_grammar(Constraint.json_schema(schema, spacing), nano).start()  # type: ignore[arg-type]
    tokens = nano.spell(text)
    assert tokens is not None
    assert cursor.validate(tokens) == len(tokens)
    wrong = nano.spell(text.replace(b":", b" :"))
    assert wrong is not None
    assert cursor.validate(wrong) < len(wrong)
