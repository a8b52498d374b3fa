"""Holes in a text, written on one canvas with what stands around them pinned.

``Template -> layouts -> rows of pins -> engine -> fillings -> log_probs -> Filled``. How long a hole must be nobody knows:
several layouts are tried as rows of one batch, and the causal role, which reads what stands behind the holes too, says which
text it finds most probable.

Given text and holes are tokenised apart, which may put a border where the model has never seen one: a token that is a space alone,
say, where the next word would have swallowed it. So each layout is also tried with its borders opened: the token on either side
of a hole is written by the model too, and the row counts if it wrote the given text there again. ::

    tokens of the text   |  "|site|":| "|Gil|vy|burg|",| "|time ...
    tokenised apart      |  "|site|":| "|  .   .   .  |"|,| "|time ...       pinned but for three; '"' and ',' are strange here
    borders opened       |  "|site|":| .   .   .   .   . |,| "|time ...      must begin with ' "' and end with '"'
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from diffusiongemma.engine.frame import Frame, OnEvent, hole_text, write_rows
from diffusiongemma.engine.score import log_probs
from diffusiongemma.engine.template import Hole, Template
from diffusiongemma.errors import OptionError, PromptTooLongError

__all__ = ["TRIES", "Filled", "Filling", "Rank", "fill_template"]

TRIES = 16
"""Rows of a batch: half of them with open borders."""
MOST_TRIES = 1024
ROUNDS = 3
"""Batches, where layouts are left."""
JUDGED = 64
"""Tokens behind the last hole that the causal role reads when it judges: as many for each layout, or the longest hole would win."""
Rank = Literal["total", "mean"]
Given = list[int] | Hole
"""A piece of a template: the tokens of a text, or a hole."""


@dataclass(frozen=True)
class Filling:
    """One way to fill the holes.

    Attributes:
        text: the whole text.
        holes: text of each hole.
        lengths: tokens that were given to each hole; it may have ended before.
        open_borders: whether the tokens on either side were open too.
        score: log-probability by the causal role, in nats (``rank``).
        steps: denoising passes.
    """

    text: str
    holes: dict[str, str]
    lengths: dict[str, int]
    open_borders: bool
    score: float
    steps: int


@dataclass(frozen=True)
class Filled:
    """A filled template; printing it prints the text.

    Attributes:
        text: the whole text: what was given, unchanged, and the holes of the best layout.
        holes: text of each hole.
        tried: every filling that fits, best first.
        seconds: wall time, prompt included.
    """

    text: str
    holes: dict[str, str]
    tried: list[Filling]
    seconds: float

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass
class _Row:
    """One layout on the canvases.

    Attributes:
        layout: tokens a hole.
        opened: whether borders are open.
        prompt: token ids before the canvas.
        pins: token ids, -1 where the model writes, up to the end of the last hole's canvas.
        spans: first position and end of each hole, with open borders.
        borders: given text that each hole must begin and end with.
    """

    layout: tuple[int, ...]
    opened: bool
    prompt: list[int]
    pins: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    borders: list[tuple[str, str]] = field(default_factory=list)


def fill_template(
    frame: Frame, template: Template, rank: Rank = "total", tries: int = TRIES, on_event: OnEvent | None = None
) -> Filled:
    """Write all holes of a template.

    Steps:
        1. text before the first hole goes to the encoder, the rest is pinned, in several layouts;
        2. denoise them as one batch;
        3. read the holes, each up to its first stop token; a row with a border that came out otherwise is no filling;
        4. score the texts; one with an empty hole comes last;
        5. with several holes not all layouts were tried: go on with those that differ from the best in one hole.

    Args:
        frame: what the text stands in.
        template: at least one hole.
        rank: ``total``: log-probability of all that follows what the fillings have in common; ``mean``: of a token of it.
        tries: most rows of a batch.
        on_event: called with each event of the rows.

    Raises:
        OptionError: an unknown rank, or tries outside 1 to ``MOST_TRIES``.
        PromptTooLongError: it does not fit into the model's positions.
    """
    counted = isinstance(tries, int) and not isinstance(tries, bool) and 1 <= tries <= MOST_TRIES
    if rank not in get_args(Rank) or not counted:
        raise OptionError(
            f"rank is {rank!r:.50} and tries {tries!r:.50}; rank may be {', '.join(get_args(Rank))}, tries from 1 to {MOST_TRIES}"
        )
    positions = frame.model.config.text.max_position_embeddings
    if (longest := sum(hole.most for hole in template.holes)) > positions:
        raise PromptTooLongError(f"the holes may have {longest:,} tokens together; the model has {positions:,} positions")
    began = time.perf_counter()
    a_batch = -(-tries // 2)
    given = [piece if isinstance(piece, Hole) else frame.encode(piece) for piece in template.pieces]
    layouts, found, best = template.layouts(a_batch, frame.params.seed), list[Filling](), ""
    tried = set(layouts)
    for _ in range(ROUNDS):
        # 1. to 3.
        found += _written(frame, template, given, layouts, tries, on_event)
        # 4.
        found = _ranked(frame, template, given, found, rank)
        # 5.
        near = template.near(tuple(found[0].lengths.values()))
        layouts = list(itertools.islice((layout for layout in near if layout not in tried), a_batch))
        if best == found[0].text or not layouts:
            break
        best = found[0].text
        tried.update(layouts)
    return Filled(found[0].text, found[0].holes, found, time.perf_counter() - began)


def _written(
    frame: Frame,
    template: Template,
    given: Sequence[Given],
    layouts: Sequence[tuple[int, ...]],
    tries: int,
    on_event: OnEvent | None,
) -> list[Filling]:
    """One batch: each layout with its borders pinned and open; rows that fit, not scored yet."""
    rows = [_row(frame, given, layout, opened) for layout in layouts for opened in (False, True)]
    rows = [row for row in rows if not row.opened or any(map(any, row.borders))][:tries]
    pins, seeds = [row.pins for row in rows], [frame.params.seed] * len(rows)
    results = write_rows(frame, [row.prompt for row in rows], pins, seeds, None, list(map(len, pins)), on_event)
    names = [hole.name for hole in template.holes]
    found = []
    for row, result in zip(rows, results, strict=True):
        texts = _holes(frame, row, result.token_ids)
        if texts is not None:
            holes, lengths = dict(zip(names, texts, strict=True)), dict(zip(names, row.layout, strict=True))
            found.append(Filling(template.text(holes), holes, lengths, row.opened, 0.0, result.usage.denoising_steps))
    return found


def _ranked(frame: Frame, template: Template, given: Sequence[Given], fillings: Sequence[Filling], rank: Rank) -> list[Filling]:
    """Fillings with their scores, best first."""
    scores = _scores(frame, template, given, fillings, rank)
    scored = [replace(filling, score=score) for filling, score in zip(fillings, scores, strict=True)]
    return sorted(scored, key=lambda filling: (not all(filling.holes.values()), -filling.score))


def _row(frame: Frame, pieces: Sequence[Given], layout: tuple[int, ...], opened: bool) -> _Row:
    """Pins of one layout. Canvases behind the last hole are not denoised: nothing of them is open."""
    first, *rest = pieces
    assert isinstance(first, list)
    # A prompt keeps at least one token.
    before = _border(frame, first[-1:]) if opened and len(frame.prompt) + len(first) > 1 else ""
    row = _Row(layout, opened, [*frame.prompt, *(first[:-1] if before else first)])
    lengths = iter(layout)
    taken = int(bool(before))
    for piece, behind in zip(rest[::2], rest[1::2], strict=True):
        assert isinstance(piece, Hole) and isinstance(behind, list)
        # A token between two holes can be the border of one of them.
        after = _border(frame, behind[:1]) if opened else ""
        start, length = len(row.pins), taken + next(lengths) + int(bool(after))
        row.spans.append((start, start + length))
        row.borders.append((before, after))
        row.pins += [-1] * length
        given = behind[1:] if after else behind
        last = len(row.spans) == len(layout)
        before = "" if last or not opened else _border(frame, given[-1:])
        taken = int(bool(before))
        row.pins += given[:-1] if before else given
    row.pins = frame.closed(row.pins, -(-row.spans[-1][1] // frame.canvas) * frame.canvas)
    return row


def _border(frame: Frame, ids: Sequence[int]) -> str:
    """Text of a token that may be opened; empty where it is special, or where it cuts a character."""
    text = frame.tokenizer.decode(ids)
    return "" if "\ufffd" in text else text


def _holes(frame: Frame, row: _Row, ids: Sequence[int]) -> list[str] | None:
    """Text of each hole without its borders; None where one of these is not what was given."""
    found = []
    for (start, end), (before, after) in zip(row.spans, row.borders, strict=True):
        text = hole_text(frame, ids[start:end])
        if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
            return None
        found.append(text[len(before) : len(text) - len(after)])
    return found


def _scores(frame: Frame, template: Template, given: Sequence[Given], fillings: Sequence[Filling], rank: Rank) -> list[float]:
    """A score for each filling: of its whole text at one go, in the tokens that the model has learnt to read."""
    last, ids = str(template.pieces[-1]), given[-1]
    assert isinstance(ids, list)
    cut = len(last) - len(frame.tokenizer.decode(ids[:JUDGED], skip_special=False))
    ending = [frame.ending] if frame.ending is not None and cut <= 0 else []
    whole = [filling.text[: len(filling.text) - max(0, cut)] for filling in fillings]
    texts = [[*frame.prompt, *frame.encode(text), *ending] for text in whole]
    common = 0
    while all(len(ids) > common + 1 and ids[common] == texts[0][common] for ids in texts):
        common += 1
    common = max(1, common)
    found = log_probs(frame.model, texts[0][:common], [ids[common:] for ids in texts], frame.engine.call)
    return [sum(row) / (max(1, len(row)) if rank == "mean" else 1) for row in found]
