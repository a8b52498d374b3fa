"""A reply's ids -> its parts: thoughts, calls, and the content between them.

The parts are told apart by their tokens, before anything is decoded, so that no text can look like a mark. Where a checkpoint has
no such tokens, all is content.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusiongemma.text.deltas import TextDeltas
from diffusiongemma.text.markup import HEADER, read_call
from diffusiongemma.text.tokenizer import Tokenizer

__all__ = ["Part", "ReplyParts", "ToolCall"]


@dataclass(frozen=True)
class ToolCall:
    """A call that a model made.

    Attributes:
        name: of the tool.
        arguments: as Python objects.
        id: to answer it by; made up, the model writes none.
    """

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


@dataclass(frozen=True)
class Part:
    """A piece of a reply.

    Attributes:
        kind: ``text``: content; ``thinking``: of a thought; ``call``: a whole call; ``markup``: a call that was cut or is none, or
            a result that the model made up, as it was written; it is content too.
        text: what it adds; empty for a call.
        call: of a call.
    """

    kind: Literal["text", "thinking", "call", "markup"]
    text: str = ""
    call: ToolCall | None = None


class ReplyParts:
    """Takes a reply's ids as they come and gives back its parts; however the ids are cut, the parts join to the same.

    Args:
        tokenizer: decodes, and knows the marks.
        opening: what of the prompt belongs to the reply (``Markup.opening``): it is read, and not given back.

    Attributes:
        thinking_tokens: tokens of thoughts, their marks counted.
    """

    def __init__(self, tokenizer: Tokenizer, opening: Sequence[int] = ()) -> None:
        self._tokenizer, self._markup = tokenizer, tokenizer.markup
        self._text, self._thought = _Content(tokenizer), _Thought(tokenizer, again=False)
        self._thinking = False
        self._region: list[int] = []  # a call or a result that has begun
        self._closes: int | None = None  # what ends it
        self._thought_before = False
        self.thinking_tokens = 0
        self.push(opening)
        self._thought_before, self.thinking_tokens = False, 0

    def push(self, ids: Sequence[int], last: bool = False) -> list[Part]:
        """Add ids, without stop tokens; returns the parts that became certain.

        Args:
            ids: of the reply.
            last: there are no more.
        """
        parts: list[Part] = []
        begun = 0
        for at, token in enumerate(ids):
            if token in self._markup.ids:
                self._add(ids[begun:at], parts)
                self._mark(token, parts)
                begun = at + 1
        self._add(ids[begun:], parts)
        if last:
            self._end_thought(parts)
            self._end_region(parts)
            _say("text", self._text.close(), parts)
        return parts

    def _add(self, ids: Sequence[int], parts: list[Part]) -> None:
        if self._region:
            self._region.extend(ids)
        elif self._thinking:
            self.thinking_tokens += len(ids)
            self._think(self._thought.push(ids), parts)
        else:
            _say("text", self._text.push(ids), parts)

    def _mark(self, token: int, parts: list[Part]) -> None:
        markup = self._markup
        if self._region and token not in (markup.call_open, markup.response_open, markup.thought_open):
            self._region.append(token)
            if token == self._closes:
                self._end_region(parts)
        elif token == markup.thought_open and markup.thoughts:
            self._leave(parts)
            self._thinking, self._thought = True, _Thought(self._tokenizer, again=self._thought_before)
            self.thinking_tokens += 1
        elif token == markup.thought_close and self._thinking:
            self.thinking_tokens += 1
            self._end_thought(parts)
        elif token == markup.thought_close:
            _say("text", self._text.close_thought(), parts)
        elif (token == markup.call_open and markup.calls) or (token == markup.response_open and markup.response_close is not None):
            self._leave(parts)  # a call ends a thought that was left open, too
            self._region, self._closes = [token], markup.call_close if token == markup.call_open else markup.response_close

    def _leave(self, parts: list[Part]) -> None:
        """End what is open."""
        self._end_thought(parts)
        self._end_region(parts)
        _say("text", self._text.close(), parts)
        self._text = _Content(self._tokenizer)

    def _end_thought(self, parts: list[Part]) -> None:
        if self._thinking:
            self._think(self._thought.close(), parts)
            self._thinking = False

    def _think(self, text: str, parts: list[Part]) -> None:
        _say("thinking", text, parts)
        self._thought_before |= bool(text)

    def _end_region(self, parts: list[Part]) -> None:
        ids, self._region = self._region, []
        if not ids:
            return
        call = None
        if ids[0] == self._markup.call_open and ids[-1] == self._closes:
            try:
                call = ToolCall(*read_call([self._tokenizer.decode(piece) for piece in _cut(ids[1:-1], self._markup.quote)]))
            except ValueError:
                call = None
        if call is not None:
            parts.append(Part("call", call=call))
        else:
            _say("markup", self._tokenizer.decode(ids, skip_special=False), parts)


class _Content:
    """A stretch of content.

    At its beginning a thought's header is held back: where a model then closes a thought that it has not opened (the prompt had an
    empty one already), it is dropped.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._deltas = tokenizer, TextDeltas(tokenizer)
        self._begun: str | None = "" if tokenizer.markup.thoughts else None

    def push(self, ids: Sequence[int]) -> str:
        """Add ids; returns text."""
        return self._release(self._deltas.push(ids))

    def close(self) -> str:
        """The rest."""
        text = self._release(self._deltas.push((), last=True)) + (self._begun or "")
        self._deltas, self._begun = TextDeltas(self._tokenizer), None
        return text

    def close_thought(self) -> str:
        """What is said before the end of a thought that has no beginning."""
        text = "" if self._begun is None else self.close()
        return "" if text in (HEADER, HEADER.rstrip()) else text

    def _release(self, text: str) -> str:
        if self._begun is None:
            return text
        self._begun += text
        if HEADER.startswith(self._begun):
            return ""
        text, self._begun = self._begun, None
        return text


class _Thought:
    """A thought, without its header and without the line break at its end, which the chat template writes.

    Args:
        tokenizer: decodes.
        again: it is not the first: a line break parts it from the last.
    """

    def __init__(self, tokenizer: Tokenizer, again: bool) -> None:
        self._deltas = TextDeltas(tokenizer)
        self._begun: str | None = ""
        self._break = ""
        self._before = "\n" if again else ""

    def push(self, ids: Sequence[int]) -> str:
        """Add ids; returns text."""
        return self._release(self._deltas.push(ids))

    def close(self) -> str:
        """The rest."""
        text = self._release(self._deltas.push((), last=True))
        if self._begun and self._begun not in (HEADER, HEADER.rstrip()):
            text = self._before + self._begun
        return text

    def _release(self, text: str) -> str:
        if self._begun is not None:
            self._begun += text
            if HEADER.startswith(self._begun):
                return ""
            text, self._begun = self._begun.removeprefix(HEADER), None
        text = self._break + text
        self._break = "\n" if text.endswith("\n") else ""
        text = text.removesuffix("\n")
        if text:
            text, self._before = self._before + text, ""
        return text


def _say(kind: Literal["text", "thinking", "markup"], text: str, parts: list[Part]) -> None:
    if text:
        parts.append(Part(kind, text))


def _cut(ids: Sequence[int], mark: int | None) -> list[list[int]]:
    """Pieces between marks."""
    pieces: list[list[int]] = [[]]
    for token in ids:
        if token == mark:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces
