"""Memory: kept from step to step, and the most that training held at once, a column of metrics.csv and of
`dlrun batch_time` (B7, O6).

On an accelerator what torch allocated there; on the processor what the process held, code and data included.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from pathlib import Path

import torch

__all__ = ["forget_peak", "keep_freed", "out_of_memory", "peak_mb"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def keep_freed() -> None:
    """Let the C library keep what a training step frees for the next step, instead of giving it back to the system.

    How much is fetched again page by page depends on what lies where: in four pairs of processes, steps of the cnn on
    128 images of 32 × 32, the system took 0.5 to 18.8 ms a step without this (1 to 15 %) and 0 to 1.1 ms with it; in
    one pair it gained nothing.
    Only GNU's library gives it back so eagerly; elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL("libc.so.6")
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h; a process's peak stays what it was
        for option in (-3, -1):
            library.mallopt(option, 1 << 30)


def forget_peak(device: torch.device) -> None:
    """Begin to measure anew; where the system cannot, the peak is that of the whole process so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with contextlib.suppress(OSError):
            CLEAR.write_text("5")  # Linux: the peak falls back to what is held now


def peak_mb(device: torch.device) -> float | None:
    """Return the peak in MiB since `forget_peak`; None where nothing tells it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu":
        return None
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()):
            return int(found[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out: the processor's allocator has no exception of its own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # "alloc_failed": what cuBLAS and cuDNN say when they find no room on the card
    words = ("not enough memory", "out of memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
