"""How many processor cores this process may use (`trainer.threads=0`, workers of a sweep, threads that decode)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["cores"]


def cores(root: Path = Path("/")) -> int:
    """Return the number of cores: those of the process's mask, and no more than the quota of its container.

    A quota, such as of `docker run --cpus=2`, leaves all cores visible; one thread for each of them would make the
    system stop all threads for most of the time.
    """
    masked = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([masked, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The cores that each control group above this process allows: cgroups(7), cpu.max of version 2, cpu.cfs_* of 1."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if not controllers:
                mounted, names = root / "sys/fs/cgroup", ["cpu.max"]
            elif "cpu" in controllers.split(","):
                mounted, names = root / "sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            else:
                continue
            folder = mounted / own.lstrip("/")
            for above in (folder, *folder.parents):  # a limit of a group holds for all below it
                if above.is_relative_to(mounted):
                    yield from _read(above, names)


def _read(folder: Path, names: list[str]) -> Iterator[float]:
    with suppress(OSError, ValueError):  # "max" and a quota of -1 are none
        quota, period = (int(word) for name in names for word in (folder / name).read_text().split())
        if quota > 0 and period > 0:
            yield quota / period
