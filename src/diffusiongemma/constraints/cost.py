"""What a grammar may take of the engine, seen from its source alone.

The engine bounds its lexer, and what one row of its parser holds. It does not bound what it does with a row: alternatives that may
all hold at once are compared each with each, for each of them that ends (300 of them: 0.8 s a mask), and a step of ``multipleOf``
has as many states as it is large (1,000,003: 13 s, 0.9 GB). So a grammar is *cheap* where little of this can be in it; cheap ones
are compiled in place, others in a process of their own (``process.py``), which costs them some milliseconds and may be ended.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from diffusiongemma.constraints.keywords import without_tens

__all__ = ["Cost", "of_lark", "of_pattern", "of_schema", "of_texts", "together"]

_SOURCE = 1 << 16
"""Characters of the source of a cheap grammar."""
_NODES = 1000
"""Values in a cheap schema, the names of keywords not counted."""
_BRANCHES = 32
"""Alternatives in a cheap schema, all together; 64 take up to 10 ms a mask, 32 take 2."""
_LENGTHS = 4000
"""What a cheap grammar counts: characters of patterns, their repeats written out, and of ``maxLength``, items of ``maxItems``."""
_COUNTS = {"minLength": 1, "maxLength": 1, "minItems": 8, "maxItems": 1, "minProperties": 8, "maxProperties": 1}
"""What each keyword that counts weighs: what must be there is searched through to the end."""
_CROSSED = 500
"""The same where several patterns must hold at once (``allOf``)."""
_MULTIPLE = 5000
"""The least common multiple of all steps of ``multipleOf`` in a cheap schema."""
_FRACTION = 100
"""The largest step that is no whole number."""
_WORDS = 32
"""Words of a cheap context-free grammar; 8,100 that may all be left out (90 times 90) take 160 ms a mask, written with 180."""
_BASE, _A_CHARACTER, _A_LENGTH = 1 << 18, 100, 2048
"""Bytes that a compiled grammar holds: of each, of each character of its source, of each that it counts. Measured: 20,000 choices
of 16 characters 31 MB, ``(?:.{0,90}x){30}`` after 1,600 tokens 9 MB."""
_LARK = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(/(?:[^/\\]|\\.)+/)|([A-Za-z_][A-Za-z0-9_]*)|[()|?])')
_RULE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)[ ]*:(.*)")


@dataclass(frozen=True)
class Cost:
    """What compiling and following a grammar may take.

    Attributes:
        cheap: a call of the engine takes milliseconds.
        bytes: of memory that it holds, about; of one that is not cheap, in the process of its own.
    """

    cheap: bool
    bytes: int


def _cost(source: int, lengths: int, cheap: bool) -> Cost:
    return Cost(cheap and source <= _SOURCE and lengths <= _LENGTHS, _BASE + _A_CHARACTER * source + _A_LENGTH * lengths)


def of_texts(source: str) -> Cost:
    """Of a list of texts."""
    return _cost(len(source), 0, True)


def together(costs: Iterable[Cost]) -> Cost:
    """Of alternatives that are told apart by their names, such as tools."""
    each = list(costs)
    return Cost(all(one.cheap for one in each), sum(one.bytes for one in each))


def of_pattern(source: str, size: int) -> Cost:
    """Of a regular expression with so many characters, its repeats written out."""
    return _cost(len(source), size, True)


def of_schema(source: str, patterns: int | None = None) -> Cost:
    """Of a schema that ``schema.prepare`` has made, with so many characters of patterns, their repeats written out; None: they are
    counted as they are written."""
    count = _Counted(json.loads(source))
    patterns = count.patterns if patterns is None else patterns
    crossed = not count.joined or patterns <= _CROSSED
    cheap = count.nodes <= _NODES and count.branches <= _BRANCHES and count.step <= _MULTIPLE and crossed
    return _cost(len(source), patterns + count.lengths, cheap)


def of_lark(source: str) -> Cost:
    """Of a context-free grammar: cheap where it has a few words, and rules of which each stands in one other at most, once."""
    rules = [line for line in source.splitlines() if line.strip()]
    free: set[str] = set()  # rules that stand nowhere yet
    known: set[str] = set()
    words = lengths = 0
    cheap = len(rules) <= _WORDS
    for line in reversed(rules) if cheap else ():
        result = _RULE.fullmatch(line)
        if result is None:
            return _cost(len(source), 0, False)
        name, body = result.groups()
        before, is_json, schema = body.partition("%json ")
        inner = _json_cost(schema) if is_json else Cost(True, 0)
        parts = _parts(before)
        names = [part for part in parts or () if _is_name(part)]
        cheap = cheap and inner.cheap and parts is not None and name not in known
        cheap = cheap and len(set(names)) == len(names) and free.issuperset(names)
        words += len(parts or ())
        lengths += sum(map(len, parts or ()))
        free = (free - set(names)) | {name}
        known.add(name)
    return _cost(len(source), lengths, cheap and words <= _WORDS)


def _json_cost(schema: str) -> Cost:
    try:
        return of_schema(schema)
    except (ValueError, RecursionError):
        return Cost(False, 0)


def _is_name(part: str) -> bool:
    return part[0] not in '"/'


def _parts(body: str) -> list[str] | None:
    """Texts, patterns and names of a rule's body; None where there is more in it than these, ``|``, ``?`` and brackets."""
    result, at, body = [], 0, body.rstrip()
    while at < len(body):
        part = _LARK.match(body, at)
        if part is None:
            return None
        result += [one for one in part.groups() if one is not None]
        at = part.end()
    return result


class _Counted:
    """What is in a schema.

    Attributes:
        nodes: values.
        branches: alternatives.
        lengths: of texts, arrays and objects that are counted.
        patterns: characters, as they are written.
        step: the least common multiple of all ``multipleOf``, powers of ten aside.
        joined: several schemas must hold at once somewhere.
    """

    def __init__(self, root: Any) -> None:
        self.nodes = self.branches = self.lengths = self.patterns = 0
        self.step, self.joined = 1, False
        todo = [root]
        while todo:
            node = todo.pop()
            self.nodes += 1
            if isinstance(node, dict):
                self._look(node)
                todo += [inner for word, inner in node.items() if word not in ("const", "enum")]
            elif isinstance(node, list):
                todo += node

    def _look(self, node: dict[str, Any]) -> None:
        for word in ("anyOf", "oneOf", "patternProperties"):
            more = node.get(word)
            self.branches += max(len(more) - 1, 0) if isinstance(more, list | dict) else 0
        pattern = node.get("pattern")
        self.patterns += len(pattern) if isinstance(pattern, str) else 0
        self.joined |= "allOf" in node or ("$ref" in node and len(node) > 1)
        for word, weight in _COUNTS.items():
            count = node.get(word)
            self.lengths += weight * int(count) if isinstance(count, int | float) and math.isfinite(count) else 0
        step = node.get("multipleOf")
        if isinstance(step, int | float) and math.isfinite(step) and step > 0:
            is_complete = float(step).is_integer()
            self.step = math.lcm(self.step, without_tens(int(step)) if is_complete else 1 if step <= _FRACTION else _MULTIPLE + 1)
