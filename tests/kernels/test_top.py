"""Draws among the most probable tokens: none that is cut off, and the others in the proportions of their probabilities."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusiongemma.kernels import draw_top

NO_K, NO_P, NO_MIN = 256, math.inf, 0.0


def drawn(
    logits: Tensor, keys: Tensor, top_k: int = NO_K, top_p: float = NO_P, min_p: float = NO_MIN, noise: float = 1.0
) -> Tensor:
    """A draw for each key, all of one distribution ``[V]``."""
    z, ids = logits.topk(min(256, len(logits)))
    count = len(keys)
    cut_off = (torch.tensor([value] * count) for value in (top_k, top_p, min_p))
    best = logits.softmax(-1).max().expand(count)
    return draw_top(z.expand(count, -1), ids.expand(count, -1), best, keys, torch.full((count,), noise), *cut_off)


def plainly_kept(logits: Tensor, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Their definitions, one token after another."""
    p = logits.double().softmax(-1)
    kept, before = set(), 0.0
    for place, token in enumerate(p.argsort(descending=True).tolist()):
        # A token on the border is left to rounding.
        if place == 0 or (place < top_k and before < top_p + 1e-6 and p[token] >= (min_p - 1e-6) * p.max()):
            kept.add(token)
        before += float(p[token])
    return kept


@given(
    st.integers(2, 300), st.floats(0.1, 6), st.integers(1, 40), st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 1 << 30)
)  # fmt: skip
def test_what_is_cut_off_is_never_drawn(vocab: int, scale: float, top_k: int, top_p: float, min_p: float, seed: int) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * scale
    keys = torch.arange(64) * 7919 + seed
    for options in ((top_k, NO_P, NO_MIN), (NO_K, top_p, NO_MIN), (NO_K, NO_P, min_p), (top_k, top_p, min_p)):
        assert set(drawn(logits, keys, *options).tolist()) <= plainly_kept(logits, *options)
    assert set(drawn(logits, keys, 1).tolist()) == {int(logits.argmax())}


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(4, NO_P, NO_MIN), (NO_K, 0.8, NO_MIN), (NO_K, NO_P, 0.2), (6, 0.9, 0.1)])
def test_what_is_left_keeps_its_proportions(top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.tensor([2.0, 1.7, 1.2, 0.9, 0.4, 0.0, -0.5, -1.0, -2.0, -4.0])
    kept = sorted(plainly_kept(logits, top_k, top_p, min_p))
    assert 1 < len(kept) < len(logits)
    count = 20_000
    tokens = drawn(logits, torch.arange(count) * 104_729 + 5, top_k, top_p, min_p)
    seen = torch.bincount(tokens, minlength=len(logits))[kept].double()
    expected = logits[kept].double().softmax(-1) * count
    assert seen.sum() == count
    # The 99.99% quantile of chi-square with up to 9 degrees of freedom is below 34.
    assert float(((seen - expected) ** 2 / expected).sum()) < 34


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.7, 1.0])
def test_less_noise_is_a_lower_temperature(noise: float) -> None:
    logits, count = torch.tensor([2.0, 1.7, 1.2, 0.9, 0.4]), 20_000
    tokens = drawn(logits, torch.arange(count) * 104_729 + 5, noise=noise)
    if noise == 0:
        assert set(tokens.tolist()) == {0}
        return
    seen, expected = torch.bincount(tokens, minlength=5).double(), (logits.double() / noise).softmax(-1) * count
    assert float(((seen - expected) ** 2 / expected.clamp(min=1e-9)).sum()) < 34
