"""What there is on this machine, and what this process has of it."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["free_memory", "give_back", "keep_freed", "peak_resident", "resident", "synchroniser"]

_REUSED = 31 << 20
"""Bytes; 32 MiB with its head is the largest that glibc takes for its bound."""
_STATM = Path("/proc/self/statm")


def free_memory(device: torch.device | str) -> int:
    """Bytes that can be allocated now: of a CUDA device its free memory, else what the system calls available."""
    place = torch.device(device)
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident() -> int:
    """Bytes of this process that are in memory; where the system does not say, the most that were."""
    if _STATM.is_file():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_resident()


def peak_resident() -> int:
    """The most bytes of this process that were in memory; 0 where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    # macOS counts bytes, others kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back() -> None:
    """Return freed memory to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):  # a C library without malloc_trim keeps what it has
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed() -> None:
    """Let the C library keep freed memory of up to 32 MiB for the next pass, instead of returning it page by page.

    glibc maps what is larger than a bound anew each time, and moves that bound up when a larger piece is freed: 128 KiB at first,
    and loading weights by memory map frees nothing large. Without this a step of a small model spends a sixth of its time
    in page faults (docs/lab-log.md).
    """
    torch.empty(_REUSED, dtype=torch.uint8)


def synchroniser(device: torch.device) -> Callable[[], None]:
    """What waits until a device has done everything it was given; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None
