"""Memory: reused from step to step; its peak, a column of metrics.csv and of `dlrun batch_time` (B7, O6).

The peak is what torch allocated on an accelerator, or all that the process held on a processor, its code included.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

import torch

__all__ = ["collect_often", "forget_peak", "keep_freed", "out_of_memory", "peak_mb"]

OFTEN = 50_000
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def keep_freed() -> None:
    """Let the C library keep memory that a training step frees for the next one, instead of returning it to the system.

    How many pages the next step must request again depends on the layout of the memory. Measured in four pairs of
    processes, cnn on 128 images of 32 × 32: the system took 0.5 to 18.8 ms per step without this (1 to 15 %), 0 to
    1.1 ms with it, and in one pair there was no gain. Only the GNU library returns memory so early; with any other
    library this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL("libc.so.6")
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h; a process's peak stays what it was
        for option in (-3, -1):
            library.mallopt(option, 1 << 30)


def collect_often() -> None:
    """Look for unreachable objects once in 50,000 new ones, if it is done less often: such as while torch is imported.

    Objects that name each other may hold tensors. Those of the imports are not looked at again.
    """
    if gc.get_threshold()[0] > OFTEN:
        gc.freeze()
        gc.set_threshold(OFTEN, 10, 10)


def forget_peak(device: torch.device) -> None:
    """Reset the peak; if the system cannot, it remains that of the whole process so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with contextlib.suppress(OSError):
            CLEAR.write_text("5")  # Linux: the peak falls back to what is held now


def peak_mb(device: torch.device) -> float | None:
    """Return the peak in MiB since `forget_peak`; None if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu":
        return None
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()):
            return int(found[1]) / 2**10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; the allocator of the processor raises only a RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # "alloc_failed": what cuBLAS and cuDNN say when they find no room on the card
    words = ("not enough memory", "out of memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
