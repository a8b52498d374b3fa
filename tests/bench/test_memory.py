"""Peaks of a known allocation."""

import time

import pytest
import torch

from diffusiongemma.bench.memory import STATM, KernelPeak, LifetimePeak, Peak, SampledPeak, peak_of

MIB = 1 << 20
pytestmark = pytest.mark.skipif(not STATM.is_file(), reason="the resident set is read from /proc")


def peak_of_an_allocation(peak: Peak, size: int) -> int:
    base = peak.now()
    peak.start()
    held = torch.ones(size, dtype=torch.uint8)
    time.sleep(0.05)
    del held
    return peak.stop() - base


@pytest.mark.parametrize("kind", [type(peak_of(torch.device("cpu"))), SampledPeak])
def test_a_peak_is_seen_after_it_is_gone_and_then_forgotten(kind: type[Peak]) -> None:
    peak = kind()
    assert 60 * MIB < peak_of_an_allocation(peak, 64 * MIB) < 100 * MIB
    assert peak_of_an_allocation(peak, MIB) < 32 * MIB


def test_the_kernel_counts_where_it_may(monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("diffusiongemma.bench.memory.CLEAR_REFS", tmp_path)  # a folder: it cannot be written
    assert isinstance(peak_of(torch.device("cpu")), SampledPeak)
    assert KernelPeak.method != SampledPeak.method


def test_the_lifetime_mark_is_an_upper_bound() -> None:
    peak = LifetimePeak()
    assert peak.now() >= KernelPeak().now() > 10 * MIB
