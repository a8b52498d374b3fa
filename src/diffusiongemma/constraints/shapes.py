"""What values a JSON schema allows: alternatives, with references followed and conditions put together.

For syntaxes that the engine does not know. It reads schemas that ``schema.prepare`` has made ready.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from diffusiongemma.errors import ConstraintError

__all__ = ["ObjectPart", "Schemas", "Shape"]

Node = dict[str, Any] | bool
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_MAX = 128
"""Alternatives of one value, its nested ``anyOf`` multiplied out."""
_CONTAINERS = ("properties", "patternProperties", "required", "minProperties", "maxProperties", "items", "prefixItems", "minItems",
               "maxItems")  # fmt: skip


@dataclass(frozen=True)
class ObjectPart:
    """What one schema says of an object.

    Attributes:
        properties: name to schema.
        patterns: pattern of names, in the engine's syntax, to schema.
        additional: of other names; None: it says nothing of them.
        declares: it says which names there are, if only that there are none.
    """

    properties: dict[str, Node]
    patterns: dict[str, Node]
    additional: Node | None
    declares: bool

    def of(self, name: str) -> list[Node]:
        """What it says of a property."""
        if name in self.properties:
            return [self.properties[name]]
        return [] if self.additional is None else [self.additional]


@dataclass(frozen=True)
class Shape:
    """One alternative of what a value may be; what is not of its type does not count.

    Attributes:
        types: allowed; ``number`` has the whole ones in it.
        values: the only ones, if any.
        patterns, min_length, max_length: of a string.
        low, high, above, below: of a number: ``minimum``, ``maximum`` and the exclusive ones.
        steps: ``multipleOf``, all of them.
        parts, required, min_properties, max_properties: of an object.
        prefix, items, min_items, max_items: of an array; each item has several schemas.
    """

    types: frozenset[str] = frozenset(_TYPES) - {"integer"}
    values: tuple[Any, ...] | None = None
    patterns: tuple[str, ...] = ()
    min_length: int = 0
    max_length: int | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    steps: tuple[float, ...] = ()
    parts: tuple[ObjectPart, ...] = ()
    required: tuple[str, ...] = ()
    min_properties: int = 0
    max_properties: int | None = None
    prefix: tuple[tuple[Node, ...], ...] = ()
    items: tuple[Node, ...] = ()
    min_items: int = 0
    max_items: int | None = None
    nested: bool = field(default=False, compare=False)
    """It says something of the inside of arrays or objects."""

    def has(self, value: Any) -> bool:
        """Whether a value of an ``enum`` is allowed, as far as its type, length and size go."""
        if not any(_is(value, kind) for kind in self.types):
            return False
        if isinstance(value, str):
            return self.min_length <= len(value) and (self.max_length is None or len(value) <= self.max_length)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        low = (self.low is None or value >= self.low) and (self.above is None or value > self.above)
        high = (self.high is None or value <= self.high) and (self.below is None or value < self.below)
        return low and high and all((value / step).is_integer() for step in self.steps)

    def names(self) -> tuple[str, ...]:
        """Declared names of an object, then those that are required besides."""
        return tuple(dict.fromkeys([*(name for part in self.parts for name in part.properties), *self.required]))


class Schemas:
    """The schemas of one document.

    Args:
        root: what ``schema.prepare`` made.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root

    def shapes(self, nodes: Sequence[Node], where: str) -> list[Shape]:
        """The alternatives of a value that all of some schemas allow; none where nothing is allowed.

        Raises:
            ConstraintError: a keyword with a value that no schema has, alternatives of ``oneOf`` that may hold at once, too many.
        """
        return [shape for shape in self._expand(list(nodes), frozenset(), where) if shape.types]

    def _expand(self, nodes: list[Node], above: frozenset[str], where: str) -> list[Shape]:
        shape, groups, here = Shape(), list[list[Node]](), set[str]()
        plain: list[Node] = []
        todo = [(node, above) for node in nodes]  # with the references that led there
        while todo:
            node, chain = todo.pop(0)
            if node is True:
                continue
            if node is False:
                return []
            if (target := node.get("$ref")) is not None:
                if target in chain:
                    return []  # a value that is itself, or an alternative that is: it adds nothing
                if target not in here:
                    here.add(target)
                    todo.append((self._target(target), chain | {target}))
            todo += [(inner, chain) for inner in node.get("allOf", [])]
            for word in ("anyOf", "oneOf"):
                if word in node:
                    groups.append(node[word])
                    self._check_count(math.prod(map(len, groups)), where)
                    if word == "oneOf":
                        self._check_one(node[word], above | here, where)
            plain.append({word: what for word, what in node.items() if word not in ("$ref", "allOf", "anyOf", "oneOf")})
        for one in plain:
            assert isinstance(one, dict)
            shape = _with(shape, one, where)
        if not groups:
            return [_chosen(shape, where)]
        alternatives: list[Shape] = []
        for chosen in product(*groups):
            alternatives += self._expand([*plain, *chosen], above | here, where)
            self._check_count(len(alternatives), where)
        return alternatives

    def _check_count(self, count: int, where: str) -> None:
        if count > _MAX:
            raise ConstraintError(f"{where}: its anyOf and oneOf have more than {_MAX} combinations; say it with fewer")

    def _target(self, pointer: str) -> Node:
        node: Any = self._root
        for part in pointer.removeprefix("#").split("/")[1:]:
            node = node[part]
        if pointer == "#":
            return {word: what for word, what in self._root.items() if word != "$defs"}
        result: Node = node
        return result

    def _check_one(self, branches: list[Node], above: frozenset[str], where: str) -> None:
        """Of ``oneOf`` one alternative alone may hold, and a grammar cannot see to it: they must differ in some way."""
        each = [self._expand([branch], above, where) for branch in branches]
        for n, some in enumerate(each):
            for others in each[n + 1 :]:
                if not all(self._apart(one, other, 0) for one in some for other in others):
                    raise ConstraintError(
                        f"{where}: 'oneOf' with branches of which more than one could hold; make them exclusive or say anyOf"
                    )

    def _apart(self, one: Shape, other: Shape, depth: int) -> bool:
        """Whether no value is surely of both."""
        for mine, its in ((one, other), (other, one)):
            if mine.values is not None:
                others = its.values
                if all(not its.has(value) or (others is not None and not _among(value, others)) for value in mine.values):
                    return True
        return all(self._apart_as(kind, one, other, depth) for kind in _common(one.types, other.types))

    def _apart_as(self, kind: str, one: Shape, other: Shape, depth: int) -> bool:
        if kind in ("integer", "number"):
            return any(
                high is not None and low is not None and (high <= low if strict else high < low)
                for mine, its in ((one, other), (other, one))
                for high, low, strict in (
                    (mine.high, its.low, False),
                    (mine.below, its.low, True),
                    (mine.high, its.above, True),
                    (mine.below, its.above, True),
                )
            )
        if kind == "object":
            return depth < 4 and any(self._tell(name, one, other, depth) for name in {*one.required, *other.required})
        return False

    def _tell(self, name: str, one: Shape, other: Shape, depth: int) -> bool:
        """Whether a property tells two kinds of objects apart."""
        mine, its = ([sub for part in shape.parts for sub in part.of(name)] for shape in (one, other))
        if name in one.required and name in other.required:
            pairs = product(self.shapes(mine, name), self.shapes(its, name))
            return all(self._apart(first, second, depth + 1) for first, second in pairs)
        return not self.shapes(its if name in one.required else mine, name)  # the other may not have it at all


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and float(value).is_integer())
    return kind == ("string" if isinstance(value, str) else "array" if isinstance(value, list) else "object")


def _same(one: Any, other: Any) -> bool:
    """JSON's equality: 1 is 1.0, and true is not 1."""
    return json.dumps(_whole(one), sort_keys=True) == json.dumps(_whole(other), sort_keys=True)


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return {key: _whole(one) for key, one in value.items()} if isinstance(value, dict) else value


def _among(value: Any, values: Iterable[Any]) -> bool:
    return any(_same(value, other) for other in values)


def _common(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    both = one & other
    if ("integer" in one and "number" in other) or ("integer" in other and "number" in one):
        both |= {"integer"}
    return both


def _with(shape: Shape, node: dict[str, Any], where: str) -> Shape:
    """A shape and one more schema without references and alternatives."""
    if "type" in node:
        given = node["type"] if isinstance(node["type"], list) else [node["type"]]
        if unknown := [kind for kind in given if kind not in _TYPES]:
            raise ConstraintError(f"{where}: type {unknown[0]!r} is none of JSON's: {', '.join(_TYPES)}")
        kinds = frozenset(given) - ({"integer"} if "number" in given else set())
        shape = replace(shape, types=_common(shape.types, kinds))
    for word in ("enum", "const"):
        if word in node:
            values = node["enum"] if word == "enum" else [node["const"]]
            if not isinstance(values, list):
                raise ConstraintError(f"{where}/enum is {values!r:.100}; it must be a list")
            before = shape.values
            shape = replace(shape, values=tuple(value for value in values if before is None or _among(value, before)))
    if "pattern" in node:
        shape = replace(shape, patterns=(*shape.patterns, node["pattern"]))
    if "multipleOf" in node:
        step = _number(node, "multipleOf", where)
        if step <= 0:
            raise ConstraintError(f"{where}/multipleOf is {step}; it must be above 0")
        shape = replace(shape, steps=(*shape.steps, step))
    for word, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(flag := node.get(strict), bool):  # draft 4: it says how the other word is meant
            meant = {strict if flag else word: node[word]} if word in node else {}
            node = {key: what for key, what in node.items() if key not in (word, strict)} | meant
    for word, name, choose in _BOUNDS:
        if word in node:
            known, new = getattr(shape, name), _number(node, word, where)
            if word.startswith(("min", "max")) and word not in ("minimum", "maximum"):
                new = _count(new, word, where)
            bound: dict[str, Any] = {name: new if known is None else choose(known, new)}
            shape = replace(shape, **bound)
    return _with_inner(shape, node, where)


def _with_inner(shape: Shape, node: dict[str, Any], where: str) -> Shape:
    if any(word in node for word in ("properties", "patternProperties", "additionalProperties")):
        declares = "properties" in node or "patternProperties" in node
        part = ObjectPart(node.get("properties", {}), node.get("patternProperties", {}), node.get("additionalProperties"), declares)
        shape = replace(shape, parts=(*shape.parts, part))
    if "required" in node:
        shape = replace(shape, required=tuple(dict.fromkeys([*shape.required, *node["required"]])))
    if "prefixItems" in node or "items" in node:
        prefix, rest = node.get("prefixItems", []), node.get("items", True)
        size = max(len(prefix), len(shape.prefix))
        mine = [(prefix[n],) if n < len(prefix) else (rest,) for n in range(size)]
        its = [shape.prefix[n] if n < len(shape.prefix) else shape.items for n in range(size)]
        joined = tuple((*one, *other) for one, other in zip(its, mine, strict=True))
        shape = replace(shape, prefix=joined, items=(*shape.items, rest))
    return replace(shape, nested=shape.nested or any(word in node for word in (*_CONTAINERS, "additionalProperties")))


def _chosen(shape: Shape, where: str) -> Shape:
    """The values that are left of an ``enum``; then they say all."""
    if shape.values is None:
        return shape
    if shape.patterns and any(isinstance(value, str) for value in shape.values):
        raise ConstraintError(f"{where}: 'pattern' or 'format' beside an enum or const; list the texts alone")
    if shape.nested and any(isinstance(value, list | dict) for value in shape.values):
        raise ConstraintError(f"{where}: an enum or const of arrays or objects beside other keywords; list the values alone")
    values = tuple(value for value in shape.values if shape.has(value))
    return replace(shape, values=values) if values else replace(shape, types=frozenset())


def _number(node: dict[str, Any], word: str, where: str) -> float:
    value = node[word]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConstraintError(f"{where}/{word} is {value!r:.100}; it must be a number")
    return value


def _count(value: float, word: str, where: str) -> int:
    if value < 0 or not float(value).is_integer():
        raise ConstraintError(f"{where}/{word} is {value}; it must be a whole number, 0 or more")
    return int(value)


_BOUNDS: tuple[tuple[str, str, Any], ...] = (
    ("minLength", "min_length", max), ("maxLength", "max_length", min), ("minimum", "low", max), ("maximum", "high", min),
    ("exclusiveMinimum", "above", max), ("exclusiveMaximum", "below", min), ("minProperties", "min_properties", max),
    ("maxProperties", "max_properties", min), ("minItems", "min_items", max), ("maxItems", "max_items", min),
)  # fmt: skip
