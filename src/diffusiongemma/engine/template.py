"""Text with holes: what is given, and how many tokens the model may write between it. Pure text, no tensors."""

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from diffusiongemma.errors import InputError

__all__ = ["Hole", "Template"]

DEFAULT_MOST = 16
"""Most tokens of a hole that does not say how many."""
_LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Lengths worth trying: the longer a hole, the less one token more or less matters."""
_MARK = re.compile(r"\\\{\{|\{\{(?P<inside>.*?)\}\}|\{\{", re.DOTALL)
_INSIDE = re.compile(r"\s*(?P<name>[^\W\d]\w*)\s*(?::\s*(?P<least>[0-9]{1,9})\s*(?:-\s*(?P<most>[0-9]{1,9})\s*)?)?")


@dataclass(frozen=True)
class Hole:
    """Where the model writes.

    Args:
        name: under which its text is found.
        least: tokens, >= 1.
        most: tokens, >= least.

    Raises:
        InputError: a length that is no whole number or zero, or most below least.
    """

    name: str
    least: int
    most: int

    def __post_init__(self) -> None:
        whole = all(isinstance(length, int) and not isinstance(length, bool) for length in (self.least, self.most))
        if not whole or self.least < 1 or self.most < self.least:
            raise InputError(
                f"the hole {self.name!r:.100} has {self.least!r:.50} to {self.most!r:.50} tokens; the fewest must be at least 1, "
                "the most no fewer"
            )

    def lengths(self) -> list[int]:
        """The lengths to try, in order: its ends and the rungs between."""
        return sorted({self.least, self.most, *(rung for rung in _LADDER if self.least < rung < self.most)})


@dataclass(frozen=True)
class Template:
    """Given text and holes by turns.

    Attributes:
        pieces: strings and holes in order; the first and the last are strings, maybe empty.
    """

    pieces: tuple[str | Hole, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        r"""Read ``"Dear {{name:1-6}}, {{reason}}"``: a name, and the fewest and most tokens (default 1 to 16; ``:4`` is exactly 4).

        A literal ``{{`` is written ``\{{``.

        Raises:
            InputError: no text, no hole, one without a name or with a length of zero, or a name used twice.
        """
        if not isinstance(text, str):
            raise InputError(f"the template is of type {type(text).__name__}; give a string with holes, like 'Dear {{{{name}}}}'")
        pieces, given, end = list[str | Hole](), list[str](), 0
        for mark in _MARK.finditer(text):
            given.append(text[end : mark.start()])
            end = mark.end()
            if mark[0] == "\\{{":
                given.append("{{")
            else:
                pieces += ["".join(given), _hole(mark)]
                given = []
        template = cls((*pieces, "".join([*given, text[end:]])))
        names = Counter(hole.name for hole in template.holes)
        if not names:
            raise InputError("the template has no hole; write one as {{name}} or {{name:1-6}}, fewest and most tokens")
        if twice := sorted(name for name, times in names.items() if times > 1):
            raise InputError(f"the template has more than one hole {twice[0]!r}; give each a name of its own")
        return template

    @classmethod
    def around(cls, prefix: str, suffix: str, least: int, most: int) -> "Template":
        """One hole, named ``hole``, between two texts.

        Raises:
            InputError: something that is not text, or a hole of length zero.
        """
        for what, text in (("prefix", prefix), ("suffix", suffix)):
            if not isinstance(text, str):
                raise InputError(f"the {what} is of type {type(text).__name__}; give a string, empty where nothing stands there")
        return cls((prefix, Hole("hole", least, most), suffix))

    @property
    def holes(self) -> list[Hole]:
        """The holes in order."""
        return [piece for piece in self.pieces if isinstance(piece, Hole)]

    def layouts(self, most: int, seed: int) -> list[tuple[int, ...]]:
        """Lengths of all holes to try together.

        Args:
            most: how many layouts; where there are more, half go evenly from shortest to longest, the rest are drawn.
            seed: of the draws.
        """
        choices = [hole.lengths() for hole in self.holes]
        count = 1
        for lengths in choices:
            count = min(count * len(lengths), most + 1)
        if count <= most:
            return list(itertools.product(*choices))
        even = min(most, max(2, most // 2)) if len(choices) > 1 else most
        shares = [i / max(1, even - 1) for i in range(even)]
        found = {tuple(lengths[round(share * (len(lengths) - 1))] for lengths in choices): None for share in shares}
        rng = random.Random(seed)
        while len(found) < most:
            found[tuple(rng.choice(lengths) for lengths in choices)] = None
        return list(found)

    def near(self, layout: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Layouts that differ from one in a single hole, the nearest lengths first; none where there is one hole alone."""
        if len(layout) == 1:
            return
        found = []
        for at, hole in enumerate(self.holes):
            lengths = hole.lengths()
            here = lengths.index(layout[at])
            # Of equal distances the shorter first, and then as layouts compare: a later hole that gets longer changes less.
            for place, length in enumerate(lengths):
                longer = place > here
                found.append((abs(here - place), longer, -at if longer else at, length, at))
        for _, _, _, length, at in sorted(found)[len(layout) :]:  # those at distance 0 are the layout itself
            yield (*layout[:at], length, *layout[at + 1 :])

    def text(self, holes: dict[str, str]) -> str:
        """The whole text with the holes written in; what is given comes out as it is."""
        return "".join(piece if isinstance(piece, str) else holes[piece.name] for piece in self.pieces)


def _hole(mark: re.Match[str]) -> Hole:
    inside = mark["inside"]
    found = None if inside is None else _INSIDE.fullmatch(inside)
    if found is None:
        raise InputError(
            f"{mark[0][:100]!r} is not a hole; write {{{{name}}}} or {{{{name:1-6}}}}, and \\{{{{ for the braces themselves"
        )
    least = 1 if found["least"] is None else int(found["least"])
    given = found["most"] or found["least"]
    return Hole(found["name"], least, DEFAULT_MOST if given is None else int(given))
