"""Peak memory of some work: the GPU allocator's peak, or on a CPU the peak resident set of this process."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Reset the peak, so that only what follows is measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")  # proc(5): 5 resets VmHWM to the current resident size


def peak_gb(device: torch.device) -> float:
    """Return the peak since `reset_peak` in units of 1e9 bytes.

    On systems other than Linux the peak cannot be reset: that of the whole process is returned, an upper bound.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if _STATUS.exists():
        match = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        if match:
            return int(match[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
