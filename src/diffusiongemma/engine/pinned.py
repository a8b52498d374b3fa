"""Rows held to a grammar with tokens pinned in them: what is read from the left must leave a way through the pins to come.

A cursor knows only what may follow. So a row keeps a plan: tokens from where it stands through every pin, and on to the end of a
text. The canvas is followed as far as some plan is left behind it: the old one, where its tokens may follow all the same, or a
new one that is searched for (``constraints.through``). Where none is found, the canvas gives way to the best allowed token, and
that to the plan's. So a plan there is always, and pins and grammar are both kept. That the search is not complete costs choices
of the model, never the text; only before the first step, where there is no plan yet, it can mean that an answer is refused that
would have been possible.
"""

from collections.abc import Sequence
from dataclasses import replace

from diffusiongemma.constraints import AnyCursor, Grammar, ReplyGrammar
from diffusiongemma.constraints.through import AGAIN, EFFORTS, Way
from diffusiongemma.constraints.work import PLAN_WORK
from diffusiongemma.engine.held import MENDED_A_STEP, BestOf, Held, HeldRow, Rules, read_on, settled
from diffusiongemma.engine.pins import last_set
from diffusiongemma.errors import ConstraintError

__all__ = ["PinnedRow", "held_row"]

SEARCHES_A_STEP, SEARCHES_A_COMMIT = 4, 16
"""Searches for a new plan; a few milliseconds each, and only where the canvas leaves the old one."""
_ANY = 1 << 14
_WAYS = 256
"""Ways through pins that a grammar keeps, from when a request is made to when it gets its row."""


def held_row(
    grammar: Grammar | ReplyGrammar | Rules | None,
    max_tokens: int,
    stop_ids: Sequence[int],
    pins: Sequence[int] | None = None,
    row: int = 0,
) -> Held | None:
    """The place of an answer in what it is held to; None where it is free.

    Args:
        grammar: what the answer must be, or the rules that it keeps.
        max_tokens: of the answer.
        stop_ids: tokens that end it.
        pins: tokens fixed from its start, -1 where it is open.
        row: its number, for errors.

    Raises:
        ConstraintError: grammar and pins contradict each other, or no text that keeps both was found.
    """
    given = list(pins or ())[: last_set(pins or ())]
    if grammar is None:
        return None
    if isinstance(grammar, ReplyGrammar):
        if given:
            raise ConstraintError(
                f"row {row}: pins may not be combined with tools, a thinking budget, or a constraint after a thought; "
                "leave them out"
            )
        return HeldRow(grammar.start(), max_tokens, stop_ids)
    if not isinstance(grammar, Grammar):
        return grammar.row(max_tokens, stop_ids, given)
    if not given:
        plan = grammar.shortest if len(grammar.shortest) <= max_tokens else None
        return HeldRow(grammar.start(), max_tokens, stop_ids, plan)
    return PinnedRow(grammar, max_tokens, stop_ids, given, row)


class PinnedRow:
    """A grammar's place in one answer with pins.

    Args:
        grammar: what the answer must be.
        max_tokens: of the answer.
        stop_ids: tokens that end it.
        given: tokens fixed from its start, -1 where it is open; the last is a token. It may be a stop token: the text ends there.
        row: its number, for errors.

    Attributes:
        cursor: where the answer stands.
        left: tokens that it may still have.
        plan: tokens through all pins, and on to the end of a text if ``ends``.

    Raises:
        ConstraintError: no text of the grammar has these tokens at these positions, or none was found; the message says which.
    """

    def __init__(self, grammar: Grammar, max_tokens: int, stop_ids: Sequence[int], given: Sequence[int], row: int = 0) -> None:
        self.cursor, self.left, self.given = grammar.start(), max_tokens, list(given)
        self.stop_ids = frozenset(stop_ids)
        self._behind: HeldRow | None = None  # takes over behind the last pin
        way = _first_way(grammar, max_tokens, self.stop_ids, tuple(given), row)
        self.plan, self.ends = way.tokens, way.ends

    @property
    def whole(self) -> bool:
        """Whether what was committed is a whole text of the grammar."""
        return self._behind.whole if self._behind else self.cursor.accepting and not self.given

    def forced(self, length: int) -> list[int]:
        """The pins of the next canvas, and what the grammar forces before them or beside them: ``[L]``."""
        if self._behind:
            return self._behind.forced(length)
        share = self.given[:length] + [-1] * (length - len(self.given))
        known = self.cursor.forced()[: min(length, len(self.given))]
        known = known[: _alike(known, _placed(known, share))]
        # The engine forces bytes and cuts them as the tokenizer would; with pins behind they may have to be cut otherwise.
        if _Reading(self, known, None, SEARCHES_A_STEP).reach() < len(known):
            known = known[: _alike(known, self.plan)]
        return known + share[len(known) :]

    def read(self, tokens: Sequence[int], entropy: Sequence[float], best_of: BestOf) -> tuple[list[int], list[int], bool]:
        """Read a canvas as far as a few replacements lead; behind a position that is not sure nothing is mended."""
        if self._behind:
            return self._behind.read(tokens, entropy, best_of)
        self.cursor.begin()
        reading = _Reading(self, tokens, best_of, SEARCHES_A_STEP)
        complete = reading.run(MENDED_A_STEP, settled(entropy))
        at, mended, held = reading.at, reading.tokens, reading.held
        if complete and at < min(len(tokens), self.left) and not reading.stopped:
            rest, more, complete = read_on(
                reading.cursor, mended[at:], self.left - at, entropy[at:], _shifted(best_of, at), self.stop_ids
            )
            mended, held = mended[:at] + rest, held + [at + position for position in more]
        return mended, held, complete

    def commit(self, tokens: Sequence[int], best_of: BestOf) -> list[int]:
        """Read a canvas to its end, always with a way through the pins behind, and go on there."""
        if self._behind:
            return self._behind.commit(tokens, best_of)
        self.cursor.begin()
        reading = _Reading(self, tokens, best_of, SEARCHES_A_COMMIT)
        reading.run(len(tokens))
        at, mended = reading.at, reading.tokens
        self.cursor, self.left, self.plan = reading.cursor, self.left - at, reading.plan
        self.given = self.given[at:]
        if not self.given and not reading.stopped:
            self._behind = HeldRow(self.cursor, self.left, sorted(self.stop_ids), self.plan if self.ends else None)
            if at < len(tokens) and self.left:
                mended[at:] = self._behind.commit(mended[at:], _shifted(best_of, at))
        return mended


class _Reading:
    """One reading up to the last pin, or to the end of the canvas.

    ``cursor`` stands behind ``at`` tokens, ``plan`` goes on there.
    """

    def __init__(self, row: "PinnedRow", tokens: Sequence[int], best_of: BestOf | None, searches: int) -> None:
        self._given, self._left, self._ends, self._stop_ids = row.given, row.left, row.ends, row.stop_ids
        self.cursor, self.plan, self.best_of, self._searches = row.cursor.copy(), row.plan, best_of, searches
        self._end = min(len(tokens), len(self._given))
        self.tokens = _placed(tokens[: self._end], self._given) + list(tokens[self._end :])
        self.at = 0
        self.held: list[int] = []

    @property
    def stopped(self) -> bool:
        """The last pin was a stop token, and is read."""
        return self.at == len(self._given) and self._given[-1] in self._stop_ids

    def run(self, choices: int, sure: int | None = None) -> bool:
        """Read on; False where more choices would have to be replaced than ``choices``, or one behind ``sure``."""
        while True:
            self.reach()
            if self.at >= self._end:
                return True
            if sure is not None and self.at > sure:
                return False
            if self._write(self._forced()):
                continue
            if not choices:
                return False
            choices -= 1
            assert self.best_of is not None
            allowed = self.cursor.allowed()
            allowed[list(self._stop_ids)] = False
            if not (bool(allowed.any()) and self._write([self.best_of(self.at, allowed)])):
                self._write(self.plan[:1])

    def reach(self) -> int:
        """Take as many of the canvas's tokens as leave a way behind them; returns where that leads."""
        count = self.cursor.validate(self.tokens[self.at : self._end])
        within = self.tokens[self.at : self.at + count]
        stop = next((n for n, token in enumerate(within) if token in self._stop_ids and self.at + n + 1 < len(self._given)), count)
        if not self._take(within[:stop]):
            low, high, best = 0, stop, None  # a way is left behind low
            while high - low > 1:
                middle = (low + high) // 2
                if found := self._leaves(within[:middle]):
                    low, best = middle, found
                else:
                    high = middle
            if best:
                self.cursor, self.plan = best
                self.at += low
        return self.at

    def _forced(self) -> list[int]:
        known = self.cursor.forced()[: self._end - self.at]
        return known[: _alike(known, _placed(known, self._given[self.at :]))]

    def _write(self, tokens: Sequence[int]) -> bool:
        if not tokens or not self._take(tokens):
            return False
        begin = self.at - len(tokens)
        self.held.extend(at for at in range(begin, self.at) if self._given[at] == -1)
        self.tokens[begin : self.at] = tokens
        return True

    def _take(self, tokens: Sequence[int]) -> bool:
        """Go on with tokens that may follow, if a way is left behind them."""
        found = self._leaves(tokens)
        if found is None:
            return False
        self.cursor, self.plan = found
        self.at += len(tokens)
        return True

    def _leaves(self, tokens: Sequence[int]) -> tuple[AnyCursor, list[int]] | None:
        """Where tokens that may follow lead, and a way on from there."""
        count = len(tokens)
        rest = self.plan[count:]
        after = self.cursor.copy()
        for token in tokens:
            after.advance(token)
        if list(tokens) == self.plan[:count] or (len(self.plan) >= count and self._follows(after, rest)):
            return after, rest
        if not self._searches:
            return None
        self._searches -= 1
        begin = self.at + count
        way = after.through(self._given[begin:], self._left - begin, AGAIN)
        passed = way.passed == len(self._given[begin:])
        return (after, way.tokens) if passed and (way.ends or not self._ends) else None

    def _follows(self, after: AnyCursor, rest: Sequence[int]) -> bool:
        """Does the rest of the old plan go on from here too?"""
        if after.validate(rest) < len(rest):
            return False
        behind = after.copy()
        for token in rest:
            behind.advance(token)
        return behind.accepting or not self._ends


def _placed(tokens: Sequence[int], given: Sequence[int]) -> list[int]:
    """Tokens with what is given at its places."""
    return [token if pin == -1 else pin for token, pin in zip(tokens, given, strict=False)]


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens with which both begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def _shifted(best_of: BestOf, by: int) -> BestOf:
    return lambda at, allowed: best_of(at + by, allowed)


def _first_way(grammar: Grammar, limit: int, stop_ids: frozenset[int], given: tuple[int, ...], row: int) -> Way:
    """The way that was found when the request was made, when it gets its row; the grammar keeps a few."""
    key = (limit, stop_ids, given)
    way = grammar.ways.get(key)
    if way is None:
        way = _found_way(grammar, limit, stop_ids, given, row)
        for old in list(grammar.ways)[: len(grammar.ways) + 1 - _WAYS]:
            grammar.ways.pop(old, None)
        grammar.ways[key] = way
    return way


def _found_way(grammar: Grammar, limit: int, stop_ids: frozenset[int], given: tuple[int, ...], row: int) -> Way:
    """A way from the start through all pins, and to the end of a text if without pins there is one within the limit."""
    kind, vocabulary = grammar.constraint.kind.replace("_", " "), grammar.vocabulary
    for at, token in enumerate(given):
        pinned = f"row {row} pins token {token} at position {at}"
        if token in stop_ids and at + 1 < len(given):
            raise ConstraintError(f"{pinned}, which ends the text, and others behind it; pin nothing behind a stop token")
        if token != -1 and token not in stop_ids and not (0 <= token < vocabulary.size and vocabulary.token_bytes[token]):
            raise ConstraintError(f"{pinned}, which stands for no bytes; a text of a grammar cannot have it")
    start = grammar.start()
    start.begin(PLAN_WORK)
    for effort in EFFORTS:
        way = start.through(given, limit, effort)
        if way.ends:
            return way
    short = len(grammar.shortest) > limit and start.ending(limit) is None
    if short:
        # Too few tokens for any text: as without pins, the answer ends with "length".
        start.begin(PLAN_WORK)
        way = replace(start.through(given, _ANY, EFFORTS[-1]), ends=False)
    if way.passed == len(given):
        if short:
            return way
        raise ConstraintError(
            f"row {row}: behind its last pin, at position {len(given) - 1}, no text of the {kind} was found to end within "
            f"max_tokens {limit}; raise max_tokens, or leave pins out"
        )
    at = next(at for at in range(way.passed, len(given)) if given[at] != -1)
    what = "a stop token" if given[at] in stop_ids else f"token {given[at]} {vocabulary.token_bytes[given[at]]!r}"
    before = " with the pins before it" if any(token != -1 for token in given[:at]) else ""
    raise ConstraintError(
        f"row {row} pins {what} at position {at}, and no text of the {kind} was found that has it there{before}; a beginning "
        f"that was: {vocabulary.text(way.tokens)[-60:]!r}"
    )
