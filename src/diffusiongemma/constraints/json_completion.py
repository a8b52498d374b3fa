"""A short way from a JSON text, or a call in the native markup, that has begun to one that is whole.

The way is a row of choices: what is forced, closing what may be closed, the name of a property, a value. Each choice has its
options in an order of which the first is nearly always right; the search follows first options, and comes back to others, the
earliest and least deviating first, where that led nowhere within the limit.
"""

import heapq
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from diffusiongemma.constraints.automaton import Automaton
from diffusiongemma.constraints.search import Path, guesses, nearest

__all__ = ["CompletionHints", "close_json"]

_OPTIONS = 4
"""Values tried at one place besides containers."""
_SHORT = 8
"""Bytes of a string that is looked for although a pattern knows an end."""
_TRIES = 16
"""Ways followed to their end at most, for one limit."""
_STEPS = 6000
"""Choices made at most, for all limits together: a second or so."""
_LIMITS = (48, 192, 768, 3072, 12288, 49152)
"""Bytes within which an ending is looked for, in turn: a short one is found before the search gets lost in long ones."""


@dataclass(frozen=True)
class CompletionHints:
    """What a schema says that helps to guess.

    Attributes:
        names: property names, those first that are more likely to be needed.
        patterns: of strings.
    """

    names: tuple[bytes, ...] = ()
    patterns: tuple[Automaton, ...] = ()

    @classmethod
    def of(
        cls,
        names: Iterable[str],
        required: Iterable[str],
        patterns: Iterable[Automaton],
        spell: Callable[[str], bytes] | None = None,
    ) -> "CompletionHints":
        """Names as they are spelled (in JSON, unless ``spell`` knows better), the best guess first.

        Properties come in order, so the last one allowed is the one that cannot be left out.
        """
        spell = spell or _spell
        needed = frozenset(map(spell, required))
        backwards = list(map(spell, names))[::-1]
        spelled = sorted(backwards, key=lambda name: name not in needed)
        return cls(tuple(spelled), tuple(patterns))


def _spell(name: str) -> bytes:
    return json.dumps(name, ensure_ascii=False)[1:-1].encode(errors="replace")


def close_json(start: Path, limit: int, hints: CompletionHints) -> bytes | None:
    """Bytes that make a JSON text whole; None where no way was found.

    Args:
        start: the state after the text so far, with its scanner.
        limit: bytes at most.
        hints: of the schema.

    Raises:
        Exhausted: there is no work left.
    """
    steps = [_STEPS]
    for bound in _LIMITS:
        result = _close(start.begin(), min(bound, limit), hints, steps)
        if result is not None or bound >= limit:
            return result
    return None


def _close(start: Path, limit: int, hints: CompletionHints, steps: list[int]) -> bytes | None:
    serial = 0
    queue = [(0, 0, serial, start, b"")]  # deviation, bytes so far, order, state, the option to take
    for _ in range(_TRIES):
        if not queue:
            break
        deviation, _, _, path, option = heapq.heappop(queue)
        path = path.extend(option) if option else path
        while len(path.tail) <= limit and steps[0]:
            steps[0] -= 1
            if path.matcher.is_accepting():
                return path.tail
            options = _options(path, limit - len(path.tail), hints)
            if not options:
                break
            for rank, other in enumerate(options[1:], 1):
                serial += 1
                heapq.heappush(queue, (deviation + rank, len(path.tail), serial, path, other))
            path = path.extend(options[0])
    return None


def _options(path: Path, limit: int, hints: CompletionHints) -> list[bytes]:
    """What may come next, best first."""
    scanner = path.scanner
    assert scanner is not None
    if run := path.forced_tokens():
        return [run]
    allowed = path.allowed()
    if scanner.name == b"" and b"}"[0] in allowed:
        return [b"}"]
    if scanner.name is not None and (named := _names(path, scanner.name, hints)):
        return named
    if scanner.string is not None:
        if scanner.quote[0] in allowed and scanner.may_close:
            return [scanner.quote]
        return _strings(path, limit, hints)
    if scanner.name:
        return list(islice(nearest(path, _name_done, limit), _OPTIONS))
    for closer in (b"}", b"]", scanner.quote if scanner.expects_name else b"}", b","):
        if closer[0] in allowed:
            return [closer]
    if scanner.in_number:
        return list(islice(nearest(path, _number_done, limit), _OPTIONS))
    return _values(path, allowed, limit, hints)


def _names(path: Path, begun: bytes, hints: CompletionHints) -> list[bytes]:
    """Ends of names that may stand here."""
    assert path.scanner is not None
    rests = (name[len(begun) :] + path.scanner.name_end for name in hints.names if name.startswith(begun))
    return list(islice((rest for rest in rests if path.matcher.validate_tokens(list(rest)) == len(rest)), _OPTIONS))


def _strings(path: Path, limit: int, hints: CompletionHints) -> list[bytes]:
    """Ends of the open string. Where a pattern knows one, only much shorter ones are looked for besides."""
    known = guesses(path, hints.patterns)[:_OPTIONS]
    bound = min(limit, _SHORT, len(known[0]) - 1) if known else limit
    return [*islice(nearest(path, _string_closed, bound, hints.patterns), _OPTIONS), *known]


def _values(path: Path, allowed: bytes, limit: int, hints: CompletionHints) -> list[bytes]:
    options: list[bytes] = []
    quote = path.scanner.quote if path.scanner else b'"'
    if scalars := bytes(byte for byte in allowed if byte not in b"{[ \n\r\t" + quote):
        options = list(islice(nearest(path, _value_done, limit, first=scalars), _OPTIONS))
    if quote[0] in allowed and not any(len(option) < 3 for option in options):
        options += [quote + end for end in _strings(path.extend(quote), limit - 1, hints)]
    options.sort(key=len)
    for opener, likely in ((b"[", 4), (b"{", 12)):
        if opener[0] in allowed:
            options.insert(sum(len(option) <= likely for option in options), opener)
    return options or [bytes((byte,)) for byte in allowed]


def _string_closed(path: Path) -> bool:
    return path.scanner is not None and path.scanner.string is None


def _name_done(path: Path) -> bool:
    return path.scanner is not None and path.scanner.name is None


def _number_done(path: Path) -> bool:
    return path.matcher.is_accepting() or any(byte in b",]}" for byte in path.allowed())


def _value_done(path: Path) -> bool:
    return _string_closed(path) and _number_done(path)
