"""What the causal role thinks of given texts: the log-probability of each token after its prompt.

Shapes: B rows, T tokens, D hidden, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusiongemma.engine.events import TokenLogprob
from diffusiongemma.engine.logprobs import LOGITS_BYTES, alternatives
from diffusiongemma.engine.prefill import prefill
from diffusiongemma.errors import InputError, PromptTooLongError
from diffusiongemma.model.cache import KVCache, RowCache, prefill_chunk
from diffusiongemma.model.transformer import Transformer

if TYPE_CHECKING:
    from diffusiongemma.generation.context import EditContext

__all__ = ["Scored", "log_probs", "prompt_logprobs", "score_texts"]

PASS_ROWS = 4
"""Rows of a prefill chunk's length that one pass may have as many tokens as: others may wait for it on an engine that is shared."""
Call = Callable[[Callable[[], object]], object]
"""How a pass is made."""


def log_probs(
    model: Transformer, prompt: Sequence[int], texts: Sequence[Sequence[int]], call: Call = lambda work: work()
) -> list[list[float]]:
    """Score texts that go on from one prompt.

    Args:
        model: the stack.
        prompt: token ids, not empty; encoded once.
        texts: token ids of each.
        call: makes each of the passes.

    Returns:
        For each text the log-probability of each of its tokens, in nats.
    """
    longest = max(map(len, texts), default=0)
    if not longest:
        return [[] for _ in texts]
    cache = KVCache(model.config.text, 1, len(prompt) + longest, model.cache_dtype, model.device)
    most = min(LOGITS_BYTES // (4 * model.config.text.vocab_size), PASS_ROWS * prefill_chunk(model.device))
    chunk = max(1, most // len(texts))
    rows: list[RowCache] = []
    last: list[Tensor] = []
    result: list[list[float]] = [[] for _ in texts]

    @torch.inference_mode()
    def read(encode: Callable[[], Tensor]) -> None:
        last[:] = [encode()] * len(texts)

    @torch.inference_mode()
    def score(start: int) -> None:
        rows[:] = rows or [cache.rows[0].fork() for _ in texts]
        going = [row for row, text in enumerate(texts) if len(text) > start]
        here = [texts[row][start : start + chunk] for row in going]
        hidden = model.encode_rows(here, [rows[row] for row in going])
        # Each token is predicted by the state before it.
        before = [torch.cat((last[row], hidden_TD[:-1])) for row, hidden_TD in zip(going, hidden, strict=True)]
        logs = iter(_chosen(model.logits(torch.cat(before)), [token for ids in here for token in ids]))
        for row, ids, hidden_TD in zip(going, here, hidden, strict=True):
            result[row] += [next(logs) for _ in ids]
            last[row] = hidden_TD[-1:]

    for encode in prefill(model, [prompt], cache):
        call(partial(read, encode))
    for start in range(0, longest, chunk):
        call(partial(score, start))
    return result


def prompt_logprobs(model: Transformer, ids: Sequence[int], top: int, call: Call = lambda work: work()) -> list[TokenLogprob]:
    """What the causal role thinks of each token of a text, given all before it; nothing (NaN) of the first.

    Args:
        model: the stack.
        ids: token ids, not empty.
        top: alternatives a token.
        call: makes each of the passes.
    """
    [row] = KVCache(model.config.text, 1, len(ids), model.cache_dtype, model.device).rows
    chunk, result = PASS_ROWS * prefill_chunk(model.device), [TokenLogprob(ids[0], math.nan, [])]
    last: list[Tensor] = []

    @torch.inference_mode()
    def read(start: int) -> None:
        here = list(ids[start : start + chunk])
        [hidden_TD] = model.encode_rows([here], [row])
        before_TD = torch.cat((*last, hidden_TD[:-1]))
        last[:] = [hidden_TD[-1:]]
        result.extend(alternatives(model, before_TD, here if start else here[1:], top))

    for start in range(0, len(ids), chunk):
        call(partial(read, start))
    return result


@dataclass(frozen=True)
class Scored:
    """What the causal role thinks of a text, given what stands before it.

    Attributes:
        text: as it was given.
        token_ids: its tokens, the stop token last where the text was to end.
        logprobs: of each token given all before it, in nats.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]

    @property
    def total(self) -> float:
        """Log-probability of the whole text, in nats."""
        return sum(self.logprobs)

    @property
    def confidence(self) -> float:
        """The geometric mean of the tokens' probabilities, 0 to 1."""
        return math.exp(self.total / len(self.logprobs))

    @property
    def perplexity(self) -> float:
        """The inverse of ``confidence``."""
        return math.exp(-self.total / len(self.logprobs))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "total": self.total, "confidence": self.confidence, "perplexity": self.perplexity}


def score_texts(context: "EditContext", texts: Sequence[str], end: bool) -> list[Scored]:
    """Score texts that follow the same prompt.

    Args:
        context: what they stand in.
        texts: not empty.
        end: whether each is to end there: its stop token is scored too.

    Raises:
        InputError: no text, one that is none, or characters that the tokenizer does not have.
        PromptTooLongError: prompt and text exceed the model's positions.
    """
    if not texts:
        raise InputError("there is no text to score; give at least one", "text")
    ending = [context.ending] if end and context.ending is not None else []
    ids = []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {number} is of type {type(text).__name__}; give a string", "text")
        ids.append([*context.encode(text), *ending])
        if not ids[-1]:
            raise InputError(f"text {number} is empty; give it at least one character", "text")
    most = context.model.config.text.max_position_embeddings
    if (longest := len(context.prompt) + max(map(len, ids))) > most:
        raise PromptTooLongError(f"prompt and text have {longest} tokens; the model has {most} positions")
    logs = log_probs(context.model, context.prompt, ids, context.engine.call)
    return [Scored(text, tokens, row) for text, tokens, row in zip(texts, ids, logs, strict=True)]


def _chosen(logits_TV: Tensor, ids: Sequence[int]) -> list[float]:
    """Log-probabilities of the ids."""
    ids_T1 = torch.tensor(ids, device=logits_TV.device)[:, None]
    log_probs: list[float] = (logits_TV.gather(-1, ids_T1).squeeze(-1) - logits_TV.logsumexp(-1)).tolist()
    return log_probs
