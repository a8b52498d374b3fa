"""Text with spans: what is given, and how many tokens the model may write between it. Pure text, no tensors."""

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from diffusiongemma.errors import InputError

__all__ = ["Span", "Template"]

DEFAULT_MAX_TOKENS = 16
"""Most tokens of a span that does not say how many."""
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Lengths worth trying: the longer a span, the less one token more or less matters."""
_MARK = re.compile(r"\\\{\{|\{\{(?P<inside>.*?)\}\}|\{\{", re.DOTALL)
_INSIDE = re.compile(r"\s*(?P<name>[^\W\d]\w*)\s*(?::\s*(?P<min>[0-9]{1,9})\s*(?:-\s*(?P<max>[0-9]{1,9})\s*)?)?")


@dataclass(frozen=True)
class Span:
    """Where the model writes.

    Args:
        name: under which its text is found.
        min_tokens: tokens, >= 1.
        max_tokens: tokens, >= least.

    Raises:
        InputError: a length that is no whole number or zero, or most below least.
    """

    name: str
    min_tokens: int
    max_tokens: int

    def __post_init__(self) -> None:
        whole = all(isinstance(length, int) and not isinstance(length, bool) for length in (self.min_tokens, self.max_tokens))
        if not whole or self.min_tokens < 1 or self.max_tokens < self.min_tokens:
            raise InputError(
                f"the span {self.name!r:.100} has {self.min_tokens!r:.50} to {self.max_tokens!r:.50} tokens; "
                "the fewest must be at least 1, the most no fewer"
            )

    def lengths(self) -> list[int]:
        """The lengths to try, in order: its ends and the rungs between."""
        return sorted({self.min_tokens, self.max_tokens, *(rung for rung in _LADDER if self.min_tokens < rung < self.max_tokens)})


@dataclass(frozen=True)
class Template:
    """Given text and spans by turns.

    Attributes:
        pieces: strings and spans in order; the first and the last are strings, maybe empty.
    """

    pieces: tuple[str | Span, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        r"""Read ``"Dear {{name:1-6}}, {{reason}}"``: a name, and the fewest and most tokens (default 1 to 16; ``:4`` is exactly 4).

        A literal ``{{`` is written ``\{{``.

        Raises:
            InputError: no text, no span, one without a name or with a length of zero, or a name used twice.
        """
        if not isinstance(text, str):
            raise InputError(f"the template is of type {type(text).__name__}; give a string with spans, like 'Dear {{{{name}}}}'")
        pieces, given, end = list[str | Span](), list[str](), 0
        for mark in _MARK.finditer(text):
            given.append(text[end : mark.start()])
            end = mark.end()
            if mark[0] == "\\{{":
                given.append("{{")
            else:
                pieces += ["".join(given), _span(mark)]
                given = []
        template = cls((*pieces, "".join([*given, text[end:]])))
        names = Counter(span.name for span in template.spans)
        if not names:
            raise InputError("the template has no span; write one as {{name}} or {{name:1-6}}, fewest and most tokens")
        if twice := sorted(name for name, times in names.items() if times > 1):
            raise InputError(f"the template has more than one span {twice[0]!r}; give each a name of its own")
        return template

    @classmethod
    def around(cls, prefix: str, suffix: str, min_tokens: int, max_tokens: int) -> "Template":
        """One span, named ``span``, between two texts.

        Raises:
            InputError: something that is not text, or a span of length zero.
        """
        for what, text in (("prefix", prefix), ("suffix", suffix)):
            if not isinstance(text, str):
                raise InputError(f"the {what} is of type {type(text).__name__}; give a string, empty where nothing stands there")
        return cls((prefix, Span("span", min_tokens, max_tokens), suffix))

    @property
    def spans(self) -> list[Span]:
        """The spans in order."""
        return [piece for piece in self.pieces if isinstance(piece, Span)]

    def layouts(self, max_tokens: int, seed: int) -> list[tuple[int, ...]]:
        """Lengths of all spans to try together.

        Args:
            max_tokens: how many layouts; where there are more, half go evenly from shortest to longest, the rest are drawn.
            seed: of the draws.
        """
        choices = [span.lengths() for span in self.spans]
        count = 1
        for lengths in choices:
            count = min(count * len(lengths), max_tokens + 1)
        if count <= max_tokens:
            return list(itertools.product(*choices))
        even = min(max_tokens, max(2, max_tokens // 2)) if len(choices) > 1 else max_tokens
        shares = [i / max(1, even - 1) for i in range(even)]
        result = {tuple(lengths[round(canvas_slice * (len(lengths) - 1))] for lengths in choices): None for canvas_slice in shares}
        rng = random.Random(seed)
        while len(result) < max_tokens:
            result[tuple(rng.choice(lengths) for lengths in choices)] = None
        return list(result)

    def near(self, layout: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Layouts that differ from one in a single span, the nearest lengths first; none where there is one span alone."""
        if len(layout) == 1:
            return
        result = []
        for at, span in enumerate(self.spans):
            lengths = span.lengths()
            here = lengths.index(layout[at])
            # Of equal distances the shorter first, and then as layouts compare: a later span that gets longer changes less.
            for place, length in enumerate(lengths):
                longer = place > here
                result.append((abs(here - place), longer, -at if longer else at, length, at))
        for _, _, _, length, at in sorted(result)[len(layout) :]:  # those at distance 0 are the layout itself
            yield (*layout[:at], length, *layout[at + 1 :])

    def text(self, spans: dict[str, str]) -> str:
        """The whole text with the spans written in; what is given comes out as it is."""
        return "".join(piece if isinstance(piece, str) else spans[piece.name] for piece in self.pieces)


def _span(mark: re.Match[str]) -> Span:
    inside = mark["inside"]
    result = None if inside is None else _INSIDE.fullmatch(inside)
    if result is None:
        raise InputError(
            f"{mark[0][:100]!r} is not a span; write {{{{name}}}} or {{{{name:1-6}}}}, and \\{{{{ for the braces themselves"
        )
    min_tokens = 1 if result["min"] is None else int(result["min"])
    given = result["max"] or result["min"]
    return Span(result["name"], min_tokens, DEFAULT_MAX_TOKENS if given is None else int(given))
