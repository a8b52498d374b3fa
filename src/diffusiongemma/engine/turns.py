"""Whose turn it is: requests that wait for a place among the rows that step, and rows that have given theirs up for a while.

A place goes to the client with the fewest, of its requests to the one with the fewest, then to whoever has waited longest. Who has
had a place for ``TURN_SECONDS`` gives it up to one that has fewer, and gets it back in its turn; nothing of a parked row changes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from diffusiongemma.engine.sequence import SequenceState

__all__ = ["TURN_SECONDS", "displaced", "first_in_turn"]

TURN_SECONDS = 1.0
"""Most answers of a small model are shorter than that: only long ones are interrupted, and only where others wait."""


class _Places:
    """How many places each client, and each request of it, has."""

    def __init__(self, placed: Sequence[SequenceState]) -> None:
        self._clients = Counter(row.request.client for row in placed)
        self._keys = Counter(row.key for row in placed)

    def of(self, one: SequenceState) -> tuple[int, int]:
        return self._clients[one.request.client], self._keys[one.key]


def first_in_turn(line: Iterable[SequenceState], placed: Sequence[SequenceState]) -> SequenceState | None:
    """Who gets the next place.

    Args:
        line: those without one, who has waited longest first.
        placed: rows that have one.
    """
    places = _Places(placed)
    return min(line, key=places.of, default=None)


def displaced(one: SequenceState, placed: Sequence[SequenceState], now: float) -> SequenceState | None:
    """The row that gives its place to one that waits; None: nobody has to.

    Args:
        one: who waits.
        placed: rows that have a place.
        now: seconds, on the clock of ``SequenceState.placed``.
    """
    places = _Places(placed)
    clients, rows = places.of(one)

    def has_more(row: SequenceState) -> bool:
        theirs, its = places.of(row)
        return its > rows if row.request.client == one.request.client else theirs > clients

    over = [row for row in placed if now - row.placed > TURN_SECONDS and has_more(row)]
    return max(over, key=lambda row: (*places.of(row), now - row.placed), default=None)
