"""Which of several whole answers: their probabilities, read off canvases in a single denoising pass.

An answer's probability is a product of factors ``p(token | what is known)``, by the chain rule over the positions in which the
answers differ. Each factor is read at temperature 1 from a canvas that holds what is known, and noise elsewhere; the canvases
are rows of one batch. Two answers of one length and a third that is longer (``.`` noise, ``$`` the end)::

    answers        known to all   1. where what is common to          2. what differs among those of this length,
                                     this length stands                  from left to right
    i s a ! $      i s . . . .    i s . [!] . .                       i s [a] ! $ .    i s [b] ! $ .
    i s b ! $                     (one canvas for both)               (one canvas for both)
    i s c d ! $                   i s [c] . . .    i s c [d] . .      nothing is left
                                  i s c d [!] .

Answers of one length skip step 1, and where they differ in one token all factors come from one canvas: a softmax over the
options. Of what all answers end with (``! $``) only the first token is a factor, the rest is taken for certain there: a canvas a
token would be exact, and was no better (docs/decide.md). Answers are compared with each other only: their probabilities sum to 1.

An open position never holds a token that an answer could have there. Under uniform noise the posterior of a clean token v
where the canvas shows n is ``p(v | rest) * (t / V)`` for every v but n, so that n cancels between the options, unless it is
one of them. The noise is the same in all rows: a function of (seed, draw, position). After an answer's end there is noise too.
Shapes: A answers, R rows, N draws of noise, L canvas, D hidden, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma.diffusion import CanvasWindow, NoiseProcess, SamplingParams
from diffusiongemma.engine.prefill import prefill
from diffusiongemma.engine.request import Request, check
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.generation.checkpoint import Checkpoint
from diffusiongemma.kernels import RngPurpose, position_keys
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.options import PromptOptions
from diffusiongemma.text.messages import Message
from diffusiongemma.text.prompts import with_text
from diffusiongemma.text.questions import Decisions, Sheet

__all__ = ["MAX_DRAWS", "OPEN", "Alternatives", "Decided", "Factor", "Rule", "alternatives_of", "chain", "decide", "decide_sheets"]

OPEN = -1
"""Stands on a canvas where nothing is known."""
ROWS_A_PASS, ROWS_A_PASS_GPU = 16, 64
"""Canvases denoised, and prompts encoded, at a time: bounds the memory, and how long others wait on an engine that is shared. On a
CPU more are no faster."""
MAX_DRAWS = 64
MAX_ROWS = 1 << 16
"""Canvases of one call: hours on a CPU."""


@dataclass(frozen=True)
class Alternatives:
    """Answers of which one is right.

    Attributes:
        prompt: token ids.
        answers: token ids of each whole answer, its end token included; all different, at least two.
    """

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]


class Factor(NamedTuple):
    """``p(token at position | canvas)``.

    Attributes:
        canvas: L token ids, OPEN where noise stands.
        position: one of the open ones.
        token: whose probability is asked for.
    """

    canvas: tuple[int, ...]
    position: int
    token: int


class Decided(NamedTuple):
    """What ``decide`` found.

    Attributes:
        probabilities: for each of the Alternatives a list of A numbers that sum to 1.
        passes: denoising passes.
        rows: canvases in all passes together.
    """

    probabilities: list[list[float]]
    passes: int
    rows: int


Rule = Callable[[Sequence[Sequence[int]], int], list[list[Factor]]]
"""Answers and canvas length to the factors of each answer: ``chain``, or another to compare it with."""


Call = Callable[[Callable[[], object]], object]
"""How a pass is made; on a shared engine others have their step between two of them."""


def chain(answers: Sequence[Sequence[int]], length: int, *, whole_tail: bool = False) -> list[list[Factor]]:
    """The factors of each answer's probability (see the module).

    Args:
        answers: A lists of token ids, none longer than ``length``.
        length: of the canvas.
        whole_tail: every token of what all answers end with is a factor.
    """
    known_to_all = _agreed(answers)
    tail = 0 if whole_tail else len(_agreed([answer[::-1] for answer in answers], first=True))
    layouts = {size: _agreed([other for other in answers if len(other) == size]) for size in set(map(len, answers))}
    factors = []
    for answer in answers:
        layout = layouts[len(answer)]
        mine, known = [], set(known_to_all)
        for places in (layout, set(range(len(answer)))):
            for at in sorted(places - known):
                if at <= len(answer) - tail:
                    mine.append(Factor(_canvas(answer, known, length), at, answer[at]))
                known.add(at)
        factors.append(mine)
    return factors


def decide(
    model: Transformer,
    asked: Sequence[Alternatives],
    *,
    seed: int = 0,
    draws: int = 1,
    rule: Rule = chain,
    canvas_window: CanvasWindow = "shared",
    call: Call = lambda work: work(),
) -> Decided:
    """Compare answers, for one question or several at once.

    Args:
        model: the stack.
        asked: at least one; each is decided as if it were alone.
        seed: of the noise.
        draws: of noise; the probabilities are the mean over them.
        rule: which factors make up a probability.
        canvas_window: what a canvas position sees in sliding layers (``SamplingParams.canvas_window``).
        call: makes each of the passes.

    Returns:
        The probabilities, in the order asked.

    Raises:
        InputError: answers that do not fit on a canvas, are the same tokens, use every token there is, or ask for too many
            canvases.
        PromptTooLongError: prompt and canvas exceed the model's positions.
        OptionError: a seed or a number of draws that is not possible.
    """
    if not isinstance(draws, int) or isinstance(draws, bool) or not 1 <= draws <= MAX_DRAWS:
        raise OptionError(f"draws is {draws!r:.50}; the probabilities are the mean over 1 to {MAX_DRAWS} draws of noise")
    slots = max(_check_alternatives(model, one, row, seed) for row, one in enumerate(asked))
    sheets, rows = [], 0
    for one in asked:
        sheets.append(_Sheet.of(one, rule(one.answers, model.config.canvas_length)))
        rows += draws * len(sheets[-1].canvases)
        if rows > MAX_ROWS:
            raise InputError(
                f"the questions ask for more than {MAX_ROWS:,} canvases in one call, {draws} draws of noise included; "
                "lower draws, or give fewer options or questions"
            )
    logs = [torch.zeros(draws, len(one.answers), dtype=torch.float64) for one in asked]
    passes, at_once = 0, ROWS_A_PASS if model.device.type == "cpu" else ROWS_A_PASS_GPU
    for group in _groups(sheets, logs, draws, at_once):
        prompts = list(dict.fromkeys(row.sheet.prompt for row in group))
        cache = KVCache(model.config.text, len(prompts), slots, model.cache_dtype, model.device)
        for encode in prefill(model, prompts, cache):
            call(torch.inference_mode()(encode))
        for start in range(0, len(group), at_once):
            _denoised(model, group[start : start + at_once], cache, prompts, seed, canvas_window, call)
            passes += 1
    return Decided([log_NA.softmax(-1).mean(0).tolist() for log_NA in logs], passes, rows)


def decide_sheets(
    checkpoint: Checkpoint,
    prompt: str | None,
    messages: Sequence[Message] | None,
    asked: Sequence[Sheet],
    options: PromptOptions,
    threshold: float,
    seed: int,
    draws: int,
    call: Call,
) -> Decisions:
    """Answer sheets of questions about a prompt (``DiffusionGemmaModel.decide``)."""
    began = time.perf_counter()
    alternatives = alternatives_of(checkpoint, prompt, messages, asked, options)
    window = checkpoint.defaults.canvas_window
    result = decide(checkpoint.transformer, alternatives, seed=seed, draws=draws, canvas_window=window, call=call)
    pairs = zip(asked, result.probabilities, strict=True)
    decisions = [decision for sheet, probs in pairs for decision in sheet.decisions(probs, threshold)]
    tokens = sum(len(one.prompt) for one in alternatives)
    return Decisions(tuple(decisions), result.passes, result.rows, time.perf_counter() - began, tokens)


def alternatives_of(
    checkpoint: Checkpoint,
    prompt: str | None,
    messages: Sequence[Message] | None,
    asked: Sequence[Sheet],
    options: PromptOptions | None = None,
) -> list[Alternatives]:
    """The tokens of each sheet's prompt and of its answers, with the stop token that ends a turn.

    Raises:
        InputError, PromptTooLongError: an answer that the tokenizer cannot write; see ``decide``.
    """
    result, end = [], checkpoint.turn_end
    for sheet in asked:
        (ids,) = checkpoint.prompt_ids(*with_text(prompt, messages, sheet.instructions), options)
        answers = [checkpoint.tokenizer.encode(answer) for answer in sheet.answers]
        for answer, tokens in zip(sheet.answers, answers, strict=True):
            if (read := checkpoint.tokenizer.decode(tokens)) != answer:
                raise InputError(f"this checkpoint cannot write {answer!r}: its tokens read {read!r}")
        result.append(Alternatives(ids, [[*tokens, *end] for tokens in answers]))
        _check_alternatives(checkpoint.transformer, result[-1], len(result) - 1)  # before more prompts are tokenised
    return result


@dataclass(frozen=True)
class _Sheet:
    """One question's canvases.

    Attributes:
        prompt: token ids.
        barred: tokens of its answers, ascending: noise has none of them.
        canvases: with the (position, token, answer) of each factor that is read there.
    """

    prompt: tuple[int, ...]
    barred: Tensor
    canvases: dict[tuple[int, ...], list[tuple[int, int, int]]]

    @classmethod
    def of(cls, one: Alternatives, factors: Sequence[Sequence[Factor]]) -> "_Sheet":
        barred = sorted({token for answer in one.answers for token in answer})
        canvases: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        for answer, mine in enumerate(factors):
            for factor in mine:
                canvases.setdefault(factor.canvas, []).append((factor.position, factor.token, answer))
        return cls(tuple(one.prompt), torch.tensor(barred), canvases)


class _Row(NamedTuple):
    """A canvas under one draw of noise; ``log_A`` takes what is read there."""

    sheet: _Sheet
    canvas: tuple[int, ...]
    draw: int
    log_A: Tensor


def _groups(sheets: Sequence[_Sheet], logs: Sequence[Tensor], draws: int, most: int) -> Iterator[list[_Row]]:
    """All rows, question after question, cut so that no group has more than so many prompts."""
    group: list[_Row] = []
    prompts: set[tuple[int, ...]] = set()
    for sheet, log_NA in zip(sheets, logs, strict=True):
        if sheet.prompt not in prompts and len(prompts) == most:
            yield group
            group, prompts = [], set()
        prompts.add(sheet.prompt)
        group += [_Row(sheet, canvas, draw, log_NA[draw]) for draw in range(draws) for canvas in sheet.canvases]
    yield group


def _denoised(
    model: Transformer,
    rows: Sequence[_Row],
    cache: KVCache,
    prompts: Sequence[tuple[int, ...]],
    seed: int,
    canvas_window: CanvasWindow,
    call: Call,
) -> None:
    """One pass; the log-probabilities of the factors that are read in it are added to those of their answers."""
    tokens_RL = torch.stack([_noised(row, seed, model.process) for row in rows]).to(model.device)
    read = [(place, *factor) for place, row in enumerate(rows) for factor in row.sheet.canvases[row.canvas]]
    place_F, at_F, token_F, _ = torch.tensor(read, device=model.device).unbind(1)
    # Each place once, however many tokens are read there: its logits are as long as the vocabulary.
    places, which_F = torch.unique(place_F * tokens_RL.shape[1] + at_F, return_inverse=True)
    result: list[float] = []

    @torch.inference_mode()
    def work() -> None:
        chosen = cache.select([prompts.index(row.sheet.prompt) for row in rows])
        hidden = model.denoise(tokens_RL, chosen, None, canvas_window).flatten(0, 1)
        result.extend(model.logits(hidden[places]).log_softmax(-1)[which_F, token_F].tolist())

    call(work)
    for (place, _, _, answer), log in zip(read, result, strict=True):
        rows[place].log_A[answer] += log


def _noised(row: _Row, seed: int, process: NoiseProcess) -> Tensor:
    """The canvas with noise at its open positions ``[L]``: tokens that no answer of its question could have."""
    given_1 = torch.zeros(1, dtype=torch.int64)
    keys_1L = position_keys(given_1 + seed, given_1 + row.draw, given_1, RngPurpose.INITIAL, len(row.canvas))
    ids_L = process.prior(keys_1L, row.sheet.barred)[0]
    known_L = torch.tensor(row.canvas)
    return torch.where(known_L == OPEN, ids_L, known_L)


def _agreed(answers: Sequence[Sequence[int]], *, first: bool = False) -> set[int]:
    """Positions at which all answers have the same token; with ``first`` only those before the first difference."""
    same = [len(set(tokens)) == 1 for tokens in zip(*answers, strict=False)]
    end = same.index(False) if first and False in same else len(same)
    return {at for at in range(end) if same[at]}


def _canvas(answer: Sequence[int], known: set[int], length: int) -> tuple[int, ...]:
    return tuple(answer[at] if at in known else OPEN for at in range(length))


def _check_alternatives(model: Transformer, one: Alternatives, row: int = 0, seed: int = 0) -> int:
    """Refuse what cannot be decided; returns the cache slots it needs.

    Args:
        model: the stack.
        one: the answers to compare.
        row: its number, for messages.
        seed: of the noise.

    Raises:
        InputError, PromptTooLongError, OptionError: see ``decide``.
    """
    length, vocab_size = model.config.canvas_length, model.config.text.vocab_size
    longest = max(map(len, one.answers))
    if longest > length:
        raise InputError(
            f"the longest answer has {longest} tokens with its end, a canvas has {length}; "
            "shorten the template or the options, or ask fewer questions jointly"
        )
    if len(set(map(tuple, one.answers))) < len(one.answers):
        raise InputError("two answers are the same tokens to this checkpoint; the options must differ in more than it can tell")
    ranked = sorted(map(tuple, one.answers))
    if any(longer[: len(answer)] == answer for answer, longer in pairwise(ranked)):
        raise InputError("an answer is the beginning of another, and this checkpoint has no stop token to tell them apart by")
    if len({token for answer in one.answers for token in answer}) == vocab_size:
        raise InputError(f"the answers use all {vocab_size} tokens there are; nothing is left for noise. Give fewer options")
    return check(model, Request(prompt=list(one.prompt), params=SamplingParams(max_tokens=length, seed=seed)), row).slots
