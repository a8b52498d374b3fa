"""A constraint compiled for a vocabulary: in place where that is cheap, else in a process of its own."""

import logging
from collections.abc import Callable
from dataclasses import replace

from diffusiongemma.constraints.compiled import Compiled, read
from diffusiongemma.constraints.constraint import Constraint
from diffusiongemma.constraints.pinned_search import PinnedPath
from diffusiongemma.constraints.process import Gone, Home, Process, why_not
from diffusiongemma.constraints.remote import AnyCursor, RemoteCursor
from diffusiongemma.constraints.validity import Validator
from diffusiongemma.constraints.vocabulary import Vocabulary
from diffusiongemma.errors import ConstraintError, OverloadedError

__all__ = ["Grammar", "compile_grammar"]

_KEPT = 64
"""Grammars kept for each vocabulary, the least recently used ones going first."""
_BYTES = 128 << 20
"""Memory of those that are kept."""
_PROCESS = 32 << 20
"""What a process counts for: four are kept where nothing else is."""
_log = logging.getLogger(__name__)


class Grammar:
    """A constraint compiled for a vocabulary; make it with ``compile_grammar``.

    Args:
        constraint: what it was compiled from.
        vocabulary: what it was compiled for.
        shortest: tokens of a short whole text; none shorter was found.
        size: bytes of memory that it holds, about.
        start: makes a cursor at the beginning of a text.
        process: that it is in; None: it is in this one.
        left_out: of a schema what the grammar does not express: a finished text is validated.

    Attributes:
        paths: through pins that were asked for, with what was asked.
    """

    def __init__(
        self,
        constraint: Constraint,
        vocabulary: Vocabulary,
        shortest: list[int],
        size: int,
        start: Callable[[], AnyCursor],
        process: Process | None = None,
        left_out: tuple[str, ...] = (),
    ) -> None:
        self.left_out = left_out
        checked = left_out and constraint.kind == "json_schema"
        self._validator = Validator(constraint.source, vocabulary.text(shortest).decode(errors="replace")) if checked else None
        self.constraint, self.vocabulary, self.shortest, self.size = constraint, vocabulary, shortest, size
        self.start = start
        self._process = process
        self.paths: dict[object, PinnedPath] = {}

    @property
    def usable(self) -> bool:
        """It can be followed: its process, if it has one, is there."""
        return self._process is None or self._process.usable

    def takes(self, text: str) -> bool | None:
        """Whether a finished text is valid for the schema; None: whatever the grammar writes is."""
        return None if self._validator is None else self._validator.takes(text)

    @property
    def confined(self) -> bool:
        """It is in a process of its own."""
        return self._process is not None


def compile_grammar(constraint: Constraint, vocabulary: Vocabulary, gone: Gone | None = None) -> Grammar:
    """Compile a constraint, or take it from the vocabulary's cache. Any thread may.

    Args:
        constraint: to be compiled.
        vocabulary: to compile it for.
        gone: whether whoever asked has left; what may take seconds is given up then.

    Raises:
        ConstraintError: it is wrong, impossible, too large, or cannot be expressed; the message says which and why.
        OverloadedError: there are too many large ones in use.
        CancelledError: whoever asked has left.
    """
    cache: dict[Constraint, Grammar] = vocabulary.grammars
    with vocabulary.lock:
        known = cache.pop(constraint, None)
        if known is not None and known.usable:
            cache[constraint] = known
            return known
    try:
        grammar = _compiled(replace(constraint, strict=True), vocabulary, gone)
    except ConstraintError:
        if constraint.strict:
            raise
        grammar = _compiled(constraint, vocabulary, gone)
    with vocabulary.lock:
        cache[constraint] = grammar
        while len(cache) > _KEPT or (len(cache) > 1 and sum(one.size for one in cache.values()) > _BYTES):
            cache.pop(next(iter(cache)))
    return grammar


def _compiled(constraint: Constraint, vocabulary: Vocabulary, gone: Gone | None) -> Grammar:
    reading = read(constraint)
    home = None if reading.cost.cheap else _home(vocabulary)
    if home is None:
        here = Compiled(reading, vocabulary)
        return Grammar(constraint, vocabulary, here.shortest, reading.cost.bytes, here.start, left_out=reading.left_out)
    left_out = reading.left_out
    del reading
    process = _forked(home, vocabulary)
    shortest = process.compile((constraint.kind, constraint.source, constraint.spacing, constraint.strict), gone)
    return Grammar(constraint, vocabulary, shortest, _PROCESS, lambda: RemoteCursor(process, vocabulary), process, left_out)


def _forked(home: Home, vocabulary: Vocabulary) -> Process:
    try:
        return home.fork()
    except OverloadedError:
        with vocabulary.lock:  # those that are only kept make room
            for constraint in [constraint for constraint, grammar in vocabulary.grammars.items() if grammar.confined]:
                del vocabulary.grammars[constraint]
        return home.fork()


def _home(vocabulary: Vocabulary) -> Home | None:
    """The process that grammars are forked from; None where there can be none."""
    with vocabulary.starting:
        home: Home | None = vocabulary.home
        if home is not None and home.usable:
            return home
        if (reason := why_not()) is None:
            vocabulary.home = home = Home(vocabulary)
            return home
        if not vocabulary.warned:
            vocabulary.warned = True
            _log.warning("grammars of any size are compiled in this process, which a hostile one can stop: %s", reason)
        return None
