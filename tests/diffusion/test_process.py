"""The two noise processes: how much is corrupted, with what, what is left alone, and what the loss counts."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffusiongemma.diffusion import Absorbing, Uniform, make_process, noise_levels, process, register_process
from diffusiongemma.errors import ConfigError
from diffusiongemma.kernels import RngPurpose, position_keys

LEVELS = torch.tensor([1e-3, 0.25, 0.75, 1.0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def keys(rows: int = 3, length: int = 4000) -> Tensor:
    seeds, zero = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)
    return position_keys(seeds, zero, zero, RngPurpose.INITIAL, length)


def test_noise_levels_are_uniform_or_high() -> None:
    even = noise_levels(20_000, generator(), 1e-3)
    assert even.min() >= 1e-3 and even.max() < 1
    assert abs(even.mean() - 0.5) < 0.01
    high = noise_levels(20_000, generator(), 1e-3, high=1.0)
    assert high.min() >= 0.5 and abs(high.mean() - 0.75) < 0.01


def test_uniform_makes_a_share_of_the_tokens_random() -> None:
    clean = torch.full((4, 50_000), 3)
    corrupted = Uniform(10).corrupt(clean, LEVELS, torch.zeros_like(clean, dtype=torch.bool), generator())
    # A random id is the clean one again with probability 1/10.
    changed = (corrupted.noisy_BL != 3).double().mean(-1)
    assert torch.allclose(changed, LEVELS.double() * 0.9, atol=0.01)
    counts = torch.bincount(corrupted.noisy_BL[3], minlength=10) / 50_000
    assert torch.allclose(counts, torch.full((10,), 0.1), atol=0.01)
    assert corrupted.weight_BL is None and corrupted.kept_BL is None


def test_absorbing_masks_a_share_of_the_tokens_and_weighs_these_alone() -> None:
    clean = torch.full((4, 50_000), 3)
    corrupted = Absorbing(10, mask_token_id=9).corrupt(clean, LEVELS, torch.zeros_like(clean, dtype=torch.bool), generator())
    masked = corrupted.noisy_BL == 9
    assert (corrupted.noisy_BL[~masked] == 3).all()
    assert torch.allclose(masked.double().mean(-1), LEVELS.double(), atol=0.01)
    assert corrupted.kept_BL is not None and torch.equal(corrupted.kept_BL, ~masked)
    assert corrupted.weight_BL is not None and torch.equal(corrupted.weight_BL, masked / LEVELS[:, None])
    # Over the levels the weights are 1 on average, so that both processes' losses are means over positions.
    assert torch.allclose(corrupted.weight_BL[1:].mean(-1), torch.ones(3), atol=0.03)


@pytest.mark.parametrize("chosen", [Uniform(5000), Absorbing(5000, 4999)])
def test_pinned_positions_stay_clean(chosen: Uniform | Absorbing) -> None:
    clean = torch.arange(1000)[None]
    pinned = clean % 2 == 0
    noisy = chosen.corrupt(clean, torch.ones(1), pinned, generator()).noisy_BL
    assert torch.equal(noisy[pinned], clean[pinned])
    assert (noisy[~pinned] != clean[~pinned]).float().mean() > 0.9


def test_noise_may_leave_out_tokens_and_is_uniform_over_the_rest() -> None:
    excluded = torch.tensor([0, 3, 4, 11])
    counts = torch.bincount(Uniform(12).prior(keys(), excluded).flatten(), minlength=12)
    assert counts[excluded].sum() == 0
    left = counts[counts > 0]
    assert len(left) == 8 and (left / left.sum()).allclose(torch.full((8,), 1 / 8), atol=0.02)


def test_absorbing_noise_is_the_mask() -> None:
    chosen = Absorbing(12, mask_token_id=7)
    assert (chosen.prior(keys()) == 7).all() and (chosen.renoise(torch.zeros(3, 4000).long(), keys()) == 7).all()


def test_a_config_names_its_process() -> None:
    assert make_process({"name": "uniform"}, 9) == Uniform(9)
    assert make_process({"name": "absorbing", "mask_token_id": 4}, 9) == Absorbing(9, 4)
    for wrong, needle in (
        ({"name": "gaussian"}, "register_process"),
        ({"name": "absorbing"}, "mask_token_id"),
        ({"name": "absorbing", "mask_token_id": 9}, "0 to 8"),
        ({"name": "absorbing", "mask_token_id": "4"}, "0 to 8"),
        ({"name": "uniform", "mask_token_id": 4}, "does not take"),
    ):
        with pytest.raises(ConfigError, match=needle):
            make_process(wrong, 9)


@pytest.fixture
def registry() -> Iterator[None]:
    """What is registered here is forgotten afterwards."""
    before = dict(process._PROCESSES)
    yield
    process._PROCESSES.clear()
    process._PROCESSES.update(before)


def test_a_process_is_registered_once(registry: None) -> None:
    @dataclass(frozen=True)
    class Other(Uniform):
        strength: float = 1.0

    register_process("other", Other)
    register_process("other", Other)
    assert make_process({"name": "other", "strength": 0.5}, 9) == Other(9, 0.5)
    with pytest.raises(ConfigError, match="registered already"):
        register_process("other", Uniform)
