"""A collection of JSON schemas of many kinds, written for these tests; ``metaschemas`` adds those of the jsonschema package."""

import json
from collections.abc import Iterator
from typing import Any

from jsonschema_specifications import REGISTRY

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}


def record(required: str = "", closed: bool = True, **properties: Any) -> Schema:
    """An object; ``required`` names its required properties, "*" all of them."""
    names = list(properties) if required == "*" else required.split()
    schema: Schema = {"type": "object", "properties": properties, "required": names}
    return schema | {"additionalProperties": False} if closed else schema


def array(items: Any, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def text(**more: Any) -> Schema:
    return {"type": "string", **more}


def scalars() -> Iterator[tuple[str, Schema]]:
    for name in ("string", "integer", "number", "boolean", "null", "object", "array"):
        yield name, {"type": name}
    yield "two types", {"type": ["string", "null"]}
    yield "all types", {"type": ["string", "integer", "boolean", "null", "object", "array"]}
    yield "anything", {}
    yield "enum of strings", {"enum": ["red", "green", "blue", "re", 'quo"te', "back\\slash", "line\nbreak", "ümlaut", "😀"]}
    yield "enum of kinds", {"enum": [1, 2.5, "1", True, None, [1, 2], {"a": 1}, -0.5, 1e20]}
    yield "enum of prefixes", {"enum": ["a", "ab", "abc", "abcd", ""]}
    yield "long enum", {"enum": [f"option-{n:03}-{'x' * (n % 7)}" for n in range(300)]}
    yield "const string", {"const": "fixed value"}
    yield "const object", {"const": {"a": [1, {"b": None}], "c": "d"}}
    yield "const null", {"const": None}
    yield "enum with type", {"type": "integer", "enum": [1, 2, "3", None]}


def numbers() -> Iterator[tuple[str, Schema]]:
    yield "small range", {"type": "integer", "minimum": 3, "maximum": 5}
    yield "negative range", {"type": "integer", "minimum": -120, "maximum": -7}
    yield "around zero", {"type": "integer", "minimum": -1, "maximum": 1}
    yield "wide range", {"type": "integer", "minimum": 1000, "maximum": 987654}
    yield "strict bounds", {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 100}
    yield "only a minimum", {"type": "integer", "minimum": 12345}
    yield "only a maximum", {"type": "number", "maximum": -0.25}
    yield "fractional range", {"type": "number", "minimum": 0.5, "maximum": 1.75}
    yield "strict fractions", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    yield "narrow range", {"type": "number", "minimum": 0.123, "maximum": 0.124}
    yield "fraction for whole", {"type": "integer", "minimum": 2.5, "maximum": 4.5}
    yield "multiples", {"type": "integer", "multipleOf": 7}
    yield "multiples in a range", {"type": "integer", "multipleOf": 25, "minimum": 100, "maximum": 1000}
    yield "halves", {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 10}
    yield "draft 4 strict", {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 8,
                             "exclusiveMinimum": True, "maximum": 12, "exclusiveMaximum": True}  # fmt: skip
    yield (
        "draft 4 open",
        {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 8, "exclusiveMinimum": False},
    )
    yield "year", {"type": "integer", "minimum": 1900, "maximum": 2099}


def strings() -> Iterator[tuple[str, Schema]]:
    yield "lengths", text(minLength=3, maxLength=5)
    yield "empty only", text(maxLength=0)
    yield "one character", text(minLength=1, maxLength=1)
    yield "long", text(minLength=120)
    patterns = (
        r"^[A-Z]{2}\d{4}$", r"^\d{3}-\d{2}-\d{4}$", "foo", r"^(foo|ba[rz]+)$", r"\d$", "^a", r"^[^\s@]+@[^\s@]+\.[a-z]{2,}$",
        r"^v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$", r"^#[0-9a-fA-F]{6}$", r'^[^"\\]*$', r"^(GET|POST) /\S*$", "(^a|b$)",
        "^$|^x+$", r"^[\w.-]+$", "[äöü]{2}", "^(?:[a-z]+:)?//", r"^\W+$", r"^[^\d]\S?$", "(?i)^abc", r"^\"q\"\\$", "^.{4}[0-9]$",
    )  # fmt: skip
    for pattern in patterns:
        yield f"pattern {pattern}", text(pattern=pattern)
    yield "pattern and length", text(pattern="foo", minLength=10, maxLength=14)
    yield "two patterns", {"allOf": [text(pattern="^a"), text(pattern="z$")], "minLength": 4}
    for name in FORMATS:
        yield f"format {name}", text(format=name)
    yield "unknown format", text(format="color-of-the-sky")
    yield "format and pattern", text(format="date", pattern="^20")
    yield "format of any type", {"format": "date"}


FORMATS = ("date", "time", "date-time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uuid", "uri",
           "iri", "uri-reference", "iri-reference", "uri-template", "json-pointer", "relative-json-pointer", "regex")  # fmt: skip


def arrays() -> Iterator[tuple[str, Schema]]:
    yield "of strings", array(TEXT)
    yield "bounded", array(WHOLE, minItems=2, maxItems=3)
    yield "many needed", array(FLAG, minItems=12)
    yield "empty only array", array(TEXT, maxItems=0)
    yield "nested", array(array(array(NUMBER, minItems=1), minItems=1), minItems=1)
    yield "tuple", {"type": "array", "prefixItems": [TEXT, WHOLE, FLAG], "items": False, "minItems": 3}
    yield "open tuple", {"type": "array", "prefixItems": [TEXT, WHOLE], "minItems": 1}
    yield "old tuple", {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [WHOLE, TEXT],
                        "additionalItems": FLAG, "minItems": 4}  # fmt: skip
    yield "one unique", array(TEXT, maxItems=1, uniqueItems=True)
    yield "of records", array(record("*", x=NUMBER, y=NUMBER), minItems=2)


def objects() -> Iterator[tuple[str, Schema]]:
    yield "person", record("name age", name=TEXT, age={"type": "integer", "minimum": 0, "maximum": 150}, email=text(format="email"))
    yield "all required", record("*", **{f"field_{n}": (TEXT, WHOLE, FLAG, NUMBER)[n % 4] for n in range(20)})
    yield "all optional", record(**{f"field_{n}": TEXT for n in range(20)})
    yield "last required", record("field_49", **{f"field_{n}": WHOLE for n in range(50)})
    yield "every tenth", record("f9 f19 f29 f39", **{f"f{n}": text(minLength=2) for n in range(40)})
    yield "open", record("a", closed=False, a=TEXT, b=WHOLE)
    yield "map", {"type": "object", "additionalProperties": NUMBER}
    yield "map needed", {"type": "object", "additionalProperties": WHOLE, "minProperties": 1}
    yield "map bounded", {"type": "object", "additionalProperties": FLAG, "maxProperties": 2}
    yield "patterned", {"type": "object", "patternProperties": {"^x-": TEXT, "^[0-9]+$": WHOLE}, "additionalProperties": False}
    yield "patterned and named", {"type": "object", "properties": {"x-a": {"minLength": 2}}, "required": ["x-a", "x-b"],
                                  "patternProperties": {"^x-": TEXT}, "additionalProperties": FLAG}  # fmt: skip
    yield "names held", {"type": "object", "propertyNames": {"pattern": "^[a-z]{2,4}$"}, "additionalProperties": WHOLE}
    yield "names listed", {"type": "object", "propertyNames": {"enum": ["north", "south"]}, "additionalProperties": WHOLE}
    yield "undeclared required", {"type": "object", "required": ["id", "kind"]}
    yield "false property", record("a", a=WHOLE, b=False)
    yield (
        "odd names",
        record("*", **{'quo"te': WHOLE, "back\\slash": WHOLE, "sp ace": WHOLE, "ümlaut😀": WHOLE, "": WHOLE, "a/b~c": WHOLE}),
    )
    yield "names alike", record("aab", a=TEXT, aa=TEXT, aab=TEXT, aabb=TEXT)
    yield "deep", deep(12)
    yield "unevaluated", {"type": "object", "properties": {"a": TEXT}, "unevaluatedProperties": False}
    yield "dependent", {**record(closed=False, card=TEXT, address=TEXT), "dependentRequired": {"card": ["address"]}}
    yield "json-extract", record("*", name=TEXT, age=WHOLE, city=TEXT, job=TEXT, married=FLAG)


def deep(levels: int) -> Schema:
    return record("inner", inner=deep(levels - 1), note=TEXT) if levels else record("value", value=WHOLE)


def unions() -> Iterator[tuple[str, Schema]]:
    circle = record("*", kind={"const": "circle"}, radius=NUMBER)
    square = record("*", kind={"const": "square"}, side=NUMBER)
    yield "shapes", {"oneOf": [circle, square]}
    yield "list of shapes", array({"anyOf": [circle, square]}, minItems=2)
    yield "text or list", {"anyOf": [TEXT, array(TEXT, minItems=1)]}
    yield "text or number", {"oneOf": [TEXT, NUMBER]}
    yield "nullable record", {"anyOf": [record("*", a=WHOLE), {"type": "null"}]}
    yield "parts", {"allOf": [record("a", closed=False, a=TEXT), record("b", closed=False, b=WHOLE)]}
    yield "part and whole", {"type": "object", "properties": {"a": TEXT}, "allOf": [{"required": ["a"]}]}
    yield "long or longer", {"anyOf": [text(minLength=40), array(text(minLength=10), minItems=2)]}
    yield "optional union", record("v", v={"anyOf": [WHOLE, record("*", unit=TEXT, amount=NUMBER)]}, w={"anyOf": [TEXT, FLAG]})


def references() -> Iterator[tuple[str, Schema]]:
    ref = {"$ref": "#/$defs/node"}
    yield "list by reference", {"$ref": "#/$defs/node", "$defs": {"node": record("value", value=WHOLE, next=ref)}}
    yield "tree", {"$ref": "#/$defs/node", "$defs": {"node": record("*", name=TEXT, children=array(ref))}}
    lit = record("*", kind={"const": "lit"}, value=NUMBER)
    binary = record("*", kind={"const": "bin"}, left={"$ref": "#/$defs/e"}, right={"$ref": "#/$defs/e"})
    yield "expression", {"$ref": "#/$defs/e", "$defs": {"e": {"anyOf": [binary, lit]}}}
    yield "whole", {"type": "object", "properties": {"v": WHOLE, "self": {"$ref": "#"}}, "required": ["v"]}
    yield "anchor", {"$ref": "#point", "$defs": {"p": {"$anchor": "point", **record("*", x=NUMBER, y=NUMBER)}}}
    yield "own id", {"$id": "https://example.com/s.json", "$ref": "https://example.com/s.json#/$defs/a", "$defs": {"a": WHOLE}}
    yield "escaped pointer", {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": text(maxLength=3)}}
    yield "old siblings", {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": TEXT},
                           "type": "array", "items": {"$ref": "#/definitions/a", "minLength": 900}}  # fmt: skip
    yield "chain", {"$ref": "#/$defs/n0", "$defs": {f"n{n}": {"$ref": f"#/$defs/n{n + 1}"} for n in range(30)} | {"n30": FLAG}}
    yield (
        "pointer into tuple",
        {"type": "array", "prefixItems": [WHOLE, {"$ref": "#/prefixItems/0"}], "minItems": 2, "items": False},
    )


def applications() -> Iterator[tuple[str, Schema]]:
    """As they are sent to language models."""
    yield "tool call", record("*", tool={"enum": ["search", "open", "answer"]}, arguments={"type": "object"})
    yield "entities", record("*", entities=array(record("*", text=TEXT, label={"enum": ["PER", "LOC", "ORG"]}, start=WHOLE)))
    yield "reasoning", record("*", steps=array(record("*", explanation=TEXT, output=TEXT), minItems=1), final_answer=TEXT)
    yield "invoice", record(
        "number date lines total", number=text(pattern=r"^INV-\d{6}$"), date=text(format="date"), currency={"enum": ["EUR", "USD"]},
        lines=array(record("*", item=TEXT, quantity={"type": "integer", "minimum": 1}, price=NUMBER), minItems=1), total=NUMBER,
    )  # fmt: skip
    yield (
        "event",
        record("*", title=text(minLength=1), begins=text(format="date-time"), guests=array(text(format="email"), maxItems=5)),
    )
    yield "rating", record("*", score={"type": "integer", "minimum": 1, "maximum": 5}, reason=text(maxLength=200))
    yield "recipe", record("name steps", name=TEXT, minutes=WHOLE, steps=array(TEXT, minItems=3), tags=array({"enum": ["a", "b"]}))
    point = record(
        "*", lat={"type": "number", "minimum": -90, "maximum": 90}, lon={"type": "number", "minimum": -180, "maximum": 180}
    )
    yield "route", record("*", id=text(format="uuid"), stops=array(point, minItems=2))
    yield "server", record("*", host=text(format="hostname"), port={"type": "integer", "minimum": 1, "maximum": 65535}, tls=FLAG)
    yield "titled", {"title": "T", "description": "d", "default": {}, "examples": [1], "$comment": "c", **record("*", a=TEXT)}


def large() -> Iterator[tuple[str, Schema]]:
    yield "enum of large numbers", {"enum": [2**53, -(2**53), 10**30, 1.5e20, 123456789.123456, 5e-10]}
    yield "int64", record("*", id={"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1})


def own() -> dict[str, Schema]:
    """Every schema written here, by name."""
    kinds = (
        scalars,
        numbers,
        strings,
        arrays,
        objects,
        unions,
        references,
        applications,
        large,
    )  # a new kind at the end: tests draw by number
    return {f"{kind.__name__}: {name}": schema for kind in kinds for name, schema in kind()}


def metaschemas() -> dict[str, Schema]:
    """The metaschemas that come with the jsonschema package."""
    return {uri: json.loads(json.dumps(REGISTRY[uri].contents)) for uri in REGISTRY}
