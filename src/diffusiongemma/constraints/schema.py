"""A JSON schema made ready for the engine: what it cannot express is refused by name, what it spells differently is rewritten.

The engine (llguidance 1.9.1) refuses most keywords it does not know but takes some without a word (draft 3's
``disallow`` and ``divisibleBy``, options for itself), and has formats and properties that validators do not agree with. What is
rewritten here keeps its meaning, except that patterns and formats may write fewer texts than there are (see ``regex`` and
``formats``).
"""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from diffusiongemma.constraints.automaton import Automaton
from diffusiongemma.constraints.formats import FORMATS, LONGEST
from diffusiongemma.constraints.keywords import REWRITES, InexpressibleError, Schema
from diffusiongemma.constraints.regex import Node, emit, parse, size
from diffusiongemma.constraints.shape import check_shape
from diffusiongemma.errors import ConstraintError

__all__ = ["Prepared", "prepare"]

_NAMED = ("properties", "patternProperties")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("additionalProperties", "items")
_REFUSED = {
    "not": "what a text must not be is beyond a grammar",
    "if": "conditions are not supported; say it with anyOf",
    "contains": "an item somewhere in an array is not supported",
    "dependentSchemas": "say it with anyOf",
    "unevaluatedItems": "it depends on other keywords here; say it with items",
    "unevaluatedProperties": "it depends on other keywords here; say it with additionalProperties",
    "$dynamicRef": "only $ref is followed",
    "$recursiveRef": "only $ref is followed",
    "disallow": "it is of draft 3",
    "extends": "it is of draft 3; say it with allOf",
    "divisibleBy": "it is of draft 3; say it with multipleOf",
}
_BESIDE = {"if": ("then", "else"), "contains": ("minContains", "maxContains")}
"""What means nothing without them."""
_MAX = 20_000
"""Schemas in a schema, those counted again that references lead to: a second of work at the most."""
_MAX_PATTERNS = 50_000
"""Characters of all patterns of a schema with their repeats written out."""
_MAX_STEPS = 1 << 20
"""Values copied for references, and states of patterns looked at for names: a second or so."""
_OLD_DRAFT = re.compile(r"json-schema\.org/draft-0[3467]/")


@dataclass(frozen=True)
class Prepared:
    """A schema for the engine, and what the search for endings may guess with.

    Attributes:
        text: the rewritten schema as JSON.
        names: property names in the order of the schema.
        required: names that are required somewhere.
        patterns: patterns of strings.
        left_out: keywords that a grammar cannot express, with their places.
    """

    text: str
    names: tuple[str, ...]
    required: frozenset[str]
    patterns: tuple[Node, ...]
    left_out: tuple[str, ...] = ()


def prepare(source: str, strict: bool = True) -> Prepared:
    """Check and rewrite a schema.

    Args:
        source: the schema as JSON.
        strict: whether a keyword that cannot be expressed is refused; else it is left out, and the texts are more than the
            schema allows.

    Raises:
        ConstraintError: a keyword that cannot be expressed, with its place and the reason; a pattern that does not compile;
            a reference that leads nowhere or outside. But for the first: whatever ``strict`` is.
    """
    root = json.loads(source)
    if isinstance(root, bool):
        if not root:
            raise ConstraintError("the schema is false: no text can satisfy it; give an object")
        root = {}
    try:
        work = _Rewriter(root, strict)
        text = json.dumps(root | {"$defs": work.defs}, ensure_ascii=False)
    except RecursionError as error:
        raise ConstraintError("the schema is nested too deeply") from error
    return Prepared(
        text, tuple(work.names), frozenset(work.required), tuple(work.patterns.values()), tuple(dict.fromkeys(work.left_out))
    )


class _Rewriter:
    """Visits what can be reached from the root, once each, and changes it in place."""

    def __init__(self, root: Any, strict: bool) -> None:
        if not isinstance(root, dict):
            raise ConstraintError(f"a JSON schema is an object or a boolean, this is {type(root).__name__}")
        self._origin = copy.deepcopy(root)  # references are looked up here, where nothing has been rewritten
        self._old = bool(_OLD_DRAFT.search(str(root.get("$schema", ""))))
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # so that no id is used twice
        self._defs: dict[str, str] = {}  # pointer -> our name
        self._named: dict[str, tuple[Any, str]] | None = None  # where a subschema is that has a name of its own
        self._steps = self._size = 0
        self._strict = strict
        self.left_out: list[str] = []
        self.defs: Schema = {}
        self.names: dict[str, None] = {}
        self.required: set[str] = set()
        self.patterns: dict[str, Node] = {}
        self._rewrites = (self._one_of, self._strings, self._names, self._least, self._objects)
        self.visit(root, "#")

    def visit(self, node: Any, where: str) -> None:
        if isinstance(node, bool) or id(node) in self._seen:
            return
        if not isinstance(node, dict):
            raise ConstraintError(f"{where} is {type(node).__name__}; a schema is an object or a boolean")
        self._seen.add(id(node))
        self._kept.append(node)
        if len(self._kept) > _MAX:
            raise ConstraintError(f"the schema is too large: more than {_MAX:,} schemas in it, with those that references lead to")
        for rewrite in (self._reference, check_shape, *REWRITES, _beyond_a_grammar, *self._rewrites):
            self._done(rewrite, node, where)
        self._inner(node, where)

    def _done(self, rewrite: Callable[[Schema, str], None], node: Schema, where: str) -> None:
        """Rewrite a schema, where need be without the keywords that cannot be expressed."""
        while True:
            try:
                return rewrite(node, where)
            except InexpressibleError as error:
                if self._strict:
                    raise
                for word in error.words:
                    node.pop(word, None)
                self.left_out.append(f"{error.words[0]} at {error.where}")

    def _reference(self, node: Schema, where: str) -> None:
        if "$ref" not in node:
            return
        target = node["$ref"]
        if not isinstance(target, str):
            raise ConstraintError(f"{where}/$ref is {target!r}; it must be a string")
        if self._old:  # until draft 7 what stands beside $ref is ignored
            for word in [word for word in node if word != "$ref"]:
                del node[word]
        result, pointer = self._resolve(target, where)
        if pointer == "#":
            node["$ref"] = "#"
            return
        if pointer not in self._defs:
            name = self._defs[pointer] = f"d{len(self._defs)}"
            self.defs[name] = self._copied(result)
            self.visit(self.defs[name], pointer)
        node["$ref"] = f"#/$defs/{self._defs[pointer]}"

    def _resolve(self, target: str, where: str) -> tuple[Any, str]:
        own = self._origin.get("$id", self._origin.get("id"))
        local = target.removeprefix(own.rstrip("#")) if isinstance(own, str) and own.rstrip("#") else target
        if local in ("", "#"):
            return self._origin, "#"
        if not local.startswith("#/"):
            if self._named is None:
                self._named = {}
                _note_names(self._origin, "#", self._named)
            if local not in self._named:
                raise InexpressibleError(
                    where, ("$ref",), f"{target!r} is outside the schema; only references inside it are followed"
                )
            return self._named[local]
        node: Any = self._origin
        for part in local[2:].split("/"):
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and len(key) < 10 and int(key) < len(node):
                node = node[int(key)]
            else:
                raise ConstraintError(f"{where}: $ref {target!r} leads nowhere: there is no {key!r}")
        return node, local

    def _one_of(self, node: Schema, where: str) -> None:
        """Alternatives of which more than one may hold, where that may be."""
        if not self._strict and "oneOf" in node:
            either = node.pop("oneOf")
            if "anyOf" in node:
                node["allOf"] = [*node.get("allOf", []), {"anyOf": either}]
            else:
                node["anyOf"] = either
            self.left_out.append(f"oneOf at {where}")

    def _strings(self, node: Schema, where: str) -> None:
        """Patterns in the engine's syntax; formats as patterns."""
        if isinstance(pattern := node.get("pattern"), str):
            try:
                node["pattern"] = self._pattern(pattern, f"{where}/pattern")
            except ConstraintError as error:
                if self._strict:
                    raise
                raise InexpressibleError(where, ("pattern",), str(error)) from error
        name = node.pop("format", None)
        if not self._strict and "pattern" in node and name in FORMATS:  # ours are narrower than they may be, and could exclude it
            self.left_out.append(f"format at {where}")
            return
        if isinstance(name, str) and name in FORMATS:  # others are notes, as the standard has it
            spelled = self._pattern(f"^(?:{FORMATS[name]})$", f"format {name}")
            if "pattern" in node:
                beside = {"pattern": node["pattern"]}
                self._seen.add(id(beside))
                node["allOf"] = [*node.get("allOf", []), beside]
            node["pattern"] = spelled
            if name in LONGEST:
                node["maxLength"] = min(node.get("maxLength", LONGEST[name]), LONGEST[name])

    def _matches(self, automaton: Automaton, name: str) -> bool:
        before = automaton.steps
        if len(name) * len(automaton) > 100 * _MAX_STEPS:  # at the worst, which is rare
            self._count(_MAX_STEPS)
        result = automaton.accepts(name)
        self._count(automaton.steps - before)
        return result

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps >= _MAX_STEPS:
            raise ConstraintError(
                "the schema takes too long to prepare: large parts of it are referred to again and again, or it has many names "
                "and large patterns for them; make it smaller"
            )

    def _copied(self, node: Any) -> Any:
        self._count(1)
        if isinstance(node, dict):
            return {key: self._copied(value) for key, value in node.items()}
        return [self._copied(value) for value in node] if isinstance(node, list) else node

    def _pattern(self, pattern: str, where: str) -> str:
        return f"^(?:{emit(self._parsed(pattern, where))})$"

    def _parsed(self, pattern: str, where: str) -> Node:
        if pattern not in self.patterns:
            node = self.patterns[pattern] = parse(pattern, search=True, where=where)
            self._size += size(node)
            if self._size > _MAX_PATTERNS:
                raise ConstraintError(
                    f"{where}: the patterns of the schema are too large together: more than {_MAX_PATTERNS:,} characters with "
                    "their repeats written out"
                )
        return self.patterns[pattern]

    def _names(self, node: Schema, where: str) -> None:
        """Patterns of names that a grammar cannot express: the schema of such names is then that of all other names."""
        given = node.get("patternProperties", {})
        for pattern in [] if self._strict else list(given):
            try:
                self._parsed(pattern, where)
            except ConstraintError:
                schema = given.pop(pattern)
                if node.get("additionalProperties", True) is False:
                    node["additionalProperties"] = schema
                self.left_out.append(f"patternProperties at {where}")

    def _objects(self, node: Schema, where: str) -> None:
        """Property names noted; a property that a pattern speaks of too gets both schemas."""
        required = node.get("required", [])
        place, patterns = f"{where}/patternProperties", node.get("patternProperties", {})
        given = [(self._parsed(pattern, place), sub) for pattern, sub in patterns.items()]
        automata = [(Automaton(pattern), sub) for pattern, sub in given]
        for name in dict.fromkeys([*node.get("properties", {}), *required]):
            self.names.setdefault(name)
            if speaking := [sub for automaton, sub in automata if self._matches(automaton, name)]:
                self._count(sum(map(_weight, speaking)))
                own = node.setdefault("properties", {})
                own[name] = {"allOf": [*([own[name]] if name in own else []), *speaking]}
        self.required.update(required)
        if given:
            spelled: Schema = {}
            for pattern, sub in given:
                key = f"^(?:{emit(pattern)})$"
                spelled[key] = {"allOf": [spelled[key], sub]} if key in spelled else sub
            node["patternProperties"] = spelled

    def _least(self, node: Schema, where: str) -> None:
        """A count of properties that required ones do not reach."""
        required = node.get("required", [])
        counted = [word for word in ("minProperties", "maxProperties") if word in node]
        if counted and not self._strict and set(node.get("properties", {})) - set(required):  # the engine says so else
            raise InexpressibleError(where, tuple(counted), "is only known where all properties are required")
        free = node.get("additionalProperties", True) is not False or node.get("patternProperties")
        if free and isinstance(least := node.get("minProperties", 0), int) and least - len(set(required)) > 1:
            raise InexpressibleError(
                where,
                ("minProperties",),
                f"{least} cannot be expressed: names that are not required could repeat; require {least - 1} or more names",
            )

    def _inner(self, node: Schema, where: str) -> None:
        for word in _NAMED:
            inner = node.get(word, {})
            if not isinstance(inner, dict):
                raise ConstraintError(f"{where}/{word} is {type(inner).__name__}; it must be an object of schemas")
            for name, sub in inner.items():
                self.visit(sub, f"{where}/{word}/{name[:80]}")
        for word in _LISTED:
            inner = node.get(word, [])
            if not isinstance(inner, list):
                raise ConstraintError(f"{where}/{word} is {type(inner).__name__}; it must be a list of schemas")
            for n, sub in enumerate(inner):
                self.visit(sub, f"{where}/{word}/{n}")
        for word in _SINGLE:
            if word in node:
                self.visit(node[word], f"{where}/{word}")


def _beyond_a_grammar(node: Schema, where: str) -> None:
    for word, reason in _REFUSED.items():
        if word in node:
            raise InexpressibleError(where, (word, *_BESIDE.get(word, ())), f"cannot be expressed: {reason}")


def _weight(node: Any) -> int:
    """Values in a value."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return 1 + sum(map(_weight, inner))


def _note_names(node: Any, pointer: str, names: dict[str, tuple[Any, str]]) -> None:
    """Every subschema that calls itself something by $anchor or $id, the first of a name."""
    if isinstance(node, dict):
        called = (f"#{node.get('$anchor')}", node.get("$id"), node.get("id"))
        for name in called:
            if isinstance(name, str):
                names.setdefault(name, (node, pointer))
        pairs = [(key.replace("~", "~0").replace("/", "~1"), sub) for key, sub in node.items() if key not in ("const", "enum")]
    else:
        pairs = [(str(n), sub) for n, sub in enumerate(node)] if isinstance(node, list) else []
    for key, sub in pairs:
        _note_names(sub, f"{pointer}/{key}", names)
