"""Regular expressions in Python's ``re`` syntax, rewritten for the engine so that what it accepts, ``re`` accepts too.

Supported: literals, escapes, classes, ``.``, groups (named too), alternatives, greedy and lazy repeats, inline flags ``(?i)``,
``(?s)``, ``(?x)``, ``(?a)``, and anchors where a text begins or ends. Refused by name: lookaround, ``\\b``, back references,
conditionals, atomic groups, possessive repeats, anchors in the middle. ``\\d``, ``\\w`` and ``\\s`` write ASCII only, which is
within what ``re`` accepts; ``\\D``, ``\\W`` and ``\\S`` write what neither reading of the positive class has.
"""

import importlib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffusiongemma.constraints.chars import ANY, NO_NEWLINE, CharSet
from diffusiongemma.errors import ConstraintError

__all__ = ["Chars", "Choice", "Node", "Repeat", "Row", "emit", "escape", "parse", "size"]

_sre = importlib.import_module("re._parser")  # private, the same since Python 3.11; it is the syntax itself
_MAX_SIZE = 10_000
"""Characters of a pattern with its counted repeats written out; the engine's own limit is near 25,000 (llguidance 1.9.1)."""
_MAX_SOURCE = 1 << 16
"""Characters of a pattern as it is written: reading it takes up to some microseconds each."""
_ASCII = {"DIGIT": "0-9", "WORD": "0-9A-Za-z_", "SPACE": r"\x20\t\n\r\x0c\x0b"}
# At least what str.isdecimal, isalnum and isspace have. Not \w itself: inside a schema the engine reads it as ASCII.
_UNICODE = {"DIGIT": r"\p{N}", "WORD": r"\p{L}\p{M}\p{N}\p{Pc}", "SPACE": r"\p{White_Space}\x1c-\x1f"}
_REFUSED = {
    "ASSERT": "lookahead and lookbehind", "ASSERT_NOT": "lookahead and lookbehind", "GROUPREF": "a back reference",
    "GROUPREF_EXISTS": "a conditional group", "ATOMIC_GROUP": "an atomic group", "POSSESSIVE_REPEAT": "a possessive repeat",
}  # fmt: skip


@dataclass(frozen=True)
class Chars:
    """One character of a set: ``engine`` is how the engine spells the set, ``chars`` what ``re`` takes it for."""

    engine: str
    chars: CharSet
    likely: str = ""

    @cached_property
    def pick(self) -> str | None:
        """A character of the set, plain ASCII where there is one."""
        return next((c for c in self.likely + _PLAIN if self.chars.has(c)), None)


@dataclass(frozen=True)
class Row:
    """One after another."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True)
class Choice:
    """One of several."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True)
class Repeat:
    """``low`` to ``high`` times; ``high`` None: without end."""

    part: "Node"
    low: int
    high: int | None


Node = Chars | Row | Choice | Repeat
_PLAIN = "0a1A-_. :/@,;+*#" + "".join(map(chr, range(32, 127)))
_INSIDE, _EDGE, _OPEN = 0, 1, 2
_ANYTHING = Repeat(Chars(r"(?s:.)", ANY), 0, None)


def parse(pattern: str, search: bool = False, where: str = "the regex") -> Node:
    """Read a pattern; it is never compiled by ``re``, nor run by it.

    Args:
        pattern: in Python's ``re`` syntax.
        search: the pattern may match anywhere in the text (JSON schema's ``pattern``), not the whole text.
        where: how messages call the pattern.

    Raises:
        ConstraintError: it does not compile, has what cannot be expressed, or is too large.
    """
    name = f"{where} {pattern[:200]!r}"
    if len(pattern) > _MAX_SOURCE:
        raise ConstraintError(f"{name} has {len(pattern):,} characters; {_MAX_SOURCE:,} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of set operations that re may have one day
            tree = _sre.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConstraintError(f"{name} does not compile: {error}") from error
    side = _OPEN if search else _EDGE
    try:
        node = _Reader(name).row(list(tree), tree.state.flags, side, side)
        written_out = size(node)
    except RecursionError as error:
        raise ConstraintError(f"{name} is nested too deeply") from error
    if written_out > _MAX_SIZE:
        raise ConstraintError(
            f"{name} is too large: {written_out:,} characters with its repeats written out, {_MAX_SIZE:,} are allowed"
        )
    return node


def emit(node: Node) -> str:
    """The engine's spelling of a pattern that matches a whole text."""
    if isinstance(node, Chars):
        return node.engine
    if isinstance(node, Row):
        return "".join(map(emit, node.parts))
    if isinstance(node, Choice):
        return f"(?:{'|'.join(map(emit, node.parts))})"
    high = "" if node.high is None else str(node.high)
    return f"(?:{emit(node.part)}){{{node.low},{high}}}"


def size(node: Node) -> int:
    """Characters of a pattern with its counted repeats written out."""
    if isinstance(node, Chars):
        return 1
    if isinstance(node, Repeat):
        return max(node.low, node.high or 0, 1) * size(node.part)
    return sum(map(size, node.parts)) + 1


class _Reader:
    """From the standard library's tree to ours."""

    def __init__(self, name: str) -> None:
        self._name = name

    def row(self, items: list[Any], flags: int, left: int, right: int) -> Node:
        """A sequence; ``left`` and ``right`` say what is on its sides: more pattern, the text's edge, or an edge to be found."""
        while left and items and _is_anchor(items[0], "AT_BEGINNING", "AT_BEGINNING_STRING"):
            left, items = _EDGE, items[1:]
        while right and items and _is_anchor(items[-1], "AT_END", "AT_END_STRING"):
            right, items = _EDGE, items[:-1]
        # A group at a side that has anchors inside answers for the side itself: (^a|b)c.
        before = left == _OPEN and not (items and _has_anchor(items[0]))
        behind = right == _OPEN and not (items and _has_anchor(items[-1]))
        last = len(items) - 1
        left, right = left * (not before), right * (not behind)
        parts = [self.item(item, flags, left * (n == 0), right * (n == last)) for n, item in enumerate(items)]
        # An empty pattern that may stand anywhere is anything once, not twice: the same texts, less work.
        parts = [_ANYTHING] * before + parts + [_ANYTHING] * (behind and not (before and not parts))
        return parts[0] if len(parts) == 1 else Row(tuple(parts))

    def item(self, item: Any, flags: int, left: int, right: int) -> Node:
        """One element."""
        op, value = str(item[0]), item[1]
        if op in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self.chars(op, value, flags)
        if op == "BRANCH":
            return Choice(tuple(self.row(list(part), flags, left, right) for part in value[1]))
        if op == "SUBPATTERN":
            _, added, removed, inner = value
            return self.row(list(inner), (flags | added) & ~removed, left, right)
        if op in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, inner = value
            return Repeat(self.row(list(inner), flags, _INSIDE, _INSIDE), int(low), None if high is _sre.MAXREPEAT else int(high))
        if op == "AT":
            what = r"\b" if "BOUNDARY" in str(value) else "an anchor that is not where the text begins or ends"
            raise ConstraintError(f"{self._name} has {what}, which cannot be expressed")
        raise ConstraintError(f"{self._name} has {_REFUSED.get(op, op.lower())}, which cannot be expressed")

    def chars(self, op: str, value: Any, flags: int) -> Chars:
        """A set of characters."""
        if op == "ANY":
            return Chars("(?s:.)", ANY) if flags & re.DOTALL else Chars(r"[^\n]", NO_NEWLINE)
        if op != "IN":
            value = [("LITERAL", value)] if op == "LITERAL" else [("NEGATE", None), ("LITERAL", value)]
        negated = str(value[0][0]) == "NEGATE"
        members = value[1:] if negated else value
        engine = "".join(self.member(str(kind), what, negated) for kind, what in members)
        hat, ignore = "^" * negated, bool(flags & re.IGNORECASE)
        source = f"(?i:[{hat}{engine}])" if ignore else f"[{hat}{engine}]"
        ranges = tuple((what, what) if str(kind) == "LITERAL" else what for kind, what in members if str(kind) != "CATEGORY")
        categories = tuple(str(what).removeprefix("CATEGORY_") for kind, what in members if str(kind) == "CATEGORY")
        chars = CharSet(ranges, categories, negated, ignore, bool(flags & re.ASCII))
        first = "" if negated or str(members[0][0]) == "CATEGORY" else chr(members[0][1] if op != "IN" else _low(members[0]))
        return Chars(source, chars, first)

    def member(self, kind: str, what: Any, negated: bool) -> str:
        """The engine's spelling of one member of a set."""
        if kind != "CATEGORY":
            for code in what if kind == "RANGE" else (what,):
                if 0xD800 <= code < 0xE000:
                    raise ConstraintError(f"{self._name} has U+{code:04X}, half of a surrogate pair, which no text can hold")
            return _member(kind, what)
        name = str(what).removeprefix("CATEGORY_").removeprefix("NOT_")
        opposite = "NOT_" in str(what)
        table = _UNICODE if opposite != negated else _ASCII
        return f"[^{table[name]}]" if opposite else table[name]


def _low(member: tuple[Any, Any]) -> int:
    return int(member[1][0] if str(member[0]) == "RANGE" else member[1])


def _member(kind: str, what: Any) -> str:
    """The spelling of a character or a range."""
    return escape(what) if kind == "LITERAL" else f"{escape(what[0])}-{escape(what[1])}"


def escape(code: int) -> str:
    """A character in a pattern, in Python's spelling and the engine's."""
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\x{code:02x}" if code < 0x80 else chr(code)


def _is_anchor(item: Any, *names: str) -> bool:
    return str(item[0]) == "AT" and str(item[1]) in names


def _has_anchor(item: Any) -> bool:
    op, value = str(item[0]), item[1]
    inner: Sequence[Any] = value[1] if op == "BRANCH" else [value[3]] if op == "SUBPATTERN" else []
    return op == "AT" or any(_has_anchor(part) for row in inner for part in row)
