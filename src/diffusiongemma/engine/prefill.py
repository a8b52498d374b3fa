"""Prompts of a batch into one cache, in passes that always end at the same places.

Shapes: B rows, T prompt tokens, D hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from diffusiongemma.model.cache import KVCache
from diffusiongemma.model.transformer import Transformer

__all__ = ["encode_prompts", "prefill", "prefill_chunk"]

CHUNK, CHUNK_CPU = 1024, 128
"""Prompt tokens of a row in one pass."""


def prefill_chunk(device: torch.device) -> int:
    """Prompt tokens of a row in one pass: the same whatever else runs, so that the bits are."""
    return CHUNK_CPU if device.type == "cpu" else CHUNK


def prefill(model: Transformer, prompts: Sequence[Sequence[int]], cache: KVCache) -> Iterator[Callable[[], Tensor]]:
    """The passes of a prefill in turn, to be made one by one; each returns the rows' last hidden states so far ``[B, D]``."""
    lengths = torch.tensor([len(ids) for ids in prompts], device=model.device)
    longest = int(lengths.max())
    padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, ids in enumerate(prompts):
        padded[row, : len(ids)] = torch.tensor(ids)
    padded = padded.to(model.device)
    last: Tensor | None = None
    width = prefill_chunk(model.device)

    def encode(start: int) -> Tensor:
        nonlocal last
        chunk = padded[:, start : start + width]
        here = (lengths - start).clamp(0, chunk.shape[1])
        hidden = model.encode(chunk, cache, here)
        ends = hidden[torch.arange(len(prompts), device=model.device), (here - 1).clamp(min=0)]
        last = ends if last is None else torch.where((here > 0)[:, None], ends, last)
        return last

    for start in range(0, longest, width):
        yield partial(encode, start)


def encode_prompts(model: Transformer, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Prefill in chunks; returns each row's last hidden state ``[B, D]``."""
    *_, last = (encode() for encode in prefill(model, prompts, cache))
    return last
