"""Growing ids -> growing text, in time that grows with the ids alone."""

import re
from collections.abc import Sequence
from typing import Protocol

__all__ = ["StopStrings", "TextDeltas"]

_WINDOW, _CONTEXT = 96, 16
"""Tokens that are decoded again with each new one, and those of them that stay when the window moves: a character has at most
four of them, and some decoders look at the token before."""
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Decoder(Protocol):
    """What is asked of a tokenizer."""

    special_ids: frozenset[int]
    """Tokens that are no text."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids."""

    def content(self, token_id: int) -> str:
        """How the vocabulary spells a token."""


class TextDeltas:
    """Turns growing ids into growing text: each delta is final, a character cut at the end waits for its rest.

    However the ids come, the deltas join to the text that the tokenizer decodes from all of them.

    Args:
        tokenizer: decodes.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._ready = 0  # tokens before a row of bytes at the end: it is decoded as a whole, and one byte can spoil all
        self._decoded = 0
        self._known = 0  # characters of the window's text that were given back

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """Add ids; returns the text that became certain with them."""
        for token in ids:
            if token not in self._tokenizer.special_ids:
                self._ids.append(token)
                if not _BYTE.fullmatch(self._tokenizer.content(token)):
                    self._ready = len(self._ids)
        if last:
            self._ready = len(self._ids)
        elif self._ready == self._decoded:
            return ""
        window = self._ids[: self._ready]
        text = self._tokenizer.decode(window)
        self._decoded = self._ready
        # Of a character that is cut at the end decoders show one U+FFFD; those before it will stay.
        certain = text if last or not text.endswith("\ufffd") else text[:-1]
        delta = certain[self._known :]
        self._known = max(self._known, len(certain))
        if len(window) > _WINDOW:
            self._move(window, text)
        return delta

    def _move(self, window: Sequence[int], text: str) -> None:
        """Forget all but the last tokens, where they read the same without the others."""
        again, cut = self._tokenizer.decode(window[-_CONTEXT:]), len(window) - _CONTEXT
        if text.endswith(again) and self._known >= len(text) - len(again):
            self._known -= len(text) - len(again)
            self._ready = self._decoded = _CONTEXT
            del self._ids[:cut]


class StopStrings:
    """Ends a growing text before the first of some strings, and holds back what may become the beginning of one.

    Args:
        stops: not empty, each.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._withheld = ""
        self.found: str | None = None

    @property
    def matched(self) -> bool:
        """Whether one was there."""
        return self.found is not None

    def push(self, text: str, last: bool = False) -> str:
        """Add text; returns what no stop string can take back any more. After one nothing is."""
        if self.matched:
            return ""
        text = self._withheld + text
        at = min((place for stop in self._stops if (place := text.find(stop)) >= 0), default=None)
        begun = len(text) if last else self._begun(text)
        if at is not None and at <= begun:
            self.found, self._withheld = next(stop for stop in self._stops if text.startswith(stop, at)), ""
            return text[:at]
        self._withheld = text[begun:]
        return text[:begun]

    def _begun(self, text: str) -> int:
        """Where the earliest stop string may have begun that is not whole yet."""
        sizes = (n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return len(text) - max(sizes, default=0)
