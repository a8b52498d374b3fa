"""Pins as a caller writes them -> a list of token ids a row, -1 where the model writes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from diffusiongemma.errors import InputError

__all__ = ["Pins", "last_set", "pins_by_row"]

Pins = Sequence[int] | Mapping[int, int] | Sequence[tuple[int, int]]
"""Token ids from the start of an answer, -1 where open; position to token; or (position, token) pairs."""


def last_set(tokens: Sequence[int]) -> int:
    """Positions up to and with the last that is not open (-1)."""
    return next((len(tokens) - at for at, token in enumerate(reversed(tokens)) if token != -1), 0)


def pins_by_row(pins: Pins | Sequence[Pins], rows: int, most: int) -> list[list[int]]:
    """What each row has pinned.

    Args:
        pins: of all rows, or a list with those of each row; tuples are (position, token) pairs.
        rows: how many there are.
        most: positions of an answer.

    Returns:
        A list of token ids for each row, -1 where it is open.

    Raises:
        InputError: what is no pins at all, pins for another number of rows, two tokens for one position, or a position outside the
            answer.
    """
    if not _is_some(pins):
        raise _no_pins("pins", pins)
    if isinstance(pins, Mapping) or not any(map(_is_some, pins)) or any(isinstance(pin, tuple) for pin in pins):
        return [_row(cast(Pins, pins), 0, most)] * rows
    if len(pins) != rows:
        raise InputError(f"there are pins for {len(pins)} rows and {rows} prompts; give one list for all, or one for each")
    return [_row(cast(Pins, given), row, most) for row, given in enumerate(pins)]


def _row(pins: Pins, row: int, most: int) -> list[int]:
    if not _is_some(pins):
        raise _no_pins(f"pins of row {row}", pins)
    if isinstance(pins, Mapping):
        return _placed(pins.items(), row, most)
    if any(isinstance(pin, tuple) for pin in pins):
        return _placed(cast(Sequence[tuple[int, int]], pins), row, most)
    if wrong := [pin for pin in pins if not _is_id(pin)]:
        raise InputError(
            f"row {row} has {wrong[0]!r:.100} among its pins; write token ids, -1 where the model writes, or (position, token) "
            "pairs"
        )
    return list(cast(Sequence[int], pins))


def _is_some(pins: object) -> bool:
    return isinstance(pins, Sequence | Mapping) and not isinstance(pins, str | bytes)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _no_pins(what: str, given: object) -> InputError:
    return InputError(
        f"{what} is {given!r:.100}; give token ids from the start of the answer, -1 where the model writes, (position, token) "
        "pairs, a mapping of position to token, or a list with one of these for each prompt"
    )


def _placed(pairs: Iterable[tuple[int, int]], row: int, most: int) -> list[int]:
    at: dict[int, int] = {}
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(map(_is_id, pair)):
            raise InputError(f"row {row} has {pair!r:.100} among its pins; write (position, token) pairs, or token ids alone")
        position, token = pair
        if not 0 <= position < most:
            raise InputError(f"row {row} pins position {position}; max_tokens {most} gives the positions 0 to {most - 1}")
        if at.setdefault(position, token) != token:
            raise InputError(f"row {row} pins position {position} to {at[position]} and to {token}; it can hold one token")
    return [at.get(position, -1) for position in range(max(at, default=-1) + 1)]
