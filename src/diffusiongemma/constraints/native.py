"""A grammar for calls in the native markup, whose arguments a tool's JSON schema allows.

::

    call:weather{city:<|"|>Paris<|"|>,days:3}

Properties come in the schema's order. Numbers without bounds have up to 18 digits before and 17 after the point, so that they are
finite and can be read. Where a schema declares properties and does not speak of others, no others are written.
"""

import json
from collections.abc import Sequence
from typing import Any

from diffusiongemma.constraints.regex import escape
from diffusiongemma.constraints.schema import Prepared, prepare
from diffusiongemma.constraints.shapes import Node, Schemas, Shape
from diffusiongemma.constraints.vocabulary import MARK_NAME
from diffusiongemma.errors import ConstraintError
from diffusiongemma.text.markup import QUOTE, is_key

__all__ = ["calls_grammar", "opened"]

_TEXT = r"(?s:.)"
_NO_QUOTE = "".join(map(escape, map(ord, QUOTE)))
_WORD = "[A-Za-z_][A-Za-z0-9_]{0,63}"
_BARE = r"[^\s:{}\[\],\x22\x3c\x7c\x3e]{1,64}"
"""Names that match a pattern; without blanks, and without the characters of the quote mark."""
_INTEGER = "-?(?:0|[1-9][0-9]{0,17})"
_NUMBER = rf"{_INTEGER}(?:\.[0-9]{{1,17}})?(?:[eE][+-]?[0-9]{{1,2}})?"
_COUNTED = 10_000
"""Rules for the properties of an object whose number counts."""
_LARGE = 10**18
"""A number with one bound alone gets this as the other, so that it can be read."""
_SCALAR = {"whitespace_flexible": False, "lenient": False}
_COMMA, _NOTHING = '"," ', '""'
_DATA = ("const", "enum", "default", "examples")


def opened(schema: Any) -> Any:
    """A schema in which ``additionalProperties: true`` is written ``{}``: ``prepare`` takes the first for nothing said."""
    if isinstance(schema, list):
        return [opened(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {word: what if word in _DATA else opened(what) for word, what in schema.items()}
    return made | {"additionalProperties": {}} if schema.get("additionalProperties") is True else made


def calls_grammar(tools: Sequence[tuple[str, Any]], strict: bool = True) -> tuple[str, list[Prepared]]:
    """A Lark grammar of a call of any of some tools, without the marks around it, and what was found in the schemas.

    Args:
        tools: name and parameters (a JSON schema) of each.
        strict: see ``schema.prepare``.

    Raises:
        ConstraintError: parameters that the markup or a grammar cannot hold.
    """
    rules = _Rules()
    ready, calls = [], []
    for place, (name, parameters) in enumerate(tools):
        try:
            prepared = prepare(json.dumps(opened(parameters)), strict)
            root = json.loads(prepared.text)
            writer = _Writer(Schemas(root), rules, f"t{place}")
            # Arguments are an object, whatever else their schema allows.
            arguments = writer.value([{word: what for word, what in root.items() if word != "$defs"}, {"type": "object"}], "#")
        except ConstraintError as error:
            raise ConstraintError(f"tools: the parameters of {name} cannot be expressed: {error}") from error
        except RecursionError as error:
            raise ConstraintError(f"tools: the parameters of {name} are nested too deeply") from error
        if arguments is None:
            raise ConstraintError(f"tools: no arguments can satisfy the parameters of {name}")
        calls.append(f"{_literal(name)} {arguments}")
        ready.append(prepared)
    rules.add("start", f'"call:" ({" | ".join(calls)})')
    return rules.text(), ready


class _Rules:
    """Rules and terminals of a grammar, equal ones once."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._terminals: dict[str, str] = {}

    def add(self, name: str, body: str) -> str:
        """A rule; returns its name."""
        self._lines[name] = body
        return name

    def terminal(self, body: str) -> str:
        """The name of a terminal."""
        if body not in self._terminals:
            self._terminals[body] = f"T{len(self._terminals)}"
        return self._terminals[body]

    def text(self) -> str:
        """The grammar, ``start`` first."""
        lines = [("start", self._lines["start"]), *((name, body) for name, body in self._lines.items() if name != "start")]
        terminals = [(name, body) for body, name in self._terminals.items()]
        return "".join(f"{name}: {body}\n" for name, body in [*lines, *terminals])


class _Writer:
    """Writes rules for the values of one schema."""

    def __init__(self, schemas: Schemas, rules: _Rules, prefix: str) -> None:
        self._schemas, self._rules, self._prefix = schemas, rules, prefix
        self._known: dict[str, str | None] = {}
        self._count = 0

    def value(self, nodes: Sequence[Node], where: str) -> str | None:
        """A rule for values that all of some schemas allow; None where there are none."""
        key = json.dumps([node for node in nodes if node is not True], sort_keys=True)
        if key not in self._known:
            self._known[key] = name = self._name()
            bodies = [body for shape in self._schemas.shapes(nodes, where) for body in self._shape(shape, where)]
            if bodies:
                self._rules.add(name, " | ".join(dict.fromkeys(bodies)))
            else:
                self._known[key] = None
                self._rules.add(name, self._rules.terminal("/a/ & ~/a/"))  # a rule above may have asked for it meanwhile
        return self._known[key]

    def _name(self) -> str:
        self._count += 1
        return f"{self._prefix}_{self._count}"

    def _shape(self, shape: Shape, where: str) -> list[str]:
        if shape.values is not None:
            return self._values(shape.values, where)
        result: list[str] = []
        if "null" in shape.types:
            result.append('"null"')
        if "boolean" in shape.types:
            result.append('"true" | "false"')
        for kind in ("integer", "number"):
            if kind in shape.types and (number := self._number(shape, kind)) is not None:
                result.append(number)
        if "string" in shape.types and (shape.max_length is None or shape.min_length <= shape.max_length):
            result.append(self._string(shape))
        if "array" in shape.types and (array := self._array(shape, where)) is not None:
            result.append(array)
        if "object" in shape.types and (written := self._object(shape, where)) is not None:
            result.append(written)
        return result

    # -- scalars -----------------------------------------------------------------------------------------------------------

    def _values(self, values: Sequence[Any], where: str) -> list[str]:
        texts = [value for value in values if isinstance(value, str)]
        result = [_spelled(value, where) for value in values if not isinstance(value, str)]
        if texts:
            for text in texts:
                _check_text(text, where)
            terminal = "|".join("".join(map(escape, map(ord, text))) for text in texts if text)
            inner = [*([self._rules.terminal(f"/{terminal}/")] if terminal else []), *([_NOTHING] if "" in texts else [])]
            result.append(f"{MARK_NAME} {_any_of(inner)} {MARK_NAME}")
        return result

    def _string(self, shape: Shape) -> str:
        high = "" if shape.max_length is None else str(shape.max_length)
        terms = [
            f"/{_TEXT}{{{shape.min_length},{high}}}/",
            *(f"/{pattern.removeprefix('^').removesuffix('$')}/" for pattern in shape.patterns),
        ]
        body = " & ".join([*terms, f"~/{_TEXT}*{_NO_QUOTE}{_TEXT}*/"])
        return f"{MARK_NAME} {self._rules.terminal(body)} {MARK_NAME}"

    def _number(self, shape: Shape, kind: str) -> str | None:
        bounds = {"minimum": shape.low, "maximum": shape.high, "exclusiveMinimum": shape.above, "exclusiveMaximum": shape.below}
        given: dict[str, Any] = {word: bound for word, bound in bounds.items() if bound is not None}
        if not given and not shape.steps:
            return self._rules.terminal(f"/{_INTEGER if kind == 'integer' else _NUMBER}/")
        low = max(bound for bound in (shape.low, shape.above, -_LARGE) if bound is not None)
        high = min(bound for bound in (shape.high, shape.below, _LARGE) if bound is not None)
        if low > high:
            return None
        if "minimum" not in given and "exclusiveMinimum" not in given:
            given["minimum"] = -_LARGE
        if "maximum" not in given and "exclusiveMaximum" not in given:
            given["maximum"] = _LARGE
        each = [{"multipleOf": step} for step in shape.steps]
        schema = {"type": kind, **given, **(each[0] if each else {}), "x-guidance": _SCALAR}
        if len(each) > 1:
            schema["allOf"] = each[1:]
        return self._rules.add(self._name(), f"%json {json.dumps(schema)}")

    # -- arrays --------------------------------------------------------------------------------------------------------------

    def _array(self, shape: Shape, where: str) -> str | None:
        low, high = shape.min_items, shape.max_items
        prefix = [self.value(nodes, f"{where}/prefixItems/{n}") for n, nodes in enumerate(shape.prefix)]
        if None in prefix:  # an item that cannot be ends the array before it
            high = prefix.index(None) if high is None else min(high, prefix.index(None))
            prefix = prefix[: prefix.index(None)]
        rest = self.value(shape.items, f"{where}/items") if high is None or high > len(prefix) else None
        if rest is None:
            high = len(prefix) if high is None else min(high, len(prefix))
        if high is not None and low > high:
            return None
        # From the end: what may come after n items.
        done = max(low - len(prefix), 0)
        follow = _NOTHING if rest is None else _times(f'"," {rest}', done, None if high is None else high - len(prefix))
        if not prefix:
            return f'"[" {_list(rest, low, high)} "]"'
        for n in range(min(len(prefix), len(prefix) if high is None else high) - 1, -1, -1):
            name = self._rules.add(self._name(), f"{_COMMA if n else ''}{prefix[n]} {follow}")
            follow = name if n < low else f"({name})?"
        return f'"[" {follow} "]"'

    # -- objects -------------------------------------------------------------------------------------------------------------

    def _object(self, shape: Shape, where: str) -> str | None:
        """Each declared property in its order, then others: a rule for what may follow after each, with or without one before."""
        pairs: list[tuple[str, bool]] = []
        for name in shape.names():
            if not is_key(name):
                raise ConstraintError(
                    f"{where}: the name {name!r} cannot be written in this model's calls, where names stand bare: they hold none "
                    'of : , { } [ ] " and no blank at their ends; rename it'
                )
            inner = self.value([node for part in shape.parts for node in part.of(name)], f"{where}/properties/{name[:80]}")
            if inner is None and name in shape.required:
                return None
            if inner is not None:
                pairs.append((f"{_literal(f'{name}:')} {inner}", name in shape.required))
        free = self._free(shape, where)
        low, high = shape.min_properties, shape.max_properties
        if high is not None and (high < low or high < len(shape.required)):
            return None
        # Counting is for what the names alone do not see to.
        low = 0 if low <= len(shape.required) else low
        high = None if high is not None and free is None and high >= len(pairs) else high
        if len(pairs) * max(low, high or 0) > _COUNTED:
            raise ConstraintError(
                f"{where}: 'minProperties' or 'maxProperties' with {len(pairs)} properties takes too many rules; leave it out"
            )
        body = self._pairs(pairs, free, low, high)
        return None if body is None else f'"{{" {body} "}}"'

    def _pairs(self, pairs: Sequence[tuple[str, bool]], free: str | None, low: int, high: int | None) -> str | None:
        most = max(low, 0 if high is None else high + 1, 1)  # so many written are as good as more
        after: dict[int, str | None] = {written: self._others(free, written, low, high) for written in range(most + 1)}
        for pair, needed in reversed(pairs):
            before: dict[int, str | None] = {}
            for written in range(most + 1):
                full = high is not None and written >= high
                with_it = None if full else after[min(written + 1, most)]
                paths = [] if with_it is None else [f"{_COMMA if written else ''}{pair} {with_it}"]
                if not needed and (without := after[written]) is not None:
                    paths.append(without)
                before[written] = self._rules.add(self._name(), " | ".join(paths)) if paths else None
            after = before
        return after[0]

    def _others(self, free: str | None, written: int, low: int, high: int | None) -> str | None:
        """Undeclared properties after so many declared ones."""
        least, most = max(low - written, 0), None if high is None else high - written
        if free is None or most == 0:
            return _NOTHING if least == 0 else None
        if most is not None and most < 0:
            return None
        return _times(f'"," {free}', least, most) if written else _list(free, least, most)

    def _free(self, shape: Shape, where: str) -> str | None:
        """A rule for one property that is not declared; None where there are none."""
        names = shape.names()
        said = [part.additional for part in shape.parts if part.additional is not None]
        patterns = [(pattern, node) for part in shape.parts for pattern, node in part.patterns.items()]
        but = [f"~/(?:{'|'.join(''.join(map(escape, map(ord, name))) for name in names)}):/"] if names else []
        kinds: list[str] = []
        matching = [f"/{pattern.removeprefix('^').removesuffix('$')}:/" for pattern, _ in patterns]
        for n, (_, node) in enumerate(patterns):
            # A name that matches one pattern alone, so that the others do not speak of it.
            others = [part.additional for part in shape.parts if part.additional is not None and not part.patterns]
            inner = self.value([node, *others], f"{where}/patternProperties")
            if inner is not None:
                terms = [f"/{_BARE}:/", matching[n], *(f"~{one}" for one in matching[:n] + matching[n + 1 :]), *but]
                kinds.append(f"{self._rules.terminal(' & '.join(terms))} {inner}")
        but += [f"~{one}" for one in matching]
        if said or not (shape.required or any(part.declares for part in shape.parts)):
            inner = self.value(said, f"{where}/additionalProperties")
            if inner is not None:
                kinds.append(f"{self._rules.terminal(' & '.join([f'/{_WORD}:/', *but]))} {inner}")
        return _any_of(kinds) if kinds else None


def _times(body: str, low: int, high: int | None) -> str:
    """So many times; the engine has no range that ends at 0."""
    return _NOTHING if high == 0 else f"({body}){{{low},{'' if high is None else high}}}"


def _list(body: str | None, low: int, high: int | None) -> str:
    """So many with commas between them."""
    if body is None or high == 0:
        return _NOTHING
    tail = f"({body} {_times(f'{_COMMA}{body}', max(low - 1, 0), None if high is None else high - 1)})"
    return tail if low else f"{tail}?"


def _any_of(bodies: Sequence[str]) -> str:
    return bodies[0] if len(bodies) == 1 else f"({' | '.join(bodies)})"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _check_text(text: str, where: str) -> None:
    if QUOTE in text:
        raise ConstraintError(f"{where}: an enum or const holds {QUOTE}, which ends strings in this model's calls; leave it out")


def _spelled(value: Any, where: str) -> str:
    """A constant, its parts one after another."""
    if isinstance(value, str):
        _check_text(value, where)
        return f"{MARK_NAME} {_literal(value)} {MARK_NAME}" if value else f"{MARK_NAME} {MARK_NAME}"
    if isinstance(value, list):
        return f'"[" {_COMMA.join(f"{_spelled(one, where)} " for one in value)} "]"'
    if isinstance(value, dict):
        if wrong := [key for key in value if not is_key(key)]:
            raise ConstraintError(
                f"{where}: an enum or const has the name {wrong[0]!r}, which cannot be written in this model's calls"
            )
        pairs = (
            f"{_literal(f'{key}:')} {_spelled(one, where)}" for key, one in sorted(value.items(), key=lambda one: one[0].lower())
        )
        return f'"{{" {_COMMA.join(f"{pair} " for pair in pairs)} "}}"'
    return _literal(json.dumps(value))
