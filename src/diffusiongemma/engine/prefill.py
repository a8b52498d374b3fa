"""Prompts of a batch into the rows of one cache, in passes that always end at the same places.

Shapes: B rows, D hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from diffusiongemma.model.cache import KVCache, prefill_chunk
from diffusiongemma.model.transformer import Transformer

__all__ = ["encode_prompts", "prefill"]


def prefill(model: Transformer, prompts: Sequence[Sequence[int]], cache: KVCache) -> Iterator[Callable[[], Tensor]]:
    """The passes of a prefill in turn, to be made one by one; each returns the rows' last hidden states so far ``[B, D]``."""
    last: dict[int, Tensor] = {}
    width = prefill_chunk(model.device)

    def encode(start: int) -> Tensor:
        going = [row for row, ids in enumerate(prompts) if len(ids) > start]
        chunks = [prompts[row][start : start + width] for row in going]
        for row, hidden_TD in zip(going, model.encode_rows(chunks, [cache.rows[row] for row in going]), strict=True):
            last[row] = hidden_TD[-1]
        return torch.stack([last[row] for row in range(len(prompts))])

    for start in range(0, max(map(len, prompts)), width):
        yield partial(encode, start)


def encode_prompts(model: Transformer, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Prefill in chunks; returns each row's last hidden state ``[B, D]``."""
    *_, last = (encode() for encode in prefill(model, prompts, cache))
    return last
