"""Sets of characters as ``re`` understands them, asked one character at a time; nothing is compiled for it."""

import importlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

__all__ = ["ANY", "NO_NEWLINE", "CharSet"]

_lower: Any = importlib.import_module("_sre").unicode_tolower  # private, as old as re's Unicode mode: what re lowers with
_also: Any = importlib.import_module("re._casefix")._EXTRA_CASES  # letters of one case that are lowered differently
_SPACE = frozenset(" \t\n\r\f\v")


@dataclass(frozen=True)
class CharSet:
    """One character of a class such as ``[^a-f\\d]``.

    Attributes:
        ranges: first and last code of each member that is a character or a range.
        categories: ``DIGIT``, ``WORD`` and ``SPACE``, with ``NOT_`` before them for the opposite.
        negated: it is any other character.
        ignore_case: as ``re.IGNORECASE`` has it.
        ascii_only: as ``re.ASCII`` has it.
    """

    ranges: tuple[tuple[int, int], ...]
    categories: tuple[str, ...] = ()
    negated: bool = False
    ignore_case: bool = False
    ascii_only: bool = False

    def has(self, char: str) -> bool:
        """Is it in the set?"""
        return (any(map(self._within, self._cases(char))) or any(self._of(name, char) for name in self.categories)) != self.negated

    def _cases(self, char: str) -> Iterable[int]:
        if not self.ignore_case or (self.ascii_only and not char.isascii()):
            return (ord(char),)
        return (ord(char.lower()), ord(char.upper())) if self.ascii_only else _same_but_case(ord(char))

    def _within(self, code: int) -> bool:
        firsts, lasts = self._sorted
        at = bisect_right(firsts, code) - 1
        return at >= 0 and code <= lasts[at]

    @cached_property
    def _sorted(self) -> tuple[list[int], list[int]]:
        """Firsts and lasts of the ranges, those that overlap made one."""
        firsts: list[int] = []
        lasts: list[int] = []
        for first, last in sorted(self.ranges):
            if lasts and first <= lasts[-1] + 1:
                lasts[-1] = max(lasts[-1], last)
            else:
                firsts.append(first)
                lasts.append(last)
        return firsts, lasts

    def _of(self, name: str, char: str) -> bool:
        kind = name.removeprefix("NOT_")
        known = char.isascii() or not self.ascii_only
        if kind == "DIGIT":
            inside = known and char.isdecimal()
        elif kind == "WORD":
            inside = known and (char.isalnum() or char == "_")
        else:
            inside = char in _SPACE if self.ascii_only else char.isspace()
        return inside != (kind != name)


ANY = CharSet((), negated=True)
NO_NEWLINE = CharSet(((10, 10),), negated=True)


@lru_cache(maxsize=4096)
def _same_but_case(code: int) -> tuple[int, ...]:
    """All characters that are the same one but for their case."""
    lowered = _lower(code)
    return tuple(result for one in (lowered, *_also.get(lowered, ())) for result in (one, *_lowered_to()[one]))


@cache
def _lowered_to() -> defaultdict[int, list[int]]:
    """Lower-case character to the others that are lowered to it."""
    result: defaultdict[int, list[int]] = defaultdict(list)
    for code in range(0x110000):
        if (lowered := _lower(code)) != code:
            result[lowered].append(code)
    return result
