"""Which answers of a batch are worth keeping: a second file, made of the finished first one, in the order of the rows."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from diffusiongemma.constraints import Validator
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.lines import json_line

__all__ = ["Conditions", "keep"]

_JUDGE = re.compile(r"judge\s*>=?\s*([0-9.eE+-]+)")
_NEAR = 0.8
"""Share of five-character pieces that two texts have in common from which one is a near-duplicate of the other."""
_PIECE, _SKETCH = 5, 12
"""Characters of a piece; smallest hashes of a text's pieces, one of which near-duplicates share."""


@dataclass(frozen=True)
class Conditions:
    """What an answer must be to be kept; all of it.

    Attributes:
        valid: it ended with ``stop``, and is valid for the schema, if there is one.
        judge: the least probability that the causal role gives it, the geometric mean of its tokens'; None: any.
        new: it is no near-duplicate of an answer that is kept already.
        schema: JSON of the schema; None: there is none.
    """

    valid: bool = False
    judge: float | None = None
    new: bool = False
    schema: str | None = None

    @classmethod
    def of(cls, spelled: Sequence[str], schema: str | None = None) -> "Conditions":
        """Of what a user writes: ``valid``, ``judge>0.5``, ``new``.

        Raises:
            OptionError: another word, or a number outside 0 to 1.
        """
        fields: dict[str, Any] = {}
        for condition in spelled:
            found = _JUDGE.fullmatch(condition.strip())
            try:
                least = float(found[1]) if found else None
            except ValueError:
                least = math.nan
            if least is not None and 0 <= least <= 1:
                fields["judge"] = least
            elif condition.strip() in ("valid", "new"):
                fields[condition.strip()] = True
            else:
                raise OptionError(f"--keep-if is {condition!r:.100}; allowed: valid, new, judge>X with X from 0 to 1", "keep_if")
        return cls(schema=schema, **fields)


def keep(source: Path, target: Path, conditions: Conditions) -> Counter[str]:
    """Write the lines of a finished output that are kept.

    Args:
        source: of ``batch_file``, rows of the caller's own.
        target: is replaced.
        conditions: see there.

    Returns:
        How many are ``kept``, and for each reason how many are not.

    Raises:
        InputError: the output cannot be read, or the target not written.
    """
    counts, seen = Counter[str](), _Seen()
    validator = None if conditions.schema is None else Validator(conditions.schema)
    new = target.with_name(f".{target.name}.new")
    try:
        lines = sorted((json.loads(line) for line in source.read_bytes().split(b"\n") if line), key=lambda line: int(line["row"]))
        with new.open("wb") as file:
            for line in lines:
                reason = _why_not(line, conditions, validator, seen)
                counts[reason or "kept"] += 1
                if reason is None:
                    file.write(json_line(line) + b"\n")
        new.replace(target)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"what is kept of {source} cannot be written to {target}: {error}") from error
    return counts


def _why_not(line: Mapping[str, Any], conditions: Conditions, validator: Validator | None, seen: "_Seen") -> str | None:
    if line.get("error"):
        return "failed"
    text = line["text"] or ""
    if conditions.valid and (line["finish_reason"] != "stop" or (validator is not None and not validator.takes(text))):
        return "not valid"
    if conditions.judge is not None and (line["confidence"] is None or line["confidence"] < conditions.judge):
        return "doubted"
    if conditions.new and not seen.add(text):
        return "near-duplicate"
    return None


class _Seen:
    """Texts, of which a new one may be a near-duplicate."""

    def __init__(self) -> None:
        self._texts: list[frozenset[int]] = []
        self._by_hash: dict[int, list[int]] = {}

    def add(self, text: str) -> bool:
        """Add a text; False: it is a near-duplicate, and is not added."""
        plain = " ".join(text.lower().split())
        pieces = frozenset(crc32(plain[at : at + _PIECE].encode()) for at in range(max(1, len(plain) - _PIECE + 1)))
        sketch = sorted(pieces)[:_SKETCH]
        near = {place for key in sketch for place in self._by_hash.get(key, ())}
        if any(len(pieces & self._texts[at]) >= _NEAR * len(pieces | self._texts[at]) for at in near):
            return False
        for key in sketch:
            self._by_hash.setdefault(key, []).append(len(self._texts))
        self._texts.append(pieces)
        return True
