"""Log-probabilities that come with the tokens of an answer.

Shapes: T tokens, D hidden, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusiongemma.engine.events import TokenLogprob
from diffusiongemma.model.transformer import Transformer

__all__ = ["LOGITS_BYTES", "alternatives"]

LOGITS_BYTES = 64 << 20
"""Most memory of the logits at a time: for 262,144 tokens and 16 rows, four positions."""


@torch.inference_mode()
def alternatives(model: Transformer, before_TD: Tensor, ids: Sequence[int], top: int) -> list[TokenLogprob]:
    """Tokens and what else was probable at their places.

    Args:
        model: the stack.
        before_TD: ``[T, D]`` final hidden states of the causal role, each of the token before.
        ids: T tokens.
        top: alternatives a token.
    """
    result: list[TokenLogprob] = []
    chunk = max(1, LOGITS_BYTES // (4 * model.config.text.vocab_size))
    for start in range(0, len(ids), chunk):
        here = ids[start : start + chunk]
        log_probs_TV = model.logits(before_TD[start : start + chunk]).log_softmax(-1)
        best = log_probs_TV.topk(top, dim=-1)
        mine = log_probs_TV.gather(-1, torch.tensor(here, device=log_probs_TV.device)[:, None]).squeeze(-1)
        for token, own, values, places in zip(here, mine.tolist(), best.values.tolist(), best.indices.tolist(), strict=True):
            result.append(TokenLogprob(token, own, list(zip(places, values, strict=True))))
    return result
