"""Calls in the native markup: whatever is written under a tool's grammar is read again, and its arguments are valid."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from diffusiongemma.constraints import Constraint, Grammar, Vocabulary, compile_grammar
from diffusiongemma.constraints.vocabulary import MARK
from diffusiongemma.errors import ConstraintError
from diffusiongemma.text.markup import QUOTE, read_call, spell_call
from tests.constraints.conftest import walk
from tests.constraints.schemas import FLAG, NUMBER, TEXT, WHOLE, array, metaschemas, own, record, text
from tests.constraints.test_errors import REFUSED
from tests.constraints.test_walks import validator

OWN = own()
NOT_HELD = {"objects: odd names", "references: own id"}
"""A name with a quote, a colon or none at all cannot stand bare; a schema's own id is no longer that of the whole."""


def moved(schema: Any, where: str = "/properties/v") -> Any:
    """A schema with its references to itself as they are from where it stands as an argument."""
    if isinstance(schema, list):
        return [moved(one, where) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        word: f"#{where}{part[1:]}" if word == "$ref" and str(part)[:2] in ("#", "#/") else moved(part, where)
        for word, part in schema.items()
    }


def tool(schema: dict[str, Any]) -> dict[str, Any]:
    draft = {"$schema": schema["$schema"]} if isinstance(schema, dict) and "$schema" in schema else {}
    return {"type": "object", "properties": {"v": moved(schema)}, "required": ["v"], **draft}


def grammar_of(parameters: Any, vocabulary: Vocabulary, name: str = "f") -> Grammar:
    return compile_grammar(Constraint.calls([(name, parameters)]), vocabulary)


def called(raw: bytes) -> tuple[str, dict[str, Any]]:
    return read_call([piece.decode() for piece in raw.split(MARK)])


def check(parameters: dict[str, Any], vocabulary: Vocabulary, seed: int) -> None:
    grammar = grammar_of(parameters, vocabulary)
    judge, rng, least = validator(parameters), random.Random(seed), len(grammar.shortest)
    for budget in (0, 4, 24):
        name, arguments = called(walk(grammar, rng, least + budget).text)
        assert name == "f"
        judge.validate(arguments)
        json.dumps(arguments, allow_nan=False)
        assert read_call(spell_call(name, arguments).split(QUOTE)) == (name, arguments)  # and can be shown to the model again


@pytest.mark.parametrize("name", [name for name in OWN if name not in NOT_HELD])
def test_every_argument_is_valid(name: str, native: Vocabulary) -> None:
    check(tool(OWN[name]), native, 1)


def test_metaschemas(native: Vocabulary) -> None:
    held = 0
    for schema in metaschemas().values():
        wrapped = tool({word: what for word, what in schema.items() if word not in ("$id", "id", "$schema")})
        try:
            grammar = grammar_of(wrapped, native)
        except ConstraintError as error:
            assert any(word in str(error) for word in ("uniqueItems", "$dynamicRef", "$recursiveRef", "propertyNames", "outside"))
            continue
        held += 1
        for seed in range(3):
            Draft202012Validator(wrapped).validate(called(walk(grammar, random.Random(seed), len(grammar.shortest) + 9).text)[1])
    assert held >= 5


words = st.sampled_from(["a", "b", "city", "x-y", "_1", "Name", "a b", "é"])
scalars = st.sampled_from(
    [
        TEXT, WHOLE, NUMBER, FLAG, {}, {"type": "null"}, text(minLength=1, maxLength=4), text(pattern="^[a-c]+$"),
        text(format="date"), {"type": "integer", "minimum": -3, "maximum": 12},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
        {"enum": ["x", "", 'say "hi"', 3, None, [1, {"k": "v"}]]}, {"const": {"a": [1, "b"], "B": True}},
        {"type": ["string", "null"]}, {"type": "object"}, {"$ref": "#/$defs/tree"},
        {"type": "object", "additionalProperties": WHOLE, "maxProperties": 2},
    ]
)  # fmt: skip


def objects(one: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    def made(properties: dict[str, Any], needed: set[str], more: Any) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": sorted(needed & properties.keys()), **more}

    more = st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": True}, {"additionalProperties": WHOLE}])
    return st.builds(made, st.dictionaries(words, one, max_size=4), st.sets(words), more)


inner = st.recursive(
    scalars,
    lambda one: st.one_of(
        st.tuples(one, st.integers(0, 2)).map(lambda pair: array(pair[0], minItems=pair[1], maxItems=pair[1] + 1)),
        st.tuples(one, one).map(lambda pair: {"anyOf": list(pair)}),
        st.tuples(one, one).map(lambda pair: {"type": "array", "prefixItems": list(pair), "items": False, "minItems": 2}),
        objects(one),
    ),
    max_leaves=5,
)


TREE = record("name", name=text(maxLength=3), left={"$ref": "#/$defs/tree"}, right={"$ref": "#/$defs/tree"})


@settings(max_examples=60, deadline=None)
@given(objects(inner), st.integers(0, 1 << 30))
def test_any_tool(native: Vocabulary, parameters: dict[str, Any], seed: int) -> None:
    check({**parameters, "$defs": {"tree": TREE}}, native, seed)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_valid_calls_are_allowed(native: Vocabulary, data: st.DataObject) -> None:
    """Not only is what may be written valid: what a caller would write may be, in the order of the schema."""
    parameters = record("city", city=TEXT, days={"type": "integer", "minimum": 1}, tags=array(TEXT), where={"type": "object"})
    arguments = {"city": data.draw(st.text(st.characters(codec="utf-8"), max_size=9).filter(lambda one: QUOTE not in one))}
    for name, value in (("days", st.integers(1, 99)), ("tags", st.lists(st.sampled_from(["", "x", "é"]), max_size=3))):
        if data.draw(st.booleans()):
            arguments[name] = data.draw(value)
    if data.draw(st.booleans()):
        arguments["where"] = data.draw(
            st.dictionaries(st.sampled_from(["a", "b2"]), st.none() | st.booleans() | st.integers(), max_size=2)
        )
    call = spell_call("f", arguments)  # the names above stand in the order in which they are sorted
    tokens = native.spell(call.encode().replace(QUOTE.encode(), MARK))
    assert tokens is not None
    cursor = grammar_of(parameters, native).start()
    assert cursor.validate(tokens) == len(tokens)
    for token in tokens:
        cursor.advance(token)
    assert cursor.accepting and cursor.finished


def accepts(grammar: Grammar, call: str) -> bool:
    tokens = grammar.vocabulary.spell(call.encode().replace(QUOTE.encode(), MARK))
    assert tokens is not None
    cursor = grammar.start()
    if cursor.validate(tokens) < len(tokens):
        return False
    for token in tokens:
        cursor.advance(token)
    return cursor.accepting


@pytest.mark.parametrize(
    ("parameters", "good", "bad"),
    [
        (record("a", a=WHOLE, b=TEXT), ["{a:1}", '{a:1,b:<|"|>x<|"|>}'], ['{b:<|"|>x<|"|>}', "{a:1,}", "{a:1,c:2}", "{}"]),
        (record(a=WHOLE, b=WHOLE), ["{}", "{b:2}", "{a:1,b:2}"], ["{b:2,a:1}", "{,b:2}"]),  # in the schema's order
        (record("a", closed=False, a=WHOLE), ["{a:1}"], ["{a:1,b:2}"]),  # nothing is said of others, so there are none
        ({**record("a", a=WHOLE), "additionalProperties": True}, ["{a:1}", "{a:1,b:2,c:null}"], ["{a:1,a:2}", "{b:2}"]),
        ({"type": "object"}, ["{}", '{x:{y:[1,<|"|>z<|"|>]}}'], ["{1x:1}", "{:1}", "[]"]),
        ({"type": "object", "additionalProperties": False}, ["{}"], ["{a:1}"]),
        ({}, ["{}", "{a:1}"], ["null", "[]"]),
        (record("*", a=text(maxLength=2)), ['{a:<|"|>é}<|"|>}'], ['{a:<|"|>abc<|"|>}', "{a:1}", "{a:x}"]),
        (record("*", a={"enum": ["a", "ab", ""]}), ['{a:<|"|><|"|>}', '{a:<|"|>ab<|"|>}'], ['{a:<|"|>b<|"|>}']),
        (record("*", a=array(WHOLE, minItems=1, maxItems=2)), ["{a:[1]}", "{a:[1,2]}"], ["{a:[]}", "{a:[1,2,3]}", "{a:[1,]}"]),
        (record("*", **{"x-y.z $": FLAG}), ["{x-y.z $:true}"], []),
        ({"type": "object", "minProperties": 1, "properties": {"a": WHOLE, "b": WHOLE}}, ["{a:1}", "{b:1}", "{a:1,b:1}"], ["{}"]),
        (record(a=WHOLE, b=WHOLE) | {"maxProperties": 1}, ["{}", "{a:1}", "{b:1}"], ["{a:1,b:1}"]),
        ({"allOf": [record("*", a=TEXT), {"properties": {"a": text(maxLength=1)}}]}, ['{a:<|"|>x<|"|>}'], ['{a:<|"|>xy<|"|>}']),
    ],
)  # fmt: skip
def test_what_may_be_written(parameters: Any, good: list[str], bad: list[str], native: Vocabulary) -> None:
    grammar = grammar_of(parameters, native)
    for arguments in good:
        assert accepts(grammar, f"call:f{arguments}"), arguments
        validator(parameters).validate(read_call(f"call:f{arguments}".split(QUOTE))[1])
    for arguments in bad:
        assert not accepts(grammar, f"call:f{arguments}"), arguments


def test_the_mark_cannot_be_spelled_in_a_string(native: Vocabulary) -> None:
    """Not in ordinary characters either: the template would write it, and no reader of texts could tell."""
    cursor = grammar_of(record("*", a=TEXT), native).start()
    for token in native.spell(b'call:f{a:\xf8<|"|') or []:
        cursor.advance(token)
    allowed = cursor.allowed().nonzero()[:, 0].tolist()
    assert not any(native.token_bytes[token].startswith(b">") for token in allowed)
    assert any(native.token_bytes[token].startswith(b"a") for token in allowed)


def test_several_tools(native: Vocabulary) -> None:
    tools = [("add", record("*", a=NUMBER)), ("add.more-1", record("*", b=NUMBER)), ("now", {"type": "object", "properties": {}})]
    grammar = compile_grammar(Constraint.calls(tools), native)
    for call in ("add{a:1}", "add.more-1{b:1}", "now{}"):
        assert accepts(grammar, f"call:{call}")
    for call in ("add{b:1}", "now{a:1}", "later{}", "add.more-1{a:1}"):
        assert not accepts(grammar, f"call:{call}")


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused_for_json_is_refused_here(schema: Any, reason: str, native: Vocabulary) -> None:
    if reason == "disjoint":  # here a name that matches two patterns is not written
        check(tool(schema), native, 1)
        return
    parameters = schema if reason.endswith("deep") else tool(schema)
    with pytest.raises(ConstraintError) as error:
        grammar_of(parameters, native)
    if named := [word for word in reason.replace("'", "").split() if word in str(schema) and word[0] != "#"]:
        assert named[0] in str(error.value)


@pytest.mark.parametrize(
    ("parameters", "needle"),
    [
        (record(**{"a:b": TEXT}), "#: the name 'a:b' cannot be written"),
        (record(a=record(**{"": TEXT})), "#/properties/a: the name ''"),
        (record(a={"enum": [f"x{QUOTE}"]}), "#/properties/a: an enum or const holds"),
        (record(a={"const": {"b,c": 1}}), "'b,c'"),
        (record(a={"enum": ["a"], "pattern": "^a"}), "'pattern' or 'format' beside an enum"),
        (record(a={"enum": [{"b": 1}], "required": ["b"]}), "beside other keywords"),
        (record(a={"oneOf": [WHOLE, NUMBER]}), "#/properties/a: 'oneOf'"),
        (record(a={"anyOf": [{"const": n} for n in range(300)]}), "combinations"),
        (record(a={"allOf": [{"anyOf": [WHOLE, TEXT]} for _ in range(40)]}), "combinations"),
        ({"properties": {f"a{n}": TEXT for n in range(300)}, "maxProperties": 100}, "maxProperties"),
        (record(a={"type": "number", "multipleOf": 0}), "above 0"),
        (record(a={"minimum": "x"}), "must be a number"),
        (record(a=array(TEXT, minItems=-1)), "whole number"),
        ({"type": "string"}, "no arguments can satisfy"),
        (False, "false"),
        ({"$ref": "#"}, "no arguments"),
    ],
)
def test_what_the_markup_cannot_hold_is_refused(parameters: Any, needle: str, native: Vocabulary) -> None:
    with pytest.raises(ConstraintError, match=needle) as error:
        grammar_of(parameters, native, "look.up")
    assert "tools: " in str(error.value) and "look.up" in str(error.value)


@pytest.mark.parametrize(
    ("branches", "apart"),
    [
        ([TEXT, NUMBER], True),
        ([record("*", kind={"const": "a"}), record("*", kind={"const": "b"}, x=TEXT)], True),
        ([record("a", a=TEXT), record("b", b=TEXT)], True),  # neither may have what the other needs
        ([record("a", closed=False, a=TEXT), record("b", closed=False, b=TEXT)], False),
        ([{"enum": [1, 2]}, {"enum": [3]}], True),
        ([{"enum": [1, 2]}, {"enum": [2.0]}], False),
        ([{"const": True}, {"const": 1}], True),
        ([{"type": "integer", "maximum": 3}, {"type": "number", "exclusiveMinimum": 3}], True),
        ([{"type": "integer", "maximum": 3}, {"type": "number", "minimum": 3}], False),
        ([text(maxLength=3), text(minLength=4)], False),  # lengths are not compared
        ([{"type": "null"}, array(TEXT), FLAG], True),
    ],
)
def test_one_of_branches_that_exclude_each_other(branches: list[Any], apart: bool, native: Vocabulary) -> None:
    parameters = record("*", a={"oneOf": branches})
    if apart:
        check(parameters, native, 3)
    else:
        with pytest.raises(ConstraintError, match="oneOf"):
            grammar_of(parameters, native)


def test_tools_without_a_vocabulary_for_them(unmarked: Vocabulary) -> None:
    with pytest.raises(ConstraintError, match="tools"):
        grammar_of(record("*", a=TEXT), unmarked)
    with pytest.raises(ConstraintError, match="at least"):
        Constraint.calls([])
    with pytest.raises(ConstraintError, match="not JSON"):
        Constraint.calls([("f", {"a": {1, 2}})])
