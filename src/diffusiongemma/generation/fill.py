"""Spans in a text, written on one canvas with what stands around them pinned.

``Template -> layouts -> rows of pins -> engine -> candidates -> log_probs -> Filled``. How long a span must be nobody knows:
several layouts are tried as rows of one batch, and the causal role, which reads what stands after the spans too, says which
text it finds most probable.

Given text and spans are tokenised apart, which may put a border where the model has never seen one: a token that is a space alone,
say, where the next word would have swallowed it. So each layout is also tried with its borders opened: the token on either side
of a span is written by the model too, and the row counts if it wrote the given text there again. ::

    tokens of the text   |  "|site|":| "|Gil|vy|burg|",| "|time ...
    tokenised apart      |  "|site|":| "|  .   .   .  |"|,| "|time ...       pinned but for three; '"' and ',' are strange here
    borders opened       |  "|site|":| .   .   .   .   . |,| "|time ...      must begin with ' "' and end with '"'
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from diffusiongemma.errors import OptionError, PromptTooLongError
from diffusiongemma.generation.context import EditContext, OnEvent, span_text, write_rows
from diffusiongemma.generation.score import log_probs
from diffusiongemma.generation.template import Span, Template

__all__ = ["TRIES", "Filled", "InfillCandidate", "Rank", "fill_template"]

TRIES = 16
"""Rows of a batch: half of them with open borders."""
MAX_TRIES = 1024
ROUNDS = 3
"""Batches, where layouts are left."""
JUDGED = 64
"""Tokens after the last span that the causal role reads when it judges: as many for each layout, or the longest span would win."""
Rank = Literal["total", "mean"]
Given = list[int] | Span
"""A piece of a template: the tokens of a text, or a span."""


@dataclass(frozen=True)
class InfillCandidate:
    """One way to fill the spans.

    Attributes:
        text: the whole text.
        spans: text of each span.
        lengths: tokens that were given to each span; it may have ended before.
        open_borders: whether the tokens on either side were open too.
        score: log-probability by the causal role, in nats (``rank``).
        steps: denoising passes.
    """

    text: str
    spans: dict[str, str]
    lengths: dict[str, int]
    open_borders: bool
    score: float
    steps: int


@dataclass(frozen=True)
class Filled:
    """A filled template; printing it prints the text.

    Attributes:
        text: the whole text: what was given, unchanged, and the spans of the best layout.
        spans: text of each span.
        tried: every candidate that fits, best first.
        seconds: wall time, prompt included.
    """

    text: str
    spans: dict[str, str]
    tried: list[InfillCandidate]
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
        layout: tokens a span.
        opened: whether borders are open.
        prompt: token ids before the canvas.
        pins: token ids, -1 where the model writes, up to the end of the last span's canvas.
        spans: first position and end of each span, with open borders.
        borders: given text that each span must begin and end with.
    """

    layout: tuple[int, ...]
    opened: bool
    prompt: list[int]
    pins: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    borders: list[tuple[str, str]] = field(default_factory=list)


def fill_template(
    context: EditContext, template: Template, rank: Rank = "total", tries: int = TRIES, on_event: OnEvent | None = None
) -> Filled:
    """Write all spans of a template.

    Steps:
        1. text before the first span goes to the encoder, the rest is pinned, in several layouts;
        2. denoise them as one batch;
        3. read the spans, each up to its first stop token; a row with a border that came out otherwise is no candidate;
        4. score the texts; one with an empty span comes last;
        5. with several spans not all layouts were tried: go on with those that differ from the best in one span.

    Args:
        context: what the text stands in.
        template: at least one span.
        rank: ``total``: log-probability of all that follows what the candidates have in common; ``mean``: of a token of it.
        tries: most rows of a batch.
        on_event: called with each event of the rows.

    Raises:
        OptionError: an unknown rank, or tries outside 1 to ``MAX_TRIES``.
        PromptTooLongError: it does not fit into the model's positions.
    """
    counted = isinstance(tries, int) and not isinstance(tries, bool) and 1 <= tries <= MAX_TRIES
    if rank not in get_args(Rank) or not counted:
        raise OptionError(
            f"rank is {rank!r:.50} and tries {tries!r:.50}; rank may be {', '.join(get_args(Rank))}, tries from 1 to {MAX_TRIES}"
        )
    positions = context.model.config.text.max_position_embeddings
    if (longest := sum(span.max_tokens for span in template.spans)) > positions:
        raise PromptTooLongError(f"the spans may have {longest:,} tokens together; the model has {positions:,} positions")
    began = time.perf_counter()
    a_batch = -(-tries // 2)
    given = [piece if isinstance(piece, Span) else context.encode(piece) for piece in template.pieces]
    layouts, result, best = template.layouts(a_batch, context.params.seed), list[InfillCandidate](), ""
    tried = set(layouts)
    for _ in range(ROUNDS):
        # 1. to 3.
        result += _written(context, template, given, layouts, tries, on_event)
        # 4.
        result = _ranked(context, template, given, result, rank)
        # 5.
        near = template.near(tuple(result[0].lengths.values()))
        layouts = list(itertools.islice((layout for layout in near if layout not in tried), a_batch))
        if best == result[0].text or not layouts:
            break
        best = result[0].text
        tried.update(layouts)
    return Filled(result[0].text, result[0].spans, result, time.perf_counter() - began)


def _written(
    context: EditContext,
    template: Template,
    given: Sequence[Given],
    layouts: Sequence[tuple[int, ...]],
    tries: int,
    on_event: OnEvent | None,
) -> list[InfillCandidate]:
    """One batch: each layout with its borders pinned and open; rows that fit, not scored yet."""
    rows = [_row(context, given, layout, opened) for layout in layouts for opened in (False, True)]
    rows = [row for row in rows if not row.opened or any(map(any, row.borders))][:tries]
    pins, seeds = [row.pins for row in rows], [context.params.seed] * len(rows)
    results = write_rows(context, [row.prompt for row in rows], pins, seeds, None, list(map(len, pins)), on_event)
    names = [span.name for span in template.spans]
    outcome = []
    for row, result in zip(rows, results, strict=True):
        texts = _spans_of(context, row, result.token_ids)
        if texts is not None:
            spans, lengths = dict(zip(names, texts, strict=True)), dict(zip(names, row.layout, strict=True))
            outcome.append(InfillCandidate(template.text(spans), spans, lengths, row.opened, 0.0, result.usage.denoising_steps))
    return outcome


def _ranked(
    context: EditContext, template: Template, given: Sequence[Given], candidates: Sequence[InfillCandidate], rank: Rank
) -> list[InfillCandidate]:
    """Fillings with their scores, best first."""
    scores = _scores(context, template, given, candidates, rank)
    scored = [replace(candidate, score=score) for candidate, score in zip(candidates, scores, strict=True)]
    return sorted(scored, key=lambda candidate: (not all(candidate.spans.values()), -candidate.score))


def _row(context: EditContext, pieces: Sequence[Given], layout: tuple[int, ...], opened: bool) -> _Row:
    """Pins of one layout. Canvases after the last span are not denoised: nothing of them is open."""
    first, *rest = pieces
    assert isinstance(first, list)
    # A prompt keeps at least one token.
    before = _border(context, first[-1:]) if opened and len(context.prompt) + len(first) > 1 else ""
    row = _Row(layout, opened, [*context.prompt, *(first[:-1] if before else first)])
    lengths = iter(layout)
    taken = int(bool(before))
    for piece, behind in zip(rest[::2], rest[1::2], strict=True):
        assert isinstance(piece, Span) and isinstance(behind, list)
        # A token between two spans can be the border of one of them.
        after = _border(context, behind[:1]) if opened else ""
        start, length = len(row.pins), taken + next(lengths) + int(bool(after))
        row.spans.append((start, start + length))
        row.borders.append((before, after))
        row.pins += [-1] * length
        given = behind[1:] if after else behind
        last = len(row.spans) == len(layout)
        before = "" if last or not opened else _border(context, given[-1:])
        taken = int(bool(before))
        row.pins += given[:-1] if before else given
    row.pins = context.closed(row.pins, -(-row.spans[-1][1] // context.canvas) * context.canvas)
    return row


def _border(context: EditContext, ids: Sequence[int]) -> str:
    """Text of a token that may be opened; empty where it is special, or where it cuts a character."""
    text = context.tokenizer.decode(ids)
    return "" if "\ufffd" in text else text


def _spans_of(context: EditContext, row: _Row, ids: Sequence[int]) -> list[str] | None:
    """Text of each span without its borders; None where one of these is not what was given."""
    result = []
    for (start, end), (before, after) in zip(row.spans, row.borders, strict=True):
        text = span_text(context, ids[start:end])
        if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
            return None
        result.append(text[len(before) : len(text) - len(after)])
    return result


def _scores(
    context: EditContext, template: Template, given: Sequence[Given], candidates: Sequence[InfillCandidate], rank: Rank
) -> list[float]:
    """A score for each candidate: of its whole text at one go, in the tokens that the model has learnt to read."""
    last, ids = str(template.pieces[-1]), given[-1]
    assert isinstance(ids, list)
    cut = len(last) - len(context.tokenizer.decode(ids[:JUDGED], skip_special=False))
    ending = [context.ending] if context.ending is not None and cut <= 0 else []
    whole = [candidate.text[: len(candidate.text) - max(0, cut)] for candidate in candidates]
    texts = [[*context.prompt, *context.encode(text), *ending] for text in whole]
    common = 0
    while all(len(ids) > common + 1 and ids[common] == texts[0][common] for ids in texts):
        common += 1
    common = max(1, common)
    result = log_probs(context.model, texts[0][:common], [ids[common:] for ids in texts], context.engine.call)
    return [sum(row) / (max(1, len(row)) if rank == "mean" else 1) for row in result]
