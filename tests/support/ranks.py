"""The processes of one training, as torchrun would start them, but forked from one that has imported torch."""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import warm
from support.commands import Outcome

__all__ = ["CLEAN", "TINY", "ended", "environment", "free_port", "rows", "started", "unexpected"]

CLEAN = ("DLRUN_CONF", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TINY = (
    "train", "dataset=digits", "dataset.limit=150", "trainer.device=cpu", "trainer.threads=1", "check=none",
    "trainer.report=false", "optimizer=sgd", "optimizer.lr=0.05", "trainer.epochs=2", "trainer.precision=fp32",
)  # fmt: skip

# what processes say that wait for others on a slow machine; the whole line
WAITS = re.compile(
    r"^dlrun: process \d+ of \d+ has been waiting for \d+ s at \S+:\d+ for process(es)? \d+(, \d+)*; "
    r"start each with the same MASTER_ADDR and MASTER_PORT, and let every machine reach this address\n",
    re.MULTILINE,
)


def unexpected(err: str) -> str:
    """What stands on the standard error of processes besides that they wait for others."""
    return WAITS.sub("", err)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets for one process of several on one machine; nothing for a single one."""
    usual = {key: value for key, value in os.environ.items() if key not in CLEAN}
    if world == 1:
        return usual
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    return usual | {key: str(value) for key, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}


def started(folder: Path, world: int, *words: str, **env: str) -> list[Any]:
    """Start `dlrun <words>` in so many processes."""
    port, pipe = free_port(), subprocess.PIPE
    command = [sys.executable, "-m", "dlrun", *words]
    return [
        warm.popen(command, cwd=folder, env=environment(rank, world, port) | env, stdout=pipe, stderr=pipe)
        for rank in range(world)
    ]


def ended(processes: list[Any], timeout: float = 120) -> list[Outcome]:
    """Exit codes and outputs, once all have ended; kills them if they have not after some seconds, and fails."""
    try:
        for process in processes:
            process.wait(timeout)
    finally:
        for process in processes:
            process.kill()
        outputs = [process.communicate() for process in processes]
    return [Outcome(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def rows(folder: Path) -> list[dict[str, float]]:
    """The numbers of metrics.csv but times and memory."""
    with (folder / "metrics.csv").open() as file:
        found = [*csv.DictReader(file)]
    return [{k: float(v) for k, v in row.items() if v and "second" not in k and k != "memory_mb"} for row in found]
