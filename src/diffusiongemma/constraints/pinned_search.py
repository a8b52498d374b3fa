"""A way through tokens that are given at their positions, and on to the end of a text.

Between two given tokens stand so and so many open ones, and the bytes between can be cut into tokens in many ways. So the search
goes byte by byte, as that of ``search.py`` does, and keeps for each text in how many tokens it can be written. A gap ends where its
number of tokens is among them and the engine allows the bytes of the next given token. Of the texts that get there a few of each
kind are kept, and the next gap begins after all of them.

It is not complete: texts that look like the same state are thinned out, and so are the kinds where there are too many. Where
nothing is found, wider searches follow. For a list of choices it is complete: each is tried.
"""

import contextlib
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from diffusiongemma.constraints.automaton import Automaton
from diffusiongemma.constraints.search import Path, guesses
from diffusiongemma.constraints.vocabulary import Vocabulary

__all__ = ["AGAIN", "SEARCH_BUDGETS", "Finder", "PinnedPath", "SearchBudget", "SearchGuide", "pinned_path", "place"]

T = TypeVar("T")
_FREE = 16
"""Next bytes from which a state counts as free: of those that lead to states alike only a few are tried."""
_FEW = 2
"""Next bytes up to which all are tried, so that hints are not needed."""
_HINTS = 3
_BACKSLASH = 92
_LONGEST_CHARACTER = 3
"""Bytes, and so tokens, of a character before its last byte."""
_MANY = 1 << 20
_COMMON = bytes(dict.fromkeys(b"ea0 " + bytes(range(32, 127)) + b"\n\t"))
_OPEN, _CLOSED = b"([{", b")]}"


Finder = Callable[[Path, bytes, int], bytes | None]
"""From a state, the whole text so far and a limit to bytes that make it whole."""


@dataclass(frozen=True)
class SearchGuide:
    """What is known of a grammar besides what its engine says.

    Attributes:
        find: finds bytes that make a text whole.
        patterns: of strings in JSON, or of the whole text.
        names: of properties.
        texts: all there are, the shortest first; None: nobody knows.
    """

    find: Finder
    patterns: tuple[Automaton, ...] = ()
    names: tuple[bytes, ...] = ()
    texts: tuple[bytes, ...] | None = None


@dataclass(frozen=True)
class SearchBudget:
    """How wide a search is.

    Attributes:
        alike: texts kept of those that look like the same state in as many tokens and bytes.
        exact: open tokens up to which texts of every length are kept.
        kept: kinds of states kept after a given token.
        lengths: texts kept of each, of different lengths.
        steps: texts looked at between two given tokens.
        total: texts looked at in all.
        escapes: strings in JSON may hold a backslash where nothing asks for one: then a given quote can mean much more.
        deep: what has most tokens is followed first: a long gap that nothing narrows is crossed at once, others are missed.
    """

    alike: int
    exact: int
    kept: int
    lengths: int
    steps: int
    total: int
    escapes: bool
    deep: bool = False


SEARCH_BUDGETS = (
    SearchBudget(1, 1, 2, 2, 300, 1_000, escapes=False, deep=True),
    SearchBudget(1, 1, 6, 2, 400, 4_000, escapes=False),
    SearchBudget(2, 2, 16, 4, 1_500, 10_000, escapes=False),
    SearchBudget(2, 3, 100, 6, 3_000, 15_000, escapes=True),
)
"""Tried in turn, the last only where the others find nothing: from milliseconds to seconds."""
AGAIN = SearchBudget(1, 1, 4, 2, 200, 1_000, escapes=False)
"""Where a way is known already, and another one would only be welcome: a tenth of a second at most."""


@dataclass(frozen=True)
class PinnedPath:
    """What a search found.

    Attributes:
        tokens: that may follow, up to and with the last given one, and to the end of the text where one was found.
        ends: they make the text whole.
        passed: how many of the given positions (open ones counted) they pass; fewer than all: no way led to the next given token.
    """

    tokens: list[int]
    ends: bool
    passed: int


@dataclass(frozen=True)
class _Start:
    """A state after a given token, and the tokens that led there."""

    path: Path
    tokens: tuple[int, ...]
    text: bytes
    marks: bytes = b""
    led: int = 0


@dataclass(frozen=True)
class _Node:
    """A text of a gap. ``counts[n]`` has bit c where its first n bytes can be written in c tokens; what begins at a place in
    ``live`` is a token, or the first part of one."""

    start: _Start
    path: Path
    marks: bytes = b""
    counts: tuple[int, ...] = (1,)
    live: tuple[int, ...] = ()
    led: int = 0  # its last byte that was free is that of the first hint, the second, ...


def pinned_path(
    start: Path,
    text: bytes,
    given: Sequence[int],
    limit: int,
    vocabulary: Vocabulary,
    guide: SearchGuide,
    budget: SearchBudget,
) -> PinnedPath:
    """Look for tokens that may follow and are those given where some are given.

    Args:
        start: the state to begin at.
        text: all bytes that led there.
        given: a token or -1 for each next position; the last is a token. It may be a stop token: the text ends there.
        limit: tokens at most, given and others, without a stop token that is not given.
        vocabulary: of the grammar.
        guide: what is known of the grammar.
        budget: how wide to search.

    Raises:
        Exhausted: there is no work left.
    """
    if guide.texts is not None:
        return _one_of(guide.texts, text, given, limit, vocabulary)
    starts = [_Start(start.begin(), (), text)]
    search = _Search(vocabulary, guide, budget)
    at = 0
    for position, token in enumerate(given):
        if token == -1:
            continue
        following = search.gap(starts, position - at, token)
        if not following:
            return PinnedPath(list(starts[0].tokens), False, at)
        starts, at = following, position + 1
    if given and given[-1] in vocabulary.stop_ids:
        return PinnedPath(list(starts[0].tokens), True, at)
    for one in sorted(starts, key=lambda one: not one.path.matcher.is_accepting()):
        result = b"" if one.path.matcher.is_accepting() else guide.find(one.path, one.text, 64 + 16 * (limit - at))
        tokens = None if result is None else vocabulary.spell(result)
        if tokens is not None and len(tokens) <= limit - at:
            return PinnedPath([*one.tokens, *tokens], True, at)
    return PinnedPath(list(starts[0].tokens), False, at)


def _one_of(texts: Sequence[bytes], text: bytes, given: Sequence[int], limit: int, vocabulary: Vocabulary) -> PinnedPath:
    """The first of the texts that has the tokens; where none has, the first that has the most of them from the left."""
    rests = [is_complete[len(text) :] for is_complete in texts if is_complete.startswith(text)]
    for end in sorted({0} | {at + 1 for at, token in enumerate(given) if token != -1}, reverse=True):
        for rest in rests:
            tokens = place(rest, given[:end], limit, vocabulary)
            if tokens is not None:
                return PinnedPath(tokens, end == len(given), end)
    return PinnedPath([], False, 0)


def place(text: bytes, given: Sequence[int], limit: int, vocabulary: Vocabulary) -> list[int] | None:
    """A text in at most ``limit`` tokens, with those that are given at their places; None where that cannot be.

    Args:
        text: what is to be written.
        given: a token or -1 for each position; the last is a token. It may be a stop token: the text ends there.
        limit: tokens at most, without a stop token that is not given.
        vocabulary: spells.
    """
    stopped = bool(given) and given[-1] in vocabulary.stop_ids
    rows: list[dict[int, int]] = [{0: -1}]  # for each number of tokens: where their bytes may end, and the last of them
    for token in given[: len(given) - stopped]:
        following: dict[int, int] = {}
        known = vocabulary.token_bytes[token] if 0 <= token < vocabulary.size else b""
        for begin in rows[-1]:
            if token == -1:
                for end in range(begin + 1, min(begin + vocabulary.longest, len(text)) + 1):
                    if (written := vocabulary.id_of(text[begin:end])) is not None:
                        following[end] = written
            elif known and text.startswith(known, begin):
                following[begin + len(known)] = token
        rows.append(following)
    for end in sorted(rows[-1], reverse=True):
        rest = vocabulary.spell(text[end:])
        if rest is not None and len(given) + len(rest) <= limit and not (stopped and rest):
            return _back(rows, end, vocabulary) + (list(given[-1:]) if stopped else rest)
    return None


def _back(rows: Sequence[dict[int, int]], end: int, vocabulary: Vocabulary) -> list[int]:
    tokens: list[int] = []
    for row in rows[:0:-1]:
        tokens.append(row[end])
        end -= len(vocabulary.token_bytes[tokens[-1]])
    return tokens[::-1]


class _Search:
    def __init__(self, vocabulary: Vocabulary, guide: SearchGuide, budget: SearchBudget) -> None:
        self._vocabulary, self._guide, self._budget = vocabulary, guide, budget
        self._steps = budget.total
        self._bytes: dict[tuple[object, bool], bytes] = {}  # after a free state: a few of each kind

    def gap(self, starts: Sequence[_Start], count: int, token: int) -> list[_Start]:
        """States after so many open tokens and a given one, the shortest text first."""
        ends = token in self._vocabulary.stop_ids
        goal = b"" if ends or not 0 <= token < self._vocabulary.size else self._vocabulary.token_bytes[token]
        if not ends and not goal:
            return []
        within = bool(goal) and 0x80 <= goal[0] < 0xC0  # the gap ends within a character, so its last bytes are not ASCII
        serial = len(starts)
        first = [_Node(start, start.path.begin(), start.marks, led=start.led) for start in starts]
        queue = [(0, len(node.start.text), n, node) for n, node in enumerate(first)]
        taken: defaultdict[object, list[int]] = defaultdict(list)
        result: defaultdict[object, dict[int, _Start]] = defaultdict(dict)
        steps = min(self._budget.steps, self._steps)
        self._steps -= steps
        while queue and steps:
            least, size, _, node = heapq.heappop(queue)
            least, key = abs(least), _key(node.path)
            if least and not self._taken(taken[key, node.marks, node.led, least], size, least, count):
                continue
            steps -= 1
            if node.counts[-1] >> count & 1 and (reached := self._reached(node, count, token, goal)):
                result[_key(reached.path), node.marks, node.led].setdefault(len(reached.text), reached)
                if self._budget.deep:
                    break
            for following in self._following(node, key, count, within and least >= count - _LONGEST_CHARACTER):
                if (fewest := self._fewest(following)) <= count:
                    serial += 1
                    depth = -fewest if self._budget.deep else fewest
                    heapq.heappush(queue, (depth, len(node.start.text) + len(following.path.tail), serial, following))
        self._steps += steps
        return self._chosen(list(result.values()))

    def _taken(self, sizes: list[int], size: int, least: int, count: int) -> bool:
        """Is this one of the few texts of a state that are followed? How long they are may count, and does not show."""
        if size in sizes[-1:]:
            if sizes.count(size) >= self._budget.alike:
                return False
        elif len(sizes) > 1 and count > self._budget.exact and size - sizes[0] < 2 * (sizes[-1] - sizes[0]):
            return False
        sizes.append(size)
        return True

    def _chosen(self, kinds: list[dict[int, _Start]]) -> list[_Start]:
        """As many as are kept: of each kind some, from the shortest to the longest."""
        kinds = _spread(sorted(kinds, key=min), self._budget.kept)
        chosen = [one for kind in kinds for one in _spread([kind[size] for size in sorted(kind)], self._budget.lengths)]
        return sorted(chosen, key=lambda one: len(one.text))

    def _reached(self, node: _Node, count: int, token: int, goal: bytes) -> _Start | None:
        path = node.path.follow(goal)
        if path is None or (not goal and not path.matcher.is_accepting()):
            return None
        tail = node.path.tail
        tokens, end = [token], len(tail)
        for left in range(count - 1, -1, -1):
            begin = next(
                begin
                for begin in range(max(0, end - self._vocabulary.longest), end)
                if node.counts[begin] >> left & 1 and self._vocabulary.id_of(tail[begin:end]) is not None
            )
            written = self._vocabulary.id_of(tail[begin:end])
            assert written is not None
            tokens.append(written)
            end = begin
        before, marks = node.start, _marks(node.marks, path, goal)
        tokens = [*before.tokens, *reversed(tokens)]
        return _Start(path.begin(), tuple(tokens), before.text + path.tail, marks, node.led)

    def _following(self, node: _Node, key: object, count: int, within: bool) -> Iterator[_Node]:
        path = node.path
        if run := path.forced_tokens():
            yield replace(self._extended(node, run[:1]), led=node.led)  # the given token may begin within the run
            return
        allowed = path.allowed()
        for rank, byte in enumerate(islice(dict.fromkeys(self._hints(node)), _HINTS), 1) if len(allowed) > _FEW else ():
            yield replace(self._extended(node, bytes((byte,))), led=rank)
        if len(allowed) <= _FREE:
            few = allowed
        elif node.counts[-1] & ((1 << count) - 1):
            few = self._few(path, key, allowed, within)
            for filler in self._vocabulary.fillers(allowed):
                if path.matcher.validate_tokens(list(filler)) == len(filler):
                    yield self._extended(node, filler)
        else:  # there is no other token after this one: what is next must go on with it
            rests = [path.tail[begin:] for begin in node.live if node.counts[begin] & ((1 << count) - 1)]
            fitting = bytes(byte for byte in allowed if any(self._vocabulary.begins(rest + bytes((byte,))) for rest in rests))
            few = self._some(path, fitting)
        for byte in few:
            yield self._extended(node, bytes((byte,)))

    def _few(self, path: Path, key: object, allowed: bytes, within: bool) -> bytes:
        """Next bytes of a free state, a few of each kind; states that look alike are taken to have the same."""
        if (key, within) not in self._bytes:
            escapes = self._budget.escapes or path.scanner is None
            common = bytes(byte for byte in _COMMON if byte in allowed and (escapes or byte != _BACKSLASH))
            if within:
                common += bytes(byte for byte in allowed if byte >= 0x80)
            self._bytes[key, within] = self._some(path, common) or allowed
        return self._bytes[key, within]

    def _some(self, path: Path, allowed: bytes) -> bytes:
        """A few of each kind."""
        kinds: defaultdict[object, int] = defaultdict(int)
        some = bytearray()
        for byte in allowed:
            kind = _key(path.extend(bytes((byte,))))
            kinds[kind] += 1
            if kinds[kind] <= self._budget.alike + 1:
                some.append(byte)
        return bytes(some)

    def _hints(self, node: _Node) -> Iterator[int]:
        """Next bytes of what patterns and names would have."""
        scanner = node.path.scanner
        if scanner is None:
            text = node.start.text + node.path.tail
            for pattern in self._guide.patterns:
                with contextlib.suppress(UnicodeDecodeError):  # in the middle of a character
                    if rest := pattern.complete(text.decode()):
                        yield rest.encode()[0]
        elif scanner.string is not None:
            yield from (guess[0] for guess in guesses(node.path, self._guide.patterns))
            if scanner.expects_name:
                yield from (
                    name[len(scanner.string)]
                    for name in self._guide.names
                    if name.startswith(scanner.string) and name != scanner.string
                )

    def _extended(self, node: _Node, text: bytes) -> _Node:
        path = node.path.extend(text)
        tail, counts, live = path.tail, list(node.counts), node.live
        for end in range(len(counts), len(tail) + 1):
            begun = (*live, end - 1) if counts[end - 1] else live
            live = tuple(begin for begin in begun if self._vocabulary.begins(tail[begin:end]))
            bits = 0
            for begin in live:
                if self._vocabulary.id_of(tail[begin:end]) is not None:
                    bits |= counts[begin] << 1
            counts.append(bits)
        return _Node(node.start, path, _marks(node.marks, path, text), tuple(counts), live)

    def _fewest(self, node: _Node) -> int:
        """Tokens that the bytes so far need at least, an unfinished one counted."""
        return min((_lowest(node.counts[begin]) + 1 for begin in node.live), default=_MANY)


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _spread(things: list[T], most: int) -> list[T]:
    """Some of them, the first and the last included."""
    if len(things) <= most:
        return things
    return [things[n * (len(things) - 1) // (most - 1)] for n in range(most)]


def _key(path: Path) -> object:
    scanner = path.scanner
    around = (scanner.containers, scanner.string is None, scanner.expects_name) if scanner else None
    return path.matcher.compute_bitmask(), path.matcher.compute_ff_bytes(), around


def _marks(marks: bytes, path: Path, text: bytes) -> bytes:
    """What tells states apart that look alike: in JSON the values so far, else the open brackets."""
    if path.scanner is not None:
        return marks + b"," if path.scanner.string is None and text.endswith(b",") else marks
    for byte in text:
        if byte in _OPEN:
            marks += bytes((byte,))
        elif byte in _CLOSED:
            marks = marks[:-1]
    return marks
