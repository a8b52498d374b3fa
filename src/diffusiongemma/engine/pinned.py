"""Rows constrained to a grammar with tokens pinned in them: what is read from the left must leave a path through the pins to come.

A cursor knows only what may follow. So a row keeps a plan: tokens from where it stands through every pin, and on to the end of a
text. The canvas is followed as far as some plan is left after it: the old one, where its tokens may follow all the same, or a
new one that is searched for (``constraints.pinned_search``). Where none is found, the best allowed token replaces the canvas's,
and the plan's token that. So there always is a plan, and pins and grammar are both kept. That the search is not complete costs
choices of the model, never the text; only before the first step, where there is no plan yet, it can mean that an answer is
refused that would have been possible.
"""

from collections.abc import Sequence
from dataclasses import replace

from diffusiongemma.constraints import AnyCursor, Grammar, ReplyGrammar
from diffusiongemma.constraints.pinned_search import AGAIN, SEARCH_BUDGETS, PinnedPath
from diffusiongemma.constraints.work import PLAN_WORK
from diffusiongemma.engine.constraint import (
    REPAIRS_PER_STEP,
    BestOf,
    ConstraintState,
    GrammarState,
    Rules,
    first_uncertain,
    read_on,
)
from diffusiongemma.engine.pins import last_set
from diffusiongemma.errors import ConstraintError

__all__ = ["PinnedGrammarState", "constraint_state"]

SEARCHES_A_STEP, SEARCHES_A_COMMIT = 4, 16
"""Searches for a new plan; a few milliseconds each, and only where the canvas leaves the old one."""
_ANY = 1 << 14
_PATHS = 256
"""Ways through pins that a grammar keeps, from when a request is made to when it gets its row."""


def constraint_state(
    grammar: Grammar | ReplyGrammar | Rules | None,
    max_tokens: int,
    stop_ids: Sequence[int],
    pins: Sequence[int] | None = None,
    row: int = 0,
) -> ConstraintState | None:
    """The place of an answer in what it is constrained to; None where it is free.

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
        return GrammarState(grammar.start(), max_tokens, stop_ids)
    if not isinstance(grammar, Grammar):
        return grammar.row(max_tokens, stop_ids, given)
    if not given:
        plan = grammar.shortest if len(grammar.shortest) <= max_tokens else None
        return GrammarState(grammar.start(), max_tokens, stop_ids, plan)
    return PinnedGrammarState(grammar, max_tokens, stop_ids, given, row)


class PinnedGrammarState:
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
        self._following: GrammarState | None = None  # takes over after the last pin
        path = _first_path(grammar, max_tokens, self.stop_ids, tuple(given), row)
        self.plan, self.ends = path.tokens, path.ends

    @property
    def is_complete(self) -> bool:
        """Whether what was committed is a whole text of the grammar."""
        return self._following.is_complete if self._following else self.cursor.accepting and not self.given

    def forced_tokens(self, length: int) -> list[int]:
        """The pins of the next canvas, and what the grammar forces before them or beside them: ``[L]``."""
        if self._following:
            return self._following.forced_tokens(length)
        canvas_slice = self.given[:length] + [-1] * (length - len(self.given))
        known = self.cursor.forced_tokens()[: min(length, len(self.given))]
        known = known[: _alike(known, _placed(known, canvas_slice))]
        # The engine forces bytes and cuts them as the tokenizer would; with pins after they may have to be cut otherwise.
        if _Reading(self, known, None, SEARCHES_A_STEP).reach() < len(known):
            known = known[: _alike(known, self.plan)]
        return known + canvas_slice[len(known) :]

    def read(self, tokens: Sequence[int], entropy: Sequence[float], best_of: BestOf) -> tuple[list[int], list[int], bool]:
        """Read a canvas as far as a few replacements lead; after a position that is not sure nothing is repaired."""
        if self._following:
            return self._following.read(tokens, entropy, best_of)
        self.cursor.begin()
        reading = _Reading(self, tokens, best_of, SEARCHES_A_STEP)
        complete = reading.run(REPAIRS_PER_STEP, first_uncertain(entropy))
        at, repaired, constraint = reading.at, reading.tokens, reading.constraint
        if complete and at < min(len(tokens), self.left) and not reading.stopped:
            rest, more, complete = read_on(
                reading.cursor, repaired[at:], self.left - at, entropy[at:], _shifted(best_of, at), self.stop_ids
            )
            repaired, constraint = repaired[:at] + rest, constraint + [at + position for position in more]
        return repaired, constraint, complete

    def commit(self, tokens: Sequence[int], best_of: BestOf) -> list[int]:
        """Read a canvas to its end, always with a path through the pins that follow, and go on there."""
        if self._following:
            return self._following.commit(tokens, best_of)
        self.cursor.begin()
        reading = _Reading(self, tokens, best_of, SEARCHES_A_COMMIT)
        reading.run(len(tokens))
        at, repaired = reading.at, reading.tokens
        self.cursor, self.left, self.plan = reading.cursor, self.left - at, reading.plan
        self.given = self.given[at:]
        if not self.given and not reading.stopped:
            self._following = GrammarState(self.cursor, self.left, sorted(self.stop_ids), self.plan if self.ends else None)
            if at < len(tokens) and self.left:
                repaired[at:] = self._following.commit(repaired[at:], _shifted(best_of, at))
        return repaired


class _Reading:
    """One reading up to the last pin, or to the end of the canvas.

    ``cursor`` stands after ``at`` tokens, ``plan`` goes on there.
    """

    def __init__(self, row: "PinnedGrammarState", tokens: Sequence[int], best_of: BestOf | None, searches: int) -> None:
        self._given, self._left, self._ends, self._stop_ids = row.given, row.left, row.ends, row.stop_ids
        self.cursor, self.plan, self.best_of, self._searches = row.cursor.copy(), row.plan, best_of, searches
        self._end = min(len(tokens), len(self._given))
        self.tokens = _placed(tokens[: self._end], self._given) + list(tokens[self._end :])
        self.at = 0
        self.constraint: list[int] = []

    @property
    def stopped(self) -> bool:
        """The last pin was a stop token, and is read."""
        return self.at == len(self._given) and self._given[-1] in self._stop_ids

    def run(self, choices: int, sure: int | None = None) -> bool:
        """Read on; False where more choices would have to be replaced than ``choices``, or one after ``sure``."""
        while True:
            self.reach()
            if self.at >= self._end:
                return True
            if sure is not None and self.at > sure:
                return False
            if self._write(self._forced_tokens()):
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
        """Take as many of the canvas's tokens as leave a way after them; returns where that leads."""
        count = self.cursor.validate(self.tokens[self.at : self._end])
        within = self.tokens[self.at : self.at + count]
        stop = next((n for n, token in enumerate(within) if token in self._stop_ids and self.at + n + 1 < len(self._given)), count)
        if not self._take(within[:stop]):
            low, high, best = 0, stop, None  # a path is left after low
            while high - low > 1:
                middle = (low + high) // 2
                if result := self._leaves(within[:middle]):
                    low, best = middle, result
                else:
                    high = middle
            if best:
                self.cursor, self.plan = best
                self.at += low
        return self.at

    def _forced_tokens(self) -> list[int]:
        known = self.cursor.forced_tokens()[: self._end - self.at]
        return known[: _alike(known, _placed(known, self._given[self.at :]))]

    def _write(self, tokens: Sequence[int]) -> bool:
        if not tokens or not self._take(tokens):
            return False
        begin = self.at - len(tokens)
        self.constraint.extend(at for at in range(begin, self.at) if self._given[at] == -1)
        self.tokens[begin : self.at] = tokens
        return True

    def _take(self, tokens: Sequence[int]) -> bool:
        """Go on with tokens that may follow, if a way is left behind them."""
        result = self._leaves(tokens)
        if result is None:
            return False
        self.cursor, self.plan = result
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
        path = after.through(self._given[begin:], self._left - begin, AGAIN)
        passed = path.passed == len(self._given[begin:])
        return (after, path.tokens) if passed and (path.ends or not self._ends) else None

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


def _first_path(grammar: Grammar, limit: int, stop_ids: frozenset[int], given: tuple[int, ...], row: int) -> PinnedPath:
    """The way that was found when the request was made, when it gets its row; the grammar keeps a few."""
    key = (limit, stop_ids, given)
    path = grammar.paths.get(key)
    if path is None:
        path = _new_path(grammar, limit, stop_ids, given, row)
        for old in list(grammar.paths)[: len(grammar.paths) + 1 - _PATHS]:
            grammar.paths.pop(old, None)
        grammar.paths[key] = path
    return path


def _new_path(grammar: Grammar, limit: int, stop_ids: frozenset[int], given: tuple[int, ...], row: int) -> PinnedPath:
    """A way from the start through all pins, and to the end of a text if without pins there is one within the limit."""
    kind, vocabulary = grammar.constraint.kind.replace("_", " "), grammar.vocabulary
    for at, token in enumerate(given):
        pinned = f"row {row} pins token {token} at position {at}"
        if token in stop_ids and at + 1 < len(given):
            raise ConstraintError(f"{pinned}, which ends the text, and others after it; pin nothing after a stop token")
        if token != -1 and token not in stop_ids and not (0 <= token < vocabulary.size and vocabulary.token_bytes[token]):
            raise ConstraintError(f"{pinned}, which stands for no bytes; a text of a grammar cannot have it")
    start = grammar.start()
    start.begin(PLAN_WORK)
    for budget in SEARCH_BUDGETS:
        path = start.through(given, limit, budget)
        if path.ends:
            return path
    short = len(grammar.shortest) > limit and start.ending(limit) is None
    if short:
        # Too few tokens for any text: as without pins, the answer ends with "length".
        start.begin(PLAN_WORK)
        path = replace(start.through(given, _ANY, SEARCH_BUDGETS[-1]), ends=False)
    if path.passed == len(given):
        if short:
            return path
        raise ConstraintError(
            f"row {row}: after its last pin, at position {len(given) - 1}, no text of the {kind} was found to end within "
            f"max_tokens {limit}; raise max_tokens, or leave pins out"
        )
    at = next(at for at in range(path.passed, len(given)) if given[at] != -1)
    what = "a stop token" if given[at] in stop_ids else f"token {given[at]} {vocabulary.token_bytes[given[at]]!r}"
    before = " with the pins before it" if any(token != -1 for token in given[:at]) else ""
    raise ConstraintError(
        f"row {row} pins {what} at position {at}, and no text of the {kind} was found that has it there{before}; a beginning "
        f"that was: {vocabulary.text(path.tokens)[-60:]!r}"
    )
