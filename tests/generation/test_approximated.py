"""Schemas that say more than a grammar can: the nearest grammar holds the answer, and what is finished is validated."""

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from diffusiongemma.constraints.validity import Validator
from diffusiongemma.engine.events import Commit, Done
from diffusiongemma.engine.request import ATTEMPTS
from diffusiongemma.errors import ConstraintError
from diffusiongemma.generation import DiffusionGemmaModel

DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
PAIR = {"type": "array", "items": DIGIT, "minItems": 2, "maxItems": 2}
SCHEMAS: dict[str, tuple[dict[str, Any], str]] = {
    "unique": (PAIR | {"uniqueItems": True}, "uniqueItems at #"),
    "not": (PAIR | {"not": {"prefixItems": [{"enum": [1, 2, 3, 4, 5]}]}}, "not at #"),
    "if": ({**DIGIT, "if": {"minimum": 5}, "then": {"multipleOf": 2}}, "if at #"),
    "exclusive": ({"oneOf": [DIGIT, {"type": "integer", "minimum": 5, "maximum": 12}]}, "oneOf at #"),
    "contains": (PAIR | {"contains": {"enum": [7]}}, "contains at #"),
    "remote": ({"type": "object", "properties": {"a": {"$ref": "https://example.org/s.json#/b"}}, "required": ["a"],
                "additionalProperties": False, "maxProperties": 1}, "$ref at #/properties/a"),
    "pattern": ({"type": "string", "pattern": "^(?!b)[a-c]$", "maxLength": 1}, "pattern at #"),
    "names": ({"type": "object", "patternProperties": {"^(?=x)x$": DIGIT}, "additionalProperties": False, "maxProperties": 1},
              "patternProperties at #"),
    "count": ({"type": "object", "properties": {"a": DIGIT}, "minProperties": 4, "maxProperties": 5}, "minProperties at #"),
}  # fmt: skip


@pytest.fixture(scope="module")
def nano() -> DiffusionGemmaModel:
    return DiffusionGemmaModel.from_pretrained("nano")


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_stops_is_valid(nano: DiffusionGemmaModel, name: str) -> None:
    schema, what = SCHEMAS[name]
    known = json.loads(json.dumps(schema).replace('{"$ref": "https://example.org/s.json#/b"}', "{}"))
    stopped = 0
    for result in nano.generate(["Write JSON.", "7"], n=3, response_format=schema, seed=1, temperature=1.5, max_tokens=40):
        for one in result:
            assert one.approximated[0] == what and 1 <= one.attempts <= ATTEMPTS
            if one.finish_reason == "stop":
                stopped += 1
                jsonschema.validate(json.loads(one.text), known)
            elif one.finish_reason == "invalid":
                assert one.attempts == ATTEMPTS and not jsonschema.validators.validator_for(known)(known).is_valid(
                    json.loads(one.text)
                )
    assert stopped or name in ("count", "pattern")


def test_strict_refuses(nano: DiffusionGemmaModel) -> None:
    for schema, what in SCHEMAS.values():
        strict = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
        with pytest.raises(ConstraintError, match=what.split()[0].replace("$", "\\$").removesuffix("Properties")):
            nano.requests("a", response_format=strict)
    loose = {"type": "json_schema", "json_schema": {"schema": SCHEMAS["unique"][0], "strict": False}}
    assert nano.generate("a", response_format=loose, seed=1, max_tokens=20).approximated == ("uniqueItems at #",)


def test_a_schema_that_a_grammar_holds_is_none_of_these(nano: DiffusionGemmaModel) -> None:
    result = nano.generate("a", response_format=PAIR, seed=1, max_tokens=20)
    assert result.approximated == () and result.attempts == 1


IMPOSSIBLE = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 3, "maxItems": 3, "uniqueItems": True}


def test_what_cannot_be_valid_says_so_after_some_attempts(nano: DiffusionGemmaModel) -> None:
    one = nano.generate("Write JSON.", response_format=PAIR | {"items": {"enum": [1, 2]}}, seed=1, max_tokens=20)
    result = nano.generate("Write JSON.", response_format=IMPOSSIBLE, seed=1, max_tokens=20)
    assert (result.finish_reason, result.attempts) == ("invalid", ATTEMPTS)
    assert result.usage.denoising_steps > one.usage.denoising_steps and result.usage.denoising_steps > result.canvases[0].steps
    assert result.usage.completion_tokens == len(result.token_ids)
    assert result.usage.commit_passes >= ATTEMPTS


def test_a_stream_gives_the_text_that_is_kept(nano: DiffusionGemmaModel) -> None:
    schema = PAIR | {"uniqueItems": True}
    attempts = set()
    for seed in range(6):
        events = list(nano.stream(["Write JSON.", "hello"], response_format=schema, seed=seed, temperature=2.0, max_tokens=20))
        for row in range(2):
            [done] = [event for event in events if isinstance(event, Done) and event.row == row]
            said = "".join(event.text for event in events if isinstance(event, Commit) and event.row == row)
            assert said == done.result.text
            attempts.add(done.result.attempts)
            again = nano.generate(["Write JSON.", "hello"][row], response_format=schema, seed=seed, temperature=2.0, max_tokens=20)
            assert again.text == done.result.text
    assert len(attempts) > 1


class Tags(BaseModel):
    """A set is uniqueItems in JSON Schema."""

    tags: set[str]


def test_a_class_with_a_set(nano: DiffusionGemmaModel) -> None:
    made = nano.generate("Write JSON.", schema=Tags, seed=1, max_tokens=60)
    assert isinstance(made, Tags) and isinstance(made.tags, set)


def test_the_validator_neither_reads_nor_waits() -> None:
    assert Validator('{"$ref": "https://example.org/a.json"}').takes("5")
    assert not Validator('{"type": "string", "pattern": "^(a+)+$(?<=b)"}').takes(json.dumps("a" * 5000 + "!"))
    assert not Validator("{}").takes("{") and Validator("{}").takes("{}")
    with pytest.raises(ConstraintError, match="validator"):
        Validator('{"type": "nonsense"}')


def test_a_grammar_in_a_process_of_its_own(nano: DiffusionGemmaModel, tmp_path: Path) -> None:
    large = {"type": "object", "properties": {f"field_{n}": {"type": "string", "maxLength": 200} for n in range(300)}}
    schema = large | {"not": {"required": ["field_0"]}}
    request = nano.requests("a", response_format=schema, max_tokens=30)[0]
    assert request.grammar is not None and request.grammar.confined  # type: ignore[union-attr]
    result = nano.generate("a", response_format=schema, seed=1, max_tokens=30)
    assert result.approximated == ("not at #",)


def test_a_schema_that_takes_for_ever_to_validate_is_refused(nano: DiffusionGemmaModel) -> None:
    """It doubles at each reference: native code would hold the lock of this process for hours."""
    defs: dict[str, Any] = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    defs["a40"] = {"type": "integer"}
    schema = {"type": "integer", "not": {"not": {"$ref": "#/$defs/a0"}}, "$defs": defs}
    began = time.monotonic()
    with pytest.raises(ConstraintError, match="takes more than 2 s"):
        nano.requests("a", response_format=schema)
    assert time.monotonic() - began < 30
