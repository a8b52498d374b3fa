"""Are the keywords of a schema of the types that JSON Schema gives them? Asked of one schema at a time, in time that grows with it.

Only what would be misread or raise something else is refused: annotations may be anything, and keywords that nobody knows are the
engine's business.
"""

from collections.abc import Callable
from typing import Any

from diffusiongemma.errors import ConstraintError

__all__ = ["check_shape"]

_TYPES = ("string", "integer", "number", "boolean", "null", "object", "array")


def check_shape(node: dict[str, Any], where: str) -> None:
    """Refuse a keyword whose value is of the wrong type.

    Args:
        node: one schema; schemas inside it are only looked at as far as whether they are schemas.
        where: its place.

    Raises:
        ConstraintError: with the keyword's place, what it is and what it must be.
    """
    for word, value in node.items():
        fits, wanted = _SHAPES.get(word, _ANYTHING)
        if not fits(value):
            raise ConstraintError(f"{where}/{word} is {_shown(value)}; it must be {wanted}")


def _shown(value: Any) -> str:
    return f"{value!r:.80}" if isinstance(value, str | int | float | None) else f"{type(value).__name__} {value!r:.80}"


def _schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _schemas(value: Any) -> bool:
    return isinstance(value, list) and all(map(_schema, value))


def _schema_of_each(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_schema, value.values()))


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return _number(value) and value >= 0 and (isinstance(value, int) or value.is_integer())


def _type(value: Any) -> bool:
    return value in _TYPES if isinstance(value, str) else _names(value) and set(value) <= set(_TYPES)


def _names_of_each(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_names, value.values()))


def _dependencies(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_dependency, value.values()))


def _dependency(value: Any) -> bool:
    return _schema(value) or _names(value) or _text(value)


_Shape = tuple[Callable[[Any], bool], str]
_ANYTHING: _Shape = (lambda value: True, "")
_ONE: _Shape = (_schema, "a schema: an object or a boolean")
_MANY: _Shape = (_schemas, "a list of schemas")
_BY_NAME: _Shape = (_schema_of_each, "an object of schemas, which are objects or booleans")
_TEXT: _Shape = (_text, "a string")
_LIMIT: _Shape = (lambda value: _number(value) or isinstance(value, bool), "a number")
_COUNT: _Shape = (_count, "a whole number that is not negative")

_SHAPES: dict[str, _Shape] = {
    "type": (_type, f"one of {', '.join(_TYPES)}, or a list of them"),
    "enum": (lambda value: isinstance(value, list), "a list of values"),
    "required": (_names, "a list of names (draft 3's boolean is not supported)"),
    "minimum": (_number, "a number"),
    "maximum": (_number, "a number"),
    "exclusiveMinimum": _LIMIT,
    "exclusiveMaximum": _LIMIT,
    "multipleOf": (lambda value: _number(value) and value > 0, "a number above 0"),
    "uniqueItems": (lambda value: isinstance(value, bool), "true or false"),
    "items": (lambda value: _schema(value) or _schemas(value), "a schema, or a list of schemas"),
    "dependentRequired": (_names_of_each, "an object of lists of names"),
    "dependencies": (_dependencies, "an object of lists of names or of schemas"),
    **dict.fromkeys(("$ref", "$dynamicRef", "$recursiveRef", "pattern", "format"), _TEXT),
    **dict.fromkeys(("properties", "patternProperties", "dependentSchemas"), _BY_NAME),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _MANY),
    **dict.fromkeys(
        ("additionalProperties", "additionalItems", "propertyNames", "not", "if", "then", "else", "contains",
         "unevaluatedProperties", "unevaluatedItems"), _ONE
    ),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"), _COUNT
    ),
}  # fmt: skip
