"""Attention over keys in several pieces is attention over all of them; shared heads change nothing but the order of work."""

import pytest
import torch
from torch import Tensor

from diffusiongemma.kernels import attend, attention, reference

BOUND = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2}


def tensors(tokens: int, keys: int, heads: int, shared: int, dtype: torch.dtype, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * keys + heads)
    q, k, v = (torch.randn(2, n, h, size, generator=generator) for n, h in ((tokens, heads), (keys, shared), (keys, shared)))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """In float64, by the formula; nothing of it is the library's."""
    groups = q.shape[2] // k.shape[2]
    k, v = (x.double().repeat_interleave(groups, 2) for x in (k, v))
    scores = torch.einsum("btnh,bsnh->bnts", q.double(), k)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.einsum("bnts,bsnh->btnh", scores.softmax(-1), v).flatten(2)


def near(ours: Tensor, theirs: Tensor) -> bool:
    return float((ours.double() - theirs).abs().max() / theirs.abs().max()) < BOUND[ours.dtype]


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_pieces_of_any_size_are_one(dtype: torch.dtype, heads: int, shared: int, tokens: int) -> None:
    q, k, v = tensors(tokens, 70, heads, shared, dtype)
    everything = plain(q, k, v, None)
    own = torch.ones(tokens, 70, dtype=torch.bool).tril(70 - tokens)
    causal = plain(q, k, v, own)
    for sizes in ([70 - tokens, tokens], [1, 69 - tokens, tokens], [7] * ((70 - tokens) // 7) + [(70 - tokens) % 7 + tokens]):
        pieces = list(zip(k.split(sizes, 1), v.split(sizes, 1), strict=True))
        assert near(attention(q, pieces), everything)
        if sizes[-1] == tokens:
            assert near(attention(q, pieces, "causal"), causal)
    assert near(attention(q, [(k, v)], own), causal)


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 1)])
def test_a_whole_sequence_in_causal_order(heads: int, shared: int) -> None:
    q, k, v = tensors(33, 33, heads, shared, torch.float64)
    assert near(attention(q, [(k, v)], "causal"), plain(q, k, v, torch.ones(33, 33, dtype=torch.bool).tril()))


def test_pieces_that_nobody_attends_to_change_nothing() -> None:
    """Masses that differ by e^200 meet without an infinity or a NaN."""
    q, k, v = tensors(5, 30, 4, 4, torch.float32)
    far = -1e3 * q[:, :1].expand(-1, 30, -1, -1)
    alone = attention(q[:, :1], [(k[:, :5], v[:, :5])])
    for pieces in ([(far, v), (k[:, :5], v[:, :5])], [(k[:, :5], v[:, :5]), (far, v)]):
        assert torch.allclose(attention(q[:, :1], pieces), alone, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_the_logarithms_are_those_of_the_reference(causal: bool) -> None:
    q, k, v = tensors(12, 12, 6, 2, torch.float64)
    out, lse = attend.attention_lse(q, k, v, causal)
    expected, expected_lse = reference.attention_lse(*(x.transpose(1, 2) for x in (q, k, v)), causal)
    assert torch.allclose(out, expected, atol=1e-12) and torch.allclose(lse, expected_lse, atol=1e-12)
