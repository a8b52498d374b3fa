"""What is refused, and that the message says which keyword and why."""

from typing import Any

import pytest

from diffusiongemma.constraints import Constraint, Vocabulary, compile_grammar
from diffusiongemma.errors import ConstraintError
from tests.constraints.schemas import TEXT, WHOLE, array, deep, record, text

REFUSED: list[tuple[Any, str]] = [
    (array(TEXT, uniqueItems=True), "uniqueItems"),
    (record(a=array(TEXT, uniqueItems=True)), "#/properties/a: 'uniqueItems'"),
    ({"not": TEXT}, "'not'"),
    ({"if": TEXT, "then": {"minLength": 1}}, "'if'"),
    (array({}, contains=TEXT), "'contains'"),
    ({"propertyNames": {"maxLength": 3}}, "propertyNames"),
    ({"unevaluatedProperties": False, "allOf": [record(closed=False, a=TEXT)]}, "unevaluatedProperties"),
    ({"$dynamicRef": "#a"}, "dynamicRef"),
    ({"disallow": "string"}, "disallow"),
    ({"extends": TEXT}, "extends"),
    ({"type": "integer", "divisibleBy": 3}, "divisibleBy"),
    (record(a={"type": "string", "required": True}), "required"),
    ({"type": "number", "multipleOf": 0.01}, "multipleOf"),
    ({"type": "object", "minProperties": 3}, "minProperties"),
    ({"oneOf": [TEXT, text(minLength=3)]}, "oneOf"),
    ({"$ref": "https://example.com/a.json"}, "outside"),
    ({"$ref": "#/$defs/none"}, "leads nowhere"),
    ({"type": "strnig"}, "strnig"),
    (text(pattern="(["), "#/pattern .* does not compile"),
    (text(pattern="(?!a)"), "lookahead"),
    (text(pattern=r"^(a)\1$"), "back reference"),
    ({"type": "object", "patternProperties": {"^a": TEXT, "^ab": WHOLE}}, "disjoint"),
    ({"type": "string", "const": 5}, "no text can satisfy"),
    ({"type": "string", "enum": [1]}, "no text can satisfy"),
    ({"enum": []}, "no text can satisfy"),
    (text(pattern="^a$", minLength=5), "no text can satisfy"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "no text can satisfy"),
    (array(TEXT, minItems=5, maxItems=3), "no text can satisfy"),
    ({"const": 2**63}, "#: 'const' has the number 9223372036854775808, which would not come out as it is"),
    ({"const": 2**53 + 1}, "'const' has the number 9007199254740993"),
    ({"const": -(2**63)}, "'const' has the number -9223372036854775808"),
    ({"const": 123456789.123456789}, "'const' has the number 123456789.12345679"),
    (record(a={"enum": ["x", {"b": [2**64]}]}), "#/properties/a: 'enum' has the number 18446744073709551616"),
    ({"type": "integer", "minimum": 2**63}, "'minimum' is 9223372036854775808; beyond"),
    ({"type": "integer", "maximum": -(2**60)}, "'maximum' is -1152921504606846976; beyond"),
    ({"allOf": [TEXT, WHOLE]}, "no text can satisfy"),
    (record("a", a=False), "no text can satisfy"),
    (False, "no text can satisfy"),
    ({"$ref": "#"}, "cannot be satisfied"),
    ({"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}, "cannot be satisfied"),
    (text(minLength=100_000), "16,384"),
    (deep(300), "recursion|deep"),
    ({"properties": []}, "properties"),
    ({"anyOf": {}}, "anyOf"),
    ({"items": 3}, "items"),
    ({"x-guidance": {"lenient": True}, **array({}, contains=TEXT)}, "contains"),
    ({"enum": ["x" * (1 << 20)]}, "1,048,576"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_schemas_refused(schema: Any, reason: str, nano: Vocabulary) -> None:
    with pytest.raises(ConstraintError, match=reason):
        compile_grammar(Constraint.json_schema(schema), nano)


@pytest.mark.parametrize("schema", ["{", "[]", "3", b"{}", None, {1, 2}, {"minimum": float("nan")}])
def test_not_a_schema(schema: Any) -> None:
    with pytest.raises(ConstraintError):
        Constraint.json_schema(schema)


@pytest.mark.parametrize("choices", [[], "abc", [1], ["a\ud800"]])
def test_not_choices(choices: Any) -> None:
    with pytest.raises(ConstraintError):
        Constraint.choices(choices)


def test_requests() -> None:
    schema = record("*", a=TEXT)
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert Constraint.of(response_format=wrapped) == Constraint.json_schema(schema)
    loose = Constraint.json_schema(schema, strict=False)
    assert Constraint.of(response_format={"type": "json_schema", "json_schema": schema}) == loose
    assert Constraint.of(response_format={"type": "json_schema", "json_schema": {"schema": schema}}) == loose
    assert Constraint.of(response_format={"type": "json_object"}) == Constraint.json_object()
    assert Constraint.of(response_format={"type": "text"}) is None
    assert Constraint.of() is None
    assert Constraint.of(regex="a") == Constraint.regex("a")
    assert Constraint.of(choices=["a"]) == Constraint.choices(["a"])
    assert Constraint.of(grammar='start: "a"') == Constraint.grammar('start: "a"')
    for wrong in ({}, {"type": "xml"}, {"type": "json_schema"}, "json_object"):
        with pytest.raises(ConstraintError, match="response_format"):
            Constraint.of(response_format=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConstraintError, match="regex and choices"):
        Constraint.of(regex="a", choices=["a"])
