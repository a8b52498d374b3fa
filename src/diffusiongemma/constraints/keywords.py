"""Keywords of a JSON schema in the words that the engine knows; each function rewrites one schema in place."""

from decimal import Decimal
from typing import Any

from diffusiongemma.constraints.shape import check_shape
from diffusiongemma.errors import ConstraintError

__all__ = ["ANNOTATIONS", "REWRITES", "InexpressibleError", "Schema", "without_tens"]

Schema = dict[str, Any]


class InexpressibleError(ConstraintError):
    """A grammar cannot say what a keyword does.

    Args:
        where: the schema's place.
        words: the keyword, and those that mean nothing without it.
        reason: why not, or what to say instead; goes on after them.
    """

    def __init__(self, where: str, words: tuple[str, ...], reason: str) -> None:
        super().__init__(f"{where}: {words[0]!r} {reason}")
        self.where, self.words = where, words


ANNOTATIONS = ("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$comment", "title", "description",
                "default", "examples", "deprecated", "readOnly", "writeOnly", "x-guidance", "$defs", "definitions")  # fmt: skip
"""What says nothing about a text. ``x-guidance`` would set the engine's options; ours are the ones that count."""


def annotations(node: Schema, where: str) -> None:
    for word in ANNOTATIONS:
        node.pop(word, None)
    if "if" not in node or not {"then", "else"} & node.keys():
        for word in ("if", "then", "else"):
            node.pop(word, None)
    if node.get("additionalProperties") is True:
        del node["additionalProperties"]


MAX_STEP = 100_000
"""The largest ``multipleOf``, powers of ten aside: the engine has a state for each remainder, of 350 bytes and 25 microseconds."""


def without_tens(step: int) -> int:
    """A step without its factors of ten, for which the engine needs no states."""
    while step and step % 10 == 0:
        step //= 10
    return step


_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains")


def numbers(node: Schema, where: str) -> None:
    """Counts as whole numbers; steps that floating point cannot hold refused."""
    for word in _COUNTS:
        if isinstance(count := node.get(word), float):
            node[word] = int(count)
    step = node.get("multipleOf")
    if isinstance(step, float) and not (step * 2**10).is_integer():
        raise InexpressibleError(
            where,
            ("multipleOf",),
            f"{step} cannot be expressed: {step} has no exact binary value, and validators that divide floating-point numbers "
            "refuse some of its multiples; use whole numbers or a string with a pattern",
        )
    if isinstance(step, int | float) and without_tens(int(step)) > MAX_STEP:
        raise InexpressibleError(
            where,
            ("multipleOf",),
            f"{step} is too large: {MAX_STEP:,} is the most, powers of ten aside, since a grammar needs a state for each "
            "remainder; leave it out, and check the number afterwards",
        )


EXACT, EXACT_DIGITS = 2**53, 15
"""The engine computes with doubles: beyond, a number comes out as another one (and some end the process)."""


def large_numbers(node: Schema, where: str) -> None:
    """Values that would come out as others refused; bounds that lie further out than numbers are exact drawn in to there."""
    for word in ("const", "enum"):
        if word in node and (odd := _inexact(node[word])) is not None:
            raise InexpressibleError(
                where,
                (word,),
                f"has the number {odd}, which would not come out as it is: numbers may have {EXACT_DIGITS} significant digits, "
                f"whole ones be up to {EXACT:,}; write it as a string",
            )
    for word, sign in (("minimum", 1), ("exclusiveMinimum", 1), ("maximum", -1), ("exclusiveMaximum", -1)):
        bound = node.get(word)
        if not isinstance(bound, int | float) or isinstance(bound, bool) or abs(bound) <= EXACT:
            continue
        if sign * bound > 0:
            raise InexpressibleError(where, (word,), f"is {bound}; beyond {EXACT:,} numbers cannot be told apart here")
        node[word] = -sign * EXACT


def _inexact(value: Any) -> int | float | None:
    """A number in a value that the engine would spell as another one."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return next((odd for each in inner if (odd := _inexact(each)) is not None), None)
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, int) and abs(value) <= EXACT):
        return None
    digits = Decimal(repr(value)).normalize().as_tuple().digits
    return value if len(digits) > EXACT_DIGITS else None


def arrays(node: Schema, where: str) -> None:
    """The old spelling of tuples in today's words; unique items refused unless there is one at most."""
    if isinstance(node.get("items"), list):
        node["prefixItems"] = node.pop("items")
        if "additionalItems" in node:
            node["items"] = node["additionalItems"]
    node.pop("additionalItems", None)
    if node.pop("uniqueItems", False) is True and node.get("maxItems") not in (0, 1):
        raise InexpressibleError(where, ("uniqueItems",), "cannot be expressed: a grammar does not remember the items before")
    if "contains" not in node or (node.get("minContains") == 0 and "maxContains" not in node):
        for word in ("contains", "minContains", "maxContains"):
            node.pop(word, None)


def dependencies(node: Schema, where: str) -> None:
    """A property that asks for others: either it is not there, or they are."""
    asks: dict[str, Any] = {}
    for word in ("dependencies", "dependentRequired", "dependentSchemas"):
        asks |= node.pop(word, {})
    for name, asked in asks.items():
        there: Any = {"required": [asked] if isinstance(asked, str) else asked} if not isinstance(asked, dict | bool) else asked
        node["allOf"] = [*node.get("allOf", []), {"anyOf": [{"properties": {name: False}}, there]}]


def unevaluated(node: Schema, where: str) -> None:
    """Where no other schema speaks of the same value, what is unevaluated is what is additional."""
    alone = not {"$ref", "allOf", "anyOf", "oneOf", "if"} & node.keys()
    for word, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if node.get(word) is True or (word in node and plain in node):
            del node[word]
        elif word in node and alone:
            node[plain] = node.pop(word)


def property_names(node: Schema, where: str) -> None:
    """Names constrained to a pattern or a list, in an object without other properties."""
    names = node.pop("propertyNames", True)
    if isinstance(names, dict):
        check_shape(names, f"{where}/propertyNames")
    if names is True or names in ({}, {"type": "string"}):
        return
    value = node.get("additionalProperties", True)
    asked = {word: what for word, what in names.items() if word not in (*ANNOTATIONS, "type")} if isinstance(names, dict) else {}
    if set(asked) not in ({"pattern"}, {"enum"}) or {"properties", "patternProperties", "required"} & node.keys():
        raise InexpressibleError(
            where, ("propertyNames",), "cannot be expressed: only a pattern or an enum, and no properties beside it"
        )
    if "enum" in asked:
        node["properties"] = {name: value for name in asked["enum"] if isinstance(name, str)}
    else:
        node["patternProperties"] = {asked["pattern"]: value}
    node["additionalProperties"] = False


REWRITES = (annotations, numbers, large_numbers, arrays, dependencies, unevaluated, property_names)
"""In the order in which they are done."""
