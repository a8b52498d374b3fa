"""Which of several whole answers: their probabilities, read off canvases in a single denoising pass.

An answer's probability is a product of factors ``p(token | what is known)``, by the chain rule over the positions in which the
answers differ. Each factor is read at temperature 1 from a canvas that holds what is known, and noise elsewhere; the canvases
are rows of one batch. Two answers of one length and a third that is longer (``.`` noise, ``$`` end, ``-`` padding)::

    answers          known to all     1. where what is common to       2. what differs among those of this length,
                                         this length stands               from left to right
    i s a $ - -      i s . . . -      i s . [$] . -                    i s [a] $ - -     i s [b] $ - -
    i s b $ - -                       (one canvas for both)            (one canvas for both)
    i s c d $ -                       i s [c] . . -   i s c [d] . -   i s c d [$] -      nothing is left

Answers of one length skip step 1, and where they differ in one token all factors come from one canvas: a softmax over the
options. Answers are then compared with each other only: their probabilities sum to 1.

An open position never holds a token that an answer could have there. Under uniform noise the posterior of a clean token v
where the canvas shows n is ``p(v | rest) * (t / V)`` for every v but n, so that n cancels between the options, unless it is
one of them. The noise is the same in all rows: a function of (seed, draw, position).
Shapes: A answers, R rows, N draws of noise, L canvas, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma.engine.runner import Batch, admit, encode_prompts
from diffusiongemma.errors import InputError, OptionError
from diffusiongemma.kernels import Stream, position_keys, random_ids
from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.sampler import SamplingParams

__all__ = ["MOST_DRAWS", "OPEN", "Alternatives", "Decided", "Factor", "chain", "decide"]

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


def chain(answers: Sequence[Sequence[int]], length: int, pad: int) -> list[list[Factor]]:
    """The factors of each answer's probability (see the module).

    Args:
        answers: A lists of token ids, none longer than ``length``.
        length: of the canvas.
        pad: stands behind an answer; it is known as soon as the answer's end is.
    """
    canvases = [[*answer, *[pad] * (length - len(answer))] for answer in answers]
    known_to_all = _agreed(canvases)
    factors = []
    for answer, canvas in zip(answers, canvases, strict=True):
        layout = _agreed([other for other, ids in zip(canvases, answers, strict=True) if len(ids) == len(answer)])
        mine, known = [], set(known_to_all)
        for places in (layout, set(range(length))):
            for at in sorted(places - known):
                if at < len(answer):
                    mine.append(Factor(tuple(token if i in known else OPEN for i, token in enumerate(canvas)), at, canvas[at]))
                known.add(at)
        factors.append(mine)
    return factors


@torch.inference_mode()
def decide(model: Transformer, asked: Sequence[Alternatives], *, seed: int = 0, draws: int = 1) -> Decided:
    """Compare answers, for one question or several at once.

    Args:
        model: the stack.
        asked: each is decided as if it were alone.
        seed: of the noise.
        draws: of noise that the probabilities are the mean over.

    Raises:
        InputError: answers that do not fit on a canvas, are the same tokens, or use every token there is.
        PromptTooLongError: prompt and canvas exceed the model's positions.
        OptionError: draws below 1 or too many.
    """
    _check(model, asked, seed, draws)
    config = model.config
    chains = [chain(question.answers, config.canvas_length, config.text.pad_token_id or 0) for question in asked]
    total = [torch.zeros(len(question.answers), dtype=torch.float64) for question in asked]
    rows: dict[tuple[int, tuple[int, ...]], int] = {}
    for which, factors in enumerate(chains):
        for factor in (factor for mine in factors for factor in mine):
            rows.setdefault((which, factor.canvas), len(rows))
    flat = [(rows[which, f.canvas], f, which, i) for which, fs in enumerate(chains) for i, mine in enumerate(fs) for f in mine]
    reads = [(row, factor.position, factor.token) for row, factor, _, _ in flat]
    passes = 0
    for log_probs, passes_taken in _read(model, asked, list(rows), reads, _noise(model, asked, seed, draws)):
        passes += passes_taken
        logs = [torch.zeros_like(sums) for sums in total]
        for (_, _, which, i), log_prob in zip(flat, log_probs, strict=True):
            logs[which][i] += log_prob
        for sums, log in zip(total, logs, strict=True):
            sums += log.softmax(0) / draws
    return Decided([sums.tolist() for sums in total], passes, draws * len(rows))
