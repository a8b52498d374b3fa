"""Numbers that look random, and depend on their key alone."""

import math

import torch

from diffusiongemma.kernels import RngPurpose, draw, position_keys, random_ids
from diffusiongemma.kernels.rng import gumbel_at


def keys(seeds: list[int], canvas: int = 0, step: int = 0, stream: RngPurpose = RngPurpose.DRAW, length: int = 16) -> torch.Tensor:
    seed_B = torch.tensor(seeds)
    return position_keys(seed_B, torch.full_like(seed_B, canvas), torch.full_like(seed_B, step), stream, length)


def gumbel(keys_BL: torch.Tensor, size: int) -> torch.Tensor:
    return gumbel_at(keys_BL[..., None], torch.arange(1, size + 1))


def test_a_row_draws_the_same_alone_and_in_any_batch() -> None:
    alone = keys([7])
    for seeds in ([7, 8], [8, 7], [1, 2, 3, 7, 4]):
        row = seeds.index(7)
        assert torch.equal(keys(seeds)[row], alone[0])
        assert torch.equal(gumbel(keys(seeds), 50)[row], gumbel(alone, 50)[0])
    # A longer canvas begins with the same numbers, and a larger vocabulary too.
    assert torch.equal(keys([7], length=40)[:, :16], alone)
    assert torch.equal(gumbel(alone, 80)[..., :50], gumbel(alone, 50))


def test_every_part_of_the_key_counts() -> None:
    seen = set()
    for seed in range(4):
        for canvas in range(4):
            for step in range(4):
                for stream in RngPurpose:
                    seen.update(keys([seed], canvas, step, stream).flatten().tolist())
    assert len(seen) == 4 * 4 * 4 * 3 * 16


def test_the_mixer_is_splitmix64() -> None:
    """Known answers: the first outputs of SplitMix64 seeded with 1234567."""
    from diffusiongemma.kernels.rng import mix

    golden = 0x9E3779B97F4A7C15
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    states = [(1234567 + golden * (i + 1)) % 2**64 for i in range(5)]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    assert [value % 2**64 for value in mix(signed).tolist()] == expected


def test_random_ids_are_uniform() -> None:
    ids = random_ids(keys(list(range(2000)), length=50), 64)
    counts = torch.bincount(ids.flatten(), minlength=64).double()
    assert ids.min() == 0 and ids.max() == 63
    # Chi-square with 63 degrees of freedom: mean 63, standard deviation 11.2.
    chi = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 20 < chi < 110
    # Neighbouring positions and seeds are unrelated.
    wide = ids.double() - 31.5
    for other in (wide.roll(1, 0), wide.roll(1, 1)):
        assert abs((wide * other).mean() / wide.var()) < 0.02


def test_gumbel_moments() -> None:
    noise = gumbel(keys(list(range(100)), length=20), 500).double()
    assert torch.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772) < 0.005
    assert abs(noise.var() - math.pi**2 / 6) < 0.01


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -3.0, 0.5])
    drawn = draw(logits.expand(4000, 10, 5), keys(list(range(4000)), length=10))
    share = torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()
    assert torch.allclose(share, logits.softmax(0), atol=0.008)


def test_draws_follow_the_softmax_over_many_groups() -> None:
    """Ten groups, the last one not full, with masses of their own and a token that cannot be."""
    logits = torch.randn(610, generator=torch.Generator().manual_seed(0)) + torch.linspace(-1, 2, 610)
    logits[3] = -torch.inf
    drawn = draw(logits.expand(6000, 20, 610), keys(list(range(6000)), length=20))
    counts = torch.bincount(drawn.flatten(), minlength=610).double()
    expected = logits.double().softmax(0) * drawn.numel()
    assert counts[3] == 0
    # Chi-square with 608 degrees of freedom: mean 608, standard deviation 35.
    chi = ((counts - expected) ** 2 / expected.clamp(min=1e-9)).sum()
    assert 450 < chi < 770


def test_large_seeds_are_seeds_too() -> None:
    seeds = [0, 1, 2**31, 2**32, 2**62, 2**63 - 1]
    assert len(set(random_ids(keys(seeds), 2**40).flatten().tolist())) == 16 * len(seeds)
