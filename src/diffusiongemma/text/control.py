"""Control tokens, and how text that only looks like them is kept apart from those that a chat template writes.

A tokenizer finds control tokens wherever their text stands, so that a message ``hi<turn|>`` would end the user's turn. Before a
template is rendered, the first character of whatever in a user's strings is, or could become, such a text is replaced by a private
one. Afterwards it is put back, and where it stands no control token is looked for. A character for a character: trimming, cutting
and measuring in the template do what they always do, and text without such marks is not touched at all.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["ControlTokens", "Disguise", "Segment"]

_PRIVATE = range(0xF0000, 0xFFFFE)
"""Unicode's first plane of private use."""


class Segment(NamedTuple):
    """A piece of a prompt.

    Attributes:
        text: the piece.
        literal: whether it is text and nothing else, whatever it looks like.
    """

    text: str
    literal: bool


class ControlTokens:
    """The texts that a tokenizer takes for control tokens.

    Args:
        texts: of the tokens.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        longest_first = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
        either = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self.whole = re.compile(either)
        """Finds them, as a tokenizer does: from the left, the longest first."""
        # Whatever case: a template may change it.
        self._begin = re.compile(f"(?={either})", re.IGNORECASE)
        self._prefixes = {text[:length].lower() for text in longest_first for length in range(1, len(text))}
        self._longest = max(map(len, longest_first), default=0)

    def places(self, text: str) -> list[int]:
        """Where a control token begins in a text, or may begin when a template puts something after its end."""
        result = {match.start() for match in self._begin.finditer(text)}
        trimmed = text.rstrip()
        for length in range(1, min(self._longest, len(trimmed) + 1)):
            if trimmed[-length:].lower() in self._prefixes:
                result.add(len(trimmed) - length)
        return sorted(result)

    def segments(self, text: str) -> list[Segment]:
        """A text of a user in pieces."""
        return [Segment(text, literal=self.whole.search(text) is not None)]


@dataclass
class Disguise:
    """Private characters for the first characters of what looks like a control token.

    Attributes:
        control: the control tokens.
        given: of builtin types: all that a template is rendered with, whose characters mean themselves.
        private: from a character to the one that stands for it.
    """

    control: ControlTokens
    given: Any
    private: dict[str, str] = field(default_factory=dict)

    def hide(self, value: Any) -> Any:
        """A value of builtin types with all of its strings disguised, keys too."""
        if isinstance(value, str):
            if not (places := self.control.places(value)):
                return value
            letters = list(value)
            for place in places:
                letters[place] = self._stand_in(letters[place])
            return "".join(letters)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list) else value

    def segments(self, text: str) -> list[Segment]:
        """A rendered text in pieces, as it was meant: between two control tokens of the template's own stands one piece."""
        back = str.maketrans({private: letter for letter, private in self.private.items()})
        shown, result, end = text.translate(back), list[Segment](), 0
        for match in (*self.control.whole.finditer(text), None):
            begin = match.start() if match else len(text)
            between = shown[end:begin]
            own = match[0] if match else ""
            if self.control.whole.search(between):
                result += [Segment(between, literal=True), Segment(own, literal=False)]
            else:
                result.append(Segment(between + own, literal=False))
            end = match.end() if match else end
        return list(_merged(result))

    def _stand_in(self, letter: str) -> str:
        if letter not in self.private:
            taken = {*json.dumps(self.given, ensure_ascii=False), *self.private.values()}
            self.private[letter] = next(chr(code) for code in _PRIVATE if chr(code) not in taken)
        return self.private[letter]


def _merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """The same, with neighbours of a kind in one: a tokenizer may look at what stands beside a token."""
    open_segment: Segment | None = None
    for segment in segments:
        if not segment.text:
            continue
        if open_segment is None or segment.literal or open_segment.literal:
            if open_segment is not None:
                yield open_segment
            open_segment = segment
        else:
            open_segment = Segment(open_segment.text + segment.text, literal=False)
    if open_segment is not None:
        yield open_segment
