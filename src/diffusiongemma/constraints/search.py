"""The nearest text after a state of the engine, byte by byte.

The engine shows what may follow, not its states, so two texts of one length that may go on alike (the same next bytes, the
same forced run, the same open containers) are taken for the same state; a few of each are kept, since they need not be.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from llguidance import LLMatcher

from diffusiongemma.constraints.automaton import Automaton
from diffusiongemma.constraints.json_state import Scanner
from diffusiongemma.constraints.vocabulary import MARK
from diffusiongemma.constraints.work import UNLIMITED, Work

__all__ = ["Path", "guesses", "nearest"]

_ALIKE = 3
"""Texts kept of those that look like the same state."""
_WIDTH = 96
"""Texts kept of one length."""
_EXPANDED = 3000
"""Texts that one search expands at most."""
_MORE = 12
"""Texts expanded for others after the first found."""
_BACKSLASH = 92
_MARK = b"\xff[%d]" % MARK[0]
"""How the engine spells the mark among bytes that are forced."""
_BITS = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]


@dataclass(frozen=True)
class Path:
    """A state of the engine's byte matcher.

    Attributes:
        matcher: the state; nothing is done to it that changes it.
        scanner: the JSON around it; None for other texts.
        tail: the bytes that led here.
        again: the last byte, where the state after it looks like the one before: the next one is then the same, without others.
        work: what is left to do for the search that made it.
    """

    matcher: LLMatcher
    scanner: Scanner | None
    tail: bytes = b""
    again: bytes = b""
    work: Work = UNLIMITED

    def begin(self, work: Work | None = None) -> "Path":
        """The same state with no bytes that led here, for a search that may do so much; None: as much as this one."""
        return Path(self.matcher, self.scanner, work=self.work if work is None else work)

    def extend(self, text: bytes) -> "Path":
        """The state after more bytes, which the engine is known to allow.

        Raises:
            Exhausted: there is no work left.
        """
        self.work.spend()
        matcher = self.matcher.deep_copy()
        matcher.consume_tokens(list(text))
        scanner = self.scanner.copy().push(text) if self.scanner else None
        return Path(matcher, scanner, self.tail + text, work=self.work)

    def forced_tokens(self) -> bytes:
        """Bytes that must come next."""
        return self.matcher.compute_ff_bytes().replace(_MARK, MARK)

    def follow(self, text: bytes) -> "Path | None":
        """The state after more bytes; None where the engine does not allow them."""
        return self.extend(text) if self.matcher.validate_tokens(list(text)) == len(text) else None

    def allowed(self) -> bytes:
        """Bytes that may come next."""
        mask = self.matcher.compute_bitmask()[:32]  # 256 bytes; after them stands the engine's own end token
        return bytes(8 * n + bit for n, byte in enumerate(mask) if byte for bit in _BITS[byte])


def nearest(
    start: Path,
    goal: Callable[[Path], bool],
    limit: int,
    patterns: tuple[Automaton, ...] = (),
    first: bytes | None = None,
) -> Iterator[bytes]:
    """Bytes that lead from a state to a goal, shortest first.

    Args:
        start: where from.
        goal: asked of each state.
        limit: bytes at most.
        patterns: of strings; where one of them knows an end of the open string, that is tried.
        first: the first byte is one of these; None: any.

    Raises:
        Exhausted: there is no work left.
    """
    layers: defaultdict[int, list[Path]] = defaultdict(list)
    layers[0].append(start.begin())
    expanded, most = 0, _EXPANDED
    for length in range(limit + 1):
        alike: defaultdict[object, int] = defaultdict(int)
        for path in reversed(layers.pop(length, [])):  # last come those of single bytes, which say more than an escape's six
            if length and goal(path):
                yield path.tail
                most = min(most, expanded + _MORE)
                continue
            key = _key(path)
            alike[key] += 1
            if alike[key] > _ALIKE or len(alike) > _WIDTH or expanded > most:
                continue
            expanded += 1
            for following in _successors(path, patterns, first if length == 0 else None):
                layers[len(following.tail)].append(following)
        if not layers:
            return


def _key(path: Path) -> object:
    scanner = path.scanner
    around = (scanner.containers, scanner.string is None) if scanner else None
    return path.matcher.compute_bitmask(), path.matcher.compute_ff_bytes(), around


def _successors(path: Path, patterns: tuple[Automaton, ...], first: bytes | None) -> Iterator[Path]:
    if first is None and (run := path.forced_tokens()):
        yield path.extend(run)
        return
    yield from map(path.extend, guesses(path, patterns))
    allowed = bytes(byte for byte in path.allowed() if first is None or byte in first)
    plain = path.again or bytes(byte for byte in allowed if (32 <= byte < 127 and byte != _BACKSLASH) or byte == MARK[0])
    seen: dict[object, int] = {}
    here = _key(path)
    for byte in plain or allowed:
        following = path.extend(bytes((byte,)))
        key = _key(following)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= _ALIKE:
            yield replace(following, again=bytes((byte,))) if key == here else following


def guesses(path: Path, patterns: tuple[Automaton, ...]) -> list[bytes]:
    """Ends of the open string, with its quote, that a pattern knows and the engine allows; shortest first."""
    if not patterns or path.scanner is None or path.scanner.string is None:
        return []
    content = path.scanner.content()
    if content is None:
        return []
    rests = {rest for pattern in patterns if (rest := pattern.complete(content)) is not None}
    spelled = sorted(map(path.scanner.spelled, rests), key=len)
    return [end for end in spelled if path.matcher.validate_tokens(list(end)) == len(end)]
