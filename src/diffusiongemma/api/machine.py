"""What there is on this machine."""

import os
from pathlib import Path

import torch

__all__ = ["free_memory"]


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
