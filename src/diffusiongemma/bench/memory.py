"""The highest memory of this process, or of its GPU, between two moments."""

import gc
import threading
from pathlib import Path
from typing import Protocol

import torch

from diffusiongemma.generation.machine import give_back, peak_resident, resident

__all__ = ["Peak", "peak_of"]

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
STATM = Path("/proc/self/statm")
SAMPLE_SECONDS = 0.002


class Peak(Protocol):
    """One way to find a peak; ``method`` says which, for the report."""

    method: str

    def now(self) -> int:
        """Bytes in use, after whatever is free has been given back."""

    def start(self) -> None:
        """Forget earlier peaks."""

    def stop(self) -> int:
        """The most bytes since ``start``."""


def peak_of(device: torch.device) -> Peak:
    """The most exact way that this device and system have."""
    if device.type == "cuda":
        return CudaPeak(device)
    if not STATM.is_file():
        return LifetimePeak()
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return SampledPeak()
    return KernelPeak()


class CudaPeak:
    """What torch's allocator handed out; its own reserves and the CUDA context are not counted."""

    method = "torch.cuda.max_memory_allocated"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> int:
        """Bytes handed out."""
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(self._device)

    def start(self) -> None:
        """Forget earlier peaks."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def stop(self) -> int:
        """The most since ``start``."""
        return torch.cuda.max_memory_allocated(self._device)


class KernelPeak:
    """The resident set's high-water mark, which Linux keeps and resets on request."""

    method = "VmHWM of /proc/self/status, reset through /proc/self/clear_refs"

    def now(self) -> int:
        """The resident set."""
        give_back()
        return resident()

    def start(self) -> None:
        """Forget earlier peaks."""
        CLEAR_REFS.write_text("5")

    def stop(self) -> int:
        """The most since ``start``."""
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024


class SampledPeak:
    """The resident set, looked at every few milliseconds by a thread: a shorter peak is missed."""

    method = f"resident set, sampled every {SAMPLE_SECONDS * 1000:g} ms"

    def now(self) -> int:
        """The resident set."""
        give_back()
        return resident()

    def start(self) -> None:
        """Begin to look."""
        self._most, self._done = resident(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The most since ``start``."""
        self._done.set()
        self._thread.join()
        return max(self._most, resident())

    def _look(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._most = max(self._most, resident())


class LifetimePeak:
    """The process's high-water mark where it cannot be reset: it holds loading too, so that it is an upper bound."""

    method = "ru_maxrss of the whole process, loading included"

    def now(self) -> int:
        """The mark so far."""
        return peak_resident()

    def start(self) -> None:
        """Nothing can be forgotten."""

    def stop(self) -> int:
        """The mark so far."""
        return self.now()
