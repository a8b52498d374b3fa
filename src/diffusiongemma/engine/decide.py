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
one of them. The noise is the same in all rows: a function of (seed, draw, position). Behind an answer's end there is noise too.
Shapes: A answers, R rows, N draws of noise, L canvas, D hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma.engine.prefill import encode_prompts
from diffusiongemma.engine.request import Request, check
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.kernels import Stream, position_keys, random_ids
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.sampler import SamplingParams

__all__ = ["MOST_DRAWS", "OPEN", "Alternatives", "Decided", "Factor", "Rule", "chain", "decide"]

OPEN = -1
"""Stands on a canvas where nothing is known."""
ROWS_A_PASS = 64
"""Canvases denoised at a time: bounds the memory; more of them take more passes."""
MOST_DRAWS = 64


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


def chain(answers: Sequence[Sequence[int]], length: int, *, whole_tail: bool = False) -> list[list[Factor]]:
    """The factors of each answer's probability (see the module).

    Args:
        answers: A lists of token ids, none longer than ``length``.
        length: of the canvas.
        whole_tail: every token of what all answers end with is a factor.
    """
    known_to_all = _agreed(answers)
    tail = 0 if whole_tail else len(_agreed([answer[::-1] for answer in answers], first=True))
    factors = []
    for answer in answers:
        layout = _agreed([other for other in answers if len(other) == len(answer)])
        mine, known = [], set(known_to_all)
        for places in (layout, set(range(len(answer)))):
            for at in sorted(places - known):
                if at <= len(answer) - tail:
                    mine.append(Factor(_canvas(answer, known, length), at, answer[at]))
                known.add(at)
        factors.append(mine)
    return factors


@torch.inference_mode()
def decide(model: Transformer, asked: Sequence[Alternatives], *, seed: int = 0, draws: int = 1, rule: Rule = chain) -> Decided:
    """Compare answers, for one question or several at once.

    Args:
        model: the stack.
        asked: at least one; each is decided as if it were alone.
        seed: of the noise.
        draws: of noise; the probabilities are the mean over them.
        rule: which factors make up a probability.

    Returns:
        The probabilities, in the order asked.

    Raises:
        InputError: answers that do not fit on a canvas, are the same tokens, or use every token there is.
        PromptTooLongError: prompt and canvas exceed the model's positions.
        OptionError: a seed or a number of draws that is not possible.
    """
    slots = _check(model, asked, seed, draws)
    by_answer = [(which, mine) for which, one in enumerate(asked) for mine in rule(one.answers, model.config.canvas_length)]
    canvases = {(which, factor.canvas): None for which, mine in by_answer for factor in mine}
    row_of = {canvas: row for row, canvas in enumerate(canvases)}
    factors = [(row_of[which, factor.canvas], factor.position, factor.token) for which, mine in by_answer for factor in mine]
    owners = [answer for answer, (_, mine) in enumerate(by_answer) for _ in mine]

    tokens_NRL = _noised(model, asked, list(canvases), seed, draws)
    prompts = list(dict.fromkeys(tuple(one.prompt) for one in asked))
    context = [prompts.index(tuple(asked[which].prompt)) for which, _ in canvases]
    cache = KVCache(model.config.text, len(prompts), slots, model.dtype, model.device)
    encode_prompts(model, prompts, cache)
    logs_NF = _read(model, tokens_NRL, cache, context, factors)

    logs_NA = logs_NF.new_zeros(draws, len(by_answer)).index_add(1, torch.tensor(owners), logs_NF)
    split = torch.split(logs_NA, [len(one.answers) for one in asked], dim=1)
    rows = draws * len(canvases)
    return Decided([logs.softmax(-1).mean(0).tolist() for logs in split], -(-rows // ROWS_A_PASS), rows)


def _noised(
    model: Transformer, asked: Sequence[Alternatives], canvases: Sequence[tuple[int, tuple[int, ...]]], seed: int, draws: int
) -> Tensor:
    """The canvases with noise at their open positions ``[N, R, L]``: tokens that no answer of their question could have."""
    length, vocab_size = model.config.canvas_length, model.config.text.vocab_size
    index_N = torch.arange(draws)
    keys_NL = position_keys(torch.full_like(index_N, seed), index_N, torch.zeros_like(index_N), Stream.INITIAL, length)
    noise = []
    for one in asked:
        barred = sorted({token for answer in one.answers for token in answer})
        ids_NL = random_ids(keys_NL, vocab_size - len(barred))
        for token in barred:
            ids_NL = ids_NL + (ids_NL >= token)
        noise.append(ids_NL)
    known_RL = torch.tensor([canvas for _, canvas in canvases])
    noise_NRL = torch.stack([noise[which] for which, _ in canvases], dim=1)
    return torch.where(known_RL == OPEN, noise_NRL, known_RL).to(model.device)


def _read(
    model: Transformer, tokens_NRL: Tensor, cache: KVCache, context: Sequence[int], factors: Sequence[tuple[int, int, int]]
) -> Tensor:
    """Log-probabilities ``[N, F]`` float64 of tokens at (row, position), from one pass over each canvas.

    Args:
        model: the stack.
        tokens_NRL: the canvases.
        cache: of the different prompts.
        context: each row's prompt.
        factors: row, position and token of each.
    """
    draws, rows, length = tokens_NRL.shape
    row_F, at_F, token_F = torch.tensor(factors, device=model.device).unbind(1)
    place_NF = (torch.arange(draws, device=model.device)[:, None] * rows + row_F) * length + at_F
    token_NF = token_F.expand_as(place_NF)
    logs_NF = torch.zeros(place_NF.shape, dtype=torch.float64, device=model.device)
    for start in range(0, draws * rows, ROWS_A_PASS):
        here = tokens_NRL.flatten(0, 1)[start : start + ROWS_A_PASS]
        prompts = [context[row % rows] for row in range(start, start + len(here))]
        hidden = model.denoise(here, cache.select(prompts, cache.max_length)).flatten(0, 1)
        mine = (place_NF >= start * length) & (place_NF < (start + len(here)) * length)
        # Each place once, however many tokens are read there: its logits are as long as the vocabulary.
        places, which = torch.unique(place_NF[mine] - start * length, return_inverse=True)
        log_probs = model.logits(hidden[places]).log_softmax(-1)
        logs_NF[mine] = log_probs[which, token_NF[mine]].double()
    return logs_NF.cpu()


def _agreed(answers: Sequence[Sequence[int]], *, first: bool = False) -> set[int]:
    """Positions at which all answers have the same token; with ``first`` only those before the first difference."""
    same = [len(set(tokens)) == 1 for tokens in zip(*answers, strict=False)]
    end = same.index(False) if first and False in same else len(same)
    return {at for at in range(end) if same[at]}


def _canvas(answer: Sequence[int], known: set[int], length: int) -> tuple[int, ...]:
    return tuple(answer[at] if at in known else OPEN for at in range(length))


def _check(model: Transformer, asked: Sequence[Alternatives], seed: int, draws: int) -> int:
    """Refuse what cannot be decided; returns the cache slots a row needs."""
    if not 1 <= draws <= MOST_DRAWS:
        raise OptionError(f"draws is {draws}; the probabilities are the mean over 1 to {MOST_DRAWS} draws of noise")
    length, vocab_size = model.config.canvas_length, model.config.text.vocab_size
    for one in asked:
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
    params = SamplingParams(max_tokens=length, seed=seed)
    return max(check(model, Request(prompt=list(one.prompt), params=params), row) for row, one in enumerate(asked))
