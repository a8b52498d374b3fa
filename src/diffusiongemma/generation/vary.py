"""Variants of a text: a share of its tokens is noise again and denoised, the others are pinned. The text twin of image-to-image."""

import random
from collections.abc import Sequence

from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.generation.context import EditContext, OnEvent, span_text, write_rows
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["check_vary", "vary_text"]

MAX_VARIANTS = 100_000
"""Variants of a text."""
ROWS = 32
"""Variants denoised at a time."""
_SEEDS = 2**63 - 1


def check_vary(text: str, strength: float, n: int) -> None:
    """Raise what ``vary_text`` would, without a model.

    Raises:
        InputError: an empty text.
        OptionError: a strength outside 0 to 1, or n outside 1 to ``MAX_VARIANTS``.
    """
    if not isinstance(text, str) or not text:
        raise InputError(f"the text to vary is {text!r:.100}; give at least one character")
    if not isinstance(strength, int | float) or isinstance(strength, bool) or not 0 <= strength <= 1:
        raise OptionError(f"strength is {strength!r}; it must be from 0 (nothing changes) to 1 (all is written anew)")
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_VARIANTS:
        raise OptionError(f"n is {n!r:.50}; it must be from 1 to {MAX_VARIANTS:,}")


def vary_text(context: EditContext, text: str, strength: float, n: int, on_event: OnEvent | None = None) -> list[str]:
    """Write variants; each draws its own tokens to renew, from (seed, number).

    Args:
        context: what the text stands in.
        text: not empty.
        strength: share of its tokens to write anew, 0 to 1.
        n: variants.
        on_event: called with each event of the rows; each batch counts its rows from 0.

    Returns:
        n texts in order, in which what was not renewed stands unchanged; some may be alike.
    """
    check_vary(text, strength, n)
    units = _units(context.tokenizer, context.encode(text))
    drawn = [_drawn(units, strength, context.params.seed, number) for number in range(n)]
    result: list[str] = []
    for start in range(0, n, ROWS):
        result += _batch(context, units, drawn[start : start + ROWS], context.params.seed + start, on_event)
    return result


def _batch(
    context: EditContext,
    units: Sequence[tuple[list[int], str]],
    drawn: Sequence[frozenset[int]],
    seed: int,
    on_event: OnEvent | None,
) -> list[str]:
    pins = []
    for open_units in drawn:
        tokens = [token for at, (ids, _) in enumerate(units) for token in ([-1] * len(ids) if at in open_units else ids)]
        pins.append(context.closed(tokens, -(-len(tokens) // context.canvas) * context.canvas))
    seeds = [(seed + row) & _SEEDS for row in range(len(pins))]
    results = write_rows(context, [context.prompt] * len(pins), pins, seeds, None, list(map(len, pins)), on_event)
    return [_text(context, units, open_units, result.token_ids) for open_units, result in zip(drawn, results, strict=True)]


def _text(context: EditContext, units: Sequence[tuple[list[int], str]], open_units: frozenset[int], ids: Sequence[int]) -> str:
    """Kept units as they were; each run of renewed ones as a span."""
    parts: list[str] = []
    run: list[int] = []
    at = 0
    for unit, (tokens, text) in enumerate(units):
        here = ids[at : at + len(tokens)]
        at += len(tokens)
        if unit in open_units:
            run += here
            continue
        parts += [span_text(context, run), text]
        run = []
    return "".join([*parts, span_text(context, run)])


def _units(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[list[int], str]]:
    """A text's tokens with their text, those that share a character together: none of it is cut."""
    units: list[tuple[list[int], str]] = []
    group: list[int] = []
    for token in ids:
        group.append(token)
        part = tokenizer.decode(group, skip_special=False)
        if not part.endswith("\ufffd"):
            units.append((group, part))
            group = []
    if group:
        units.append((group, tokenizer.decode(group, skip_special=False)))
    return units


def _drawn(units: Sequence[object], strength: float, seed: int, number: int) -> frozenset[int]:
    """Units to renew: at least one where the strength is above 0."""
    count = min(len(units), max(round(strength * len(units)), int(strength > 0)))
    return frozenset(random.Random(f"{seed}/{number}").sample(range(len(units)), count))
