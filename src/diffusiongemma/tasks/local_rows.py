"""Rows of one's own as a task: facts, languages, long prompts, whatever a file says."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusiongemma.errors import InputError
from diffusiongemma.tasks.base import Example

__all__ = ["MATCHES", "LocalRows"]


def _exact(text: str, answer: str) -> bool:
    return text.strip() == answer.strip()


def _contains(text: str, answer: str) -> bool:
    return " ".join(answer.casefold().split()) in " ".join(text.casefold().split())


def _json(text: str, answer: str) -> bool:
    try:
        return bool(json.loads(text) == json.loads(answer))
    except (ValueError, RecursionError):
        return False


MATCHES: dict[str, Callable[[str, str], bool]] = {"exact": _exact, "contains": _contains, "json": _json}
"""When an answer is right: but for space around it the same, with the right one in it (in any case of letters), the same JSON."""


class LocalRows:
    """A file of JSON Lines, a row an example, in the file's order.

    A row has ``prompt`` and ``answer`` (one, or a list of those that are right), and may have ``match`` (of ``MATCHES``; unset:
    ``exact``), ``group`` and ``max_tokens``.

    Args:
        path: the file; it is read when examples are asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = path.stem
        self.summary = f"rows of {path}"

    @property
    def max_tokens(self) -> int:
        """The most that a row asks for; 256 where none does."""
        return max((tokens for _, tokens in self._rows if tokens), default=256)

    @property
    def count(self) -> int:
        """Rows."""
        return len(self._rows)

    def examples(self, count: int, seed: int) -> Sequence[Example]:
        """The first rows, whatever the seed, which the sampler has.

        Raises:
            InputError: a file that cannot be read, or a row that is none.
        """
        return [example for example, _ in self._rows[:count]]

    def score(self, example: Example, text: str) -> float:
        """1 where one of the right answers is matched."""
        answers, match = example.detail
        return float(any(MATCHES[match](text, answer) for answer in answers))

    @cached_property
    def _rows(self) -> list[tuple[Example, int | None]]:
        try:
            lines = self._path.read_text("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self._path} cannot be read: {error}") from error
        rows = [_row(line, f"{self._path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
        if not rows:
            raise InputError(f"{self._path} has no row; a row is a JSON object with prompt and answer")
        return rows


def _row(line: str, where: str) -> tuple[Example, int | None]:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"]:
        raise InputError(f"{where} has no prompt, a text that is not empty")
    if odd := row.keys() - {"prompt", "answer", "match", "group", "max_tokens"}:
        raise InputError(f"{where} has {', '.join(sorted(odd))}; allowed: prompt, answer, match, group, max_tokens")
    answers = [row["answer"]] if isinstance(row.get("answer"), str) else row.get("answer")
    if not isinstance(answers, list) or not answers or not all(isinstance(one, str) for one in answers):
        raise InputError(f"{where} has no answer: a text, or a list of those that are right")
    match, group, tokens = row.get("match", "exact"), row.get("group", ""), row.get("max_tokens")
    if match not in MATCHES:
        raise InputError(f"{where} has match {match!r:.40}; allowed: {', '.join(MATCHES)}")
    if not isinstance(group, str) or not (tokens is None or (isinstance(tokens, int) and 1 <= tokens <= 1 << 20)):
        raise InputError(f"{where}: group must be a text and max_tokens a whole number from 1")
    return Example(row["prompt"], answers[0], group, (answers, match)), tokens
