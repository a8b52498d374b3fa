"""The tiled canvas head against the plain one, which holds all logits."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffusiongemma import kernels
from diffusiongemma.kernels import RngPurpose, SoftPositions, Statistics, dispatch, position_keys, reference, tiled

CAP = 30.0
EVERYWHERE: SoftPositions = {None: None}


def case(rows: int, length: int, vocab: int, hidden: int, spread: float, dtype: torch.dtype, seed: int = 0) -> tuple[Any, ...]:
    """Arguments of a canvas head; ``spread`` is about the logits' standard deviation."""
    made = torch.Generator().manual_seed(seed)
    hidden_BLD = torch.randn(rows, length, hidden, generator=made).to(dtype)
    table_VD = (torch.randn(vocab, hidden, generator=made) * spread * hidden**-0.5).to(dtype)
    seeds = torch.arange(rows)
    keys = position_keys(seeds, seeds, seeds, RngPurpose.DRAW, length)
    return hidden_BLD, table_VD, CAP, torch.linspace(0.8, 0.4, rows), keys


def tile_by_tile(
    arguments: tuple[Any, ...], numbers: int, likely: Tensor, soft: SoftPositions = EVERYWHERE, **options: Any
) -> Statistics:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "TILE_NUMBERS", numbers)
        patch.setattr(tiled, "TILE_MIN", 64)
        return tiled.canvas_head(*arguments, likely, soft=soft, **{"compute": arguments[1].dtype} | options)


@settings(max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 700),
    st.sampled_from([0.1, 3.0, 30.0, 300.0]),
    st.sampled_from([0, 300, 2000, 1 << 18]),
    st.integers(0, 99),
)
def test_equals_the_plain_head(rows: int, length: int, vocab: int, spread: float, numbers: int, seed: int) -> None:
    """Any shape, flat to one-sided distributions, from a tile a group of the draw to one tile for all, any guess."""
    arguments = case(rows, length, vocab, 16, spread, torch.float32, seed)
    likely = torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))
    plain = reference.canvas_head(*arguments, soft=EVERYWHERE)
    ours = tile_by_tile(arguments, numbers, likely)
    assert torch.equal(ours.argmax_ids_BL, plain.argmax_ids_BL)
    assert torch.equal(ours.drawn_BL, plain.drawn_BL)
    assert torch.allclose(ours.entropy_BL, plain.entropy_BL, atol=3e-5, rtol=1e-5)
    assert torch.allclose(ours.probability_BL, plain.probability_BL, atol=1e-6, rtol=1e-5)
    assert ours.soft_BLD is not None and plain.soft_BLD is not None
    scale = float(arguments[1].abs().max())
    assert torch.allclose(ours.soft_BLD, plain.soft_BLD, atol=3e-6 * scale, rtol=1e-5)
    assert tile_by_tile(arguments, numbers, likely, soft={}).soft_BLD is None


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 700), st.integers(1, 300), st.sampled_from([0, 300, 1 << 18]), st.integers(0, 99))
def test_the_expected_row_of_the_most_probable_tokens(length: int, vocab: int, top: int, numbers: int, seed: int) -> None:
    arguments = case(2, length, vocab, 16, 3.0, torch.float32, seed)
    hidden, table, cap, temperature_, _ = arguments
    z = (torch.tanh(hidden @ table.T / cap) * cap) / temperature_[:, None, None]
    kept = z.argsort(dim=-1, descending=True)[..., :top]
    wanted = (z.gather(-1, kept).softmax(-1)[..., None] * table[kept]).sum(-2)
    likely = torch.zeros(2, length, dtype=torch.int64)
    plain = reference.canvas_head(*arguments, soft={top: None})
    ours = tile_by_tile(arguments, numbers, likely, soft={top: None})
    for statistics in (plain, ours):
        assert statistics.soft_BLD is not None and torch.allclose(statistics.soft_BLD, wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(ours.drawn_BL, plain.drawn_BL)
    assert tile_by_tile(arguments, numbers, likely, soft={}).soft_BLD is None


@pytest.mark.parametrize(("dtype", "compute"), [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float64", "float64")])
def test_other_dtypes(dtype: str, compute: str) -> None:
    """bfloat16 logits tie often: the first of equals wins in both. The sums differ by the order they are taken in."""
    arguments = case(2, 16, 900, 32, 3.0, getattr(torch, dtype))
    plain = reference.canvas_head(*arguments, soft=EVERYWHERE)
    ours = tile_by_tile(arguments, 4000, plain.argmax_ids_BL, compute=getattr(torch, compute))
    assert (ours.argmax_ids_BL == plain.argmax_ids_BL).float().mean() >= (0.9 if dtype == "bfloat16" else 1)
    assert (ours.drawn_BL == plain.drawn_BL).float().mean() >= (0.9 if dtype == "bfloat16" else 1)
    assert torch.allclose(ours.entropy_BL, plain.entropy_BL, atol=2e-2 if dtype == "bfloat16" else 1e-5)
    assert ours.soft_BLD is not None and plain.soft_BLD is not None and ours.soft_BLD.dtype == plain.soft_BLD.dtype
    assert (ours.soft_BLD - plain.soft_BLD).norm() < (1e-2 if dtype == "bfloat16" else 1e-6) * plain.soft_BLD.norm()


def test_ties_go_to_the_first() -> None:
    hidden, table, cap, temperature_, keys = case(1, 4, 500, 8, 1.0, torch.float32)
    table = torch.zeros_like(table)
    table[[70, 71, 300]] = hidden[0, 0] * 3
    ours = tile_by_tile((hidden, table, cap, temperature_, keys), 256, torch.full((1, 4), 300))
    assert ours.argmax_ids_BL[0, 0] == 70
    assert torch.equal(ours.argmax_ids_BL, reference.canvas_head(hidden, table, cap, temperature_, keys, soft={}).argmax_ids_BL)


def test_a_row_is_the_same_alone() -> None:
    arguments = case(3, 8, 640, 16, 3.0, torch.float32)
    together = tile_by_tile(arguments, 8 * 64, torch.zeros(3, 8, dtype=torch.int64))
    hidden, table, cap, temperature_, keys = arguments
    alone = tile_by_tile((hidden[1:2], table, cap, temperature_[1:2], keys[1:2]), 8 * 64, torch.zeros(1, 8, dtype=torch.int64))
    assert torch.equal(together.drawn_BL[1:2], alone.drawn_BL)
    assert torch.allclose(together.entropy_BL[1:2], alone.entropy_BL, atol=1e-5)


def test_sure_positions_need_few_products() -> None:
    """Where a likely token has nearly all the mass, other tiles' products cannot be told from rounding; where nothing is
    likely, none is left out."""
    hidden, table, cap, temperature_, keys = case(1, 32, 6400, 16, 1.0, torch.float32)
    sure = torch.arange(32)[None] * 200
    counts = {}
    for name, strength in (("sure", 60.0), ("flat", 0.0)):
        weights = table.clone()
        weights[sure[0]] += strength * hidden[0] / hidden[0].pow(2).sum(-1, keepdim=True)
        counter = tiled.SoftProducts()
        arguments = (hidden, weights, cap, temperature_, keys)
        ours = tile_by_tile(arguments, 256 * 32, sure, counter=counter)
        plain = reference.canvas_head(*arguments, soft=EVERYWHERE)
        assert ours.soft_BLD is not None and plain.soft_BLD is not None
        assert torch.allclose(ours.soft_BLD, plain.soft_BLD, atol=1e-5)
        counts[name] = counter
        assert counter.made + counter.skipped == 32 * 25
    assert counts["flat"].skipped == 0
    assert counts["sure"].skipped > counts["sure"].made


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor) and each.untyped_storage().nbytes() > table_bytes(args):
                self.numbers = max(self.numbers, each.numel())
        return out


def table_bytes(args: Any) -> int:
    """Views of the table are as large as the table and made of it; they do not count."""
    return max((a.untyped_storage().nbytes() for a in args if isinstance(a, Tensor) and a.shape[-1:] == (4,)), default=0)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_logits_never_exist(rows: int) -> None:
    arguments = case(rows, 64, 50_000, 4, 1.0, torch.float32)
    with Largest() as plain:
        reference.canvas_head(*arguments, soft=EVERYWHERE)
    with Largest() as ours:
        kernels.canvas_head(*arguments, arguments[-1] % 50_000, soft=EVERYWHERE)
    assert plain.numbers >= rows * 64 * 50_000
    assert ours.numbers <= tiled.TILE_NUMBERS < plain.numbers


def test_the_choice_and_its_reason() -> None:
    assert dispatch.canvas_head_choice(256, 262_144).name == "tiled"
    assert dispatch.canvas_head_choice(90, 64).name == "plain"
    asked = dispatch.canvas_head_choice(256, 262_144, "plain")
    assert asked.name == "plain" and asked.reason == "asked for"


@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(1, 9), st.integers(20, 700), st.sampled_from([0, 300, 1 << 18]), st.integers(0, 99))
def test_positions_have_their_own_soft_embeddings_and_best_tokens(
    rows: int, length: int, vocab: int, numbers: int, seed: int
) -> None:
    """In one call: the bits of calls in which all positions are alike."""
    arguments = case(rows, length, vocab, 16, 3.0, torch.float32, seed)
    likely = torch.zeros(rows, length, dtype=torch.int64)
    kinds = torch.randint(0, 4, (rows * length,), generator=torch.Generator().manual_seed(seed))
    counts = dict(enumerate((None, 2, 7)))  # of the fourth there is no soft embedding
    positions = {count: (kinds == kind).nonzero().squeeze(1) for kind, count in counts.items() if (kinds == kind).any()}
    asked = (kinds == 3).nonzero().squeeze(1)
    for head in (
        lambda soft, **options: reference.canvas_head(*arguments, soft=soft, **options),
        lambda soft, **options: tile_by_tile(arguments, numbers, likely, soft, **options),
    ):
        mixed = head(positions, top=5, top_at_M=asked)
        assert mixed.soft_BLD is not None or not positions
        if mixed.soft_BLD is None:
            continue
        for kind, count in counts.items():
            alike = head({count: None}).soft_BLD.flatten(0, 1)
            assert torch.allclose(mixed.soft_BLD.flatten(0, 1)[kinds == kind], alike[kinds == kind], atol=1e-6)
        assert not mixed.soft_BLD.flatten(0, 1)[kinds == 3].any()
        z = reference.soft_cap(arguments[0] @ arguments[1].T, CAP).flatten(0, 1)[asked]
        assert torch.equal(z.gather(1, mixed.top_ids_MK), z.topk(5).values)
