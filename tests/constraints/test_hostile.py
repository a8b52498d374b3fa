"""Constraints that nobody should send: wrong types, backtracking patterns, sizes without bound. All end, and in our errors."""

import contextlib
import json
import random
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma.constraints import Constraint, Vocabulary, compile_grammar
from diffusiongemma.constraints.automaton import Automaton
from diffusiongemma.constraints.regex import parse
from diffusiongemma.errors import ConstraintError
from tests.constraints.conftest import walk
from tests.constraints.schemas import TEXT, own

WRONG: list[tuple[Any, str]] = [
    ({"required": [{}]}, "#/required"),
    ({"required": "a"}, "#/required"),
    ({"dependentRequired": 5}, "#/dependentRequired"),
    ({"dependentRequired": {"a": "b"}}, "#/dependentRequired"),
    ({"dependencies": [1]}, "#/dependencies"),
    ({"dependentSchemas": {"a": 1}}, "#/dependentSchemas"),
    ({"patternProperties": [1]}, "#/patternProperties"),
    ({"patternProperties": {"a": 1}}, "#/patternProperties"),
    ({"properties": None}, "#/properties"),
    ({"properties": {"a": {"properties": {"b": 7}}}}, "#/properties/a/properties"),
    ({"propertyNames": {"enum": 5}}, "#/propertyNames/enum"),
    ({"propertyNames": {"pattern": 5}}, "#/propertyNames/pattern"),
    ({"propertyNames": 5}, "#/propertyNames"),
    ({"format": "email", "maxLength": "a"}, "#/maxLength"),
    ({"format": ["email"]}, "#/format"),
    ({"type": 5}, "#/type"),
    ({"type": "strnig"}, "#/type is 'strnig'"),
    ({"type": [["string"]]}, "#/type"),
    ({"enum": "abc"}, "#/enum"),
    ({"minLength": -1}, "#/minLength"),
    ({"minLength": 1.5}, "#/minLength"),
    ({"maxItems": True}, "#/maxItems"),
    ({"minimum": "1"}, "#/minimum"),
    ({"multipleOf": 0}, "#/multipleOf"),
    ({"multipleOf": [2]}, "#/multipleOf"),
    ({"uniqueItems": "yes"}, "#/uniqueItems"),
    ({"pattern": {}}, "#/pattern"),
    ({"$ref": 5}, r"#/\$ref"),
    ({"$ref": "#/enum/" + "9" * 5000, "enum": [1]}, "leads nowhere"),
    ({"allOf": [5]}, "#/allOf"),
    ({"anyOf": {}}, "#/anyOf"),
    ({"items": "string"}, "#/items"),
    ({"additionalProperties": "no"}, "#/additionalProperties"),
    ({"anyOf": [TEXT, {"items": {"required": 1}}]}, "#/anyOf/1/items/required"),
]


@pytest.mark.parametrize(("schema", "place"), WRONG, ids=lambda value: str(value)[:40])
def test_a_keyword_of_the_wrong_type_is_named_with_its_place(schema: Any, place: str, nano: Vocabulary) -> None:
    with pytest.raises(ConstraintError, match=place):
        compile_grammar(Constraint.json_schema(schema), nano)


def test_whole_numbers_may_be_written_with_a_point(nano: Vocabulary) -> None:
    schema = {"type": "array", "items": TEXT, "minItems": 2.0, "maxItems": 2.0}
    assert len(json.loads(walk(compile_grammar(Constraint.json_schema(schema), nano), random.Random(1), 30).text)) == 2


SCHEMAS = list(own().values())
NAMES = sorted(
    {word for schema in SCHEMAS for word in json.dumps(schema).split('"') if word.isalpha()} | {"$ref", "$defs", "if", "not"}
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([1.5, 2.0, -0.0, 1e300]),
    st.sampled_from(["", "a", "string", "#", "#/properties/a", "(", "^a+$", "email"]),
    st.sampled_from([[], {}, [1], ["a"], [{}], {"a": 1}, {"a": {}}, {"": None}, [[]], {"$ref": "#"}]),
)  # fmt: skip


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(result for key, value in inner for result in places(value, (*path, key)))]


def changed(node: Any, path: tuple[Any, ...], value: Any, word: str | None) -> Any:
    """A copy with something else at a place, or with a keyword more."""
    if not path:
        return {**node, word: value} if word is not None and isinstance(node, dict) else value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = changed(node[path[0]], path[1:], value, word)
    return copy


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_schema_compiles_or_is_refused(nano: Vocabulary, data: st.DataObject) -> None:
    schema = data.draw(st.sampled_from(SCHEMAS))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(schema)))
        schema = changed(schema, path, data.draw(VALUES), data.draw(st.sampled_from([None, *NAMES])))
    try:
        grammar = compile_grammar(Constraint.json_schema(schema), nano)
    except ConstraintError:
        return
    json.loads(nano.text(grammar.shortest))


def test_no_pattern_of_a_user_is_run_by_a_backtracking_engine(nano: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of 40 letters, and patterns that would take re longer than anyone lives."""
    ran: list[str] = []
    for name in ("compile", "search", "match", "fullmatch"):
        monkeypatch.setattr(re, name, lambda pattern, *rest, **more: ran.append(str(pattern)))
    evil, names = ("^(a+)+$", "^(a|a)*$", "^(a*)*b$", "([a-z]+)*$"), ("a" * 40 + "!", "a" * 40)
    schemas: list[Any] = [
        {"type": "object", "patternProperties": {pattern: TEXT}, "properties": dict.fromkeys(names, TEXT), "required": list(names)}
        for pattern in evil
    ]
    schemas += [{"type": "string", "pattern": pattern, "maxLength": 50} for pattern in evil[:3]]
    for schema in schemas:
        assert compile_grammar(Constraint.json_schema(schema), nano).shortest
    for pattern in evil:
        compile_grammar(Constraint.regex(pattern), nano).start().ending(50)
    assert not ran


def test_a_pattern_speaks_of_the_properties_that_re_says(nano: Vocabulary) -> None:
    patterns = ["^a", "b$", "^[a-c]{2}$", "(?i)^X", r"\d", r"^\W", "", "é|ü", r"^(a|b)*$", r"(?i)^[k-l]$", "[^a-z]", "^a$|^bc$"]
    names = ["a", "b", "ab", "cab", "x1", "X", "!", "", "é", "Ü", "٣", "\u212a", "K", "bc", "a\n"]
    for pattern in patterns:
        automaton = Automaton(parse(pattern, search=True))
        for name in names:
            assert automaton.accepts(name) == bool(re.search(pattern.replace("$", r"\Z"), name)), (pattern, name)
    schema = {
        "type": "object",
        "properties": {"ab": {}},
        "required": ["ab"],
        "patternProperties": {"^a": {"const": 1}, "^(?:a)": {}},
    }
    assert nano.text(compile_grammar(Constraint.json_schema(schema), nano).shortest) == b'{"ab": 1}'


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.characters(codec="utf-8"), st.integers(0, 300)), min_size=1, max_size=4), st.data())
def test_a_class_has_the_characters_that_re_says(members: list[tuple[str, int]], data: st.DataObject) -> None:
    spelled = ""
    for first, more in members:
        last = chr(min(ord(first) + more, 0xD7FF if ord(first) < 0xD800 else 0x10FFFF))
        spelled += re.escape(first) + (f"-{re.escape(last)}" if more else "")
    spelled += data.draw(st.sampled_from(["", r"\d", r"\w", r"\S", r"\D\s"]))
    flags = data.draw(st.sampled_from(["", "(?i)", "(?a)", "(?ia)"]))
    pattern = f"{flags}[{data.draw(st.sampled_from(['', '^']))}{spelled}]"
    node, judge = parse(pattern), re.compile(pattern)
    near = [chr(max(0, min(ord(first) + by, 0x10FFFF))) for first, more in members for by in (0, more, more + 1, -1)]
    for char in {*near, *"aZ09_ é\u212aſßı", *(c.swapcase() for c in near if len(c.swapcase()) == 1)}:
        if not 0xD800 <= ord(char) < 0xE000:
            assert node.chars.has(char) == bool(judge.fullmatch(char)), (pattern, char)  # type: ignore[union-attr]


def chained(count: int) -> dict[str, Any]:
    return {"$ref": "#/$defs/0", "$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(count)}}


def anchored(count: int) -> dict[str, Any]:
    definitions = {f"d{n}": {"$anchor": f"a{n}"} for n in range(count)}
    return {"allOf": [{"$ref": f"#a{n}"} for n in range(count)], "$defs": definitions}


def shared(count: int) -> dict[str, Any]:
    """References to parts of a large part."""
    large = {"enum": [[0] * 100_000]}
    paths = {f"p{n}": {"$ref": "#/$defs" + "/properties/x" * (n + 1)} for n in range(count)}
    deep: dict[str, Any] = {"properties": {"x": large}}
    for _ in range(count):
        deep = {"properties": {"x": deep}}
    return {"properties": paths, "$defs": deep}


def named(count: int) -> dict[str, Any]:
    patterns = {f"(x+x+)+y{n}": {} for n in range(count)}
    return {"properties": {"x" * 50 + str(n): {} for n in range(count)}, "patternProperties": patterns}


BIG: dict[str, Any] = {
    "references that lead to references": chained(3000),
    "a loop of references": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "anchors": anchored(2000),
    "a large part referred to in many ways": shared(150),
    "many names and many patterns": named(400),
    "many patterns with repeats": {"anyOf": [{"pattern": f"^[ab]{{9000}}{n}$"} for n in range(200)]},
    "a deep schema": json.loads('{"items":' * 400 + "{}" + "}" * 400),
}


@pytest.mark.parametrize("name", BIG)
def test_a_large_schema_is_compiled_or_refused_soon(name: str, nano: Vocabulary) -> None:
    began = time.process_time()
    with contextlib.suppress(ConstraintError):
        compile_grammar(Constraint.json_schema(BIG[name]), nano)
    assert time.process_time() - began < 10


def test_a_pattern_of_megabytes_is_refused(nano: Vocabulary) -> None:
    with pytest.raises(ConstraintError, match="65,536 are allowed"):
        compile_grammar(Constraint.regex("(?:a|" * 20_000), nano)
