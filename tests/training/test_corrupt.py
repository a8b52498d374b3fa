"""The forward process: how much is corrupted, with what, and what is left alone."""

import torch

from diffusiongemma.training.corrupt import EPSILON, corrupt, noise_levels


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_levels_are_uniform_or_high() -> None:
    even = noise_levels(20_000, generator())
    assert even.min() >= EPSILON and even.max() < 1
    assert abs(even.mean() - 0.5) < 0.01
    high = noise_levels(20_000, generator(), high=1.0)
    assert high.min() >= 0.5 and abs(high.mean() - 0.75) < 0.01


def test_a_share_t_of_the_tokens_becomes_uniform_noise() -> None:
    clean = torch.full((4, 50_000), 3)
    levels = torch.tensor([EPSILON, 0.25, 0.75, 1.0])
    noisy = corrupt(clean, levels, 10, torch.zeros_like(clean, dtype=torch.bool), generator())
    # A random id is the clean one again with probability 1/10.
    changed = (noisy != 3).double().mean(-1)
    assert torch.allclose(changed, levels.double() * 0.9, atol=0.01)
    counts = torch.bincount(noisy[3], minlength=10) / 50_000
    assert torch.allclose(counts, torch.full((10,), 0.1), atol=0.01)


def test_pinned_positions_stay_clean() -> None:
    clean = torch.arange(1000)[None]
    keep = clean % 2 == 0
    noisy = corrupt(clean, torch.ones(1), 5000, keep, generator())
    assert torch.equal(noisy[keep], clean[keep])
    assert (noisy[~keep] != clean[~keep]).float().mean() > 0.9
