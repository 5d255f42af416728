"""Shared by GPU tests: the device, the folder of a run, processes, and the number of waits for the device."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support.commands import Outcome

ROOT = Path(__file__).parents[2]
DEVICE = os.environ.get("DLRUN_GPU_TESTS_DEVICE", "cuda")
# tests read single files of a run; none tests checks unless it turns them on
QUIET = ("check=none", "trainer.report=false", "trainer.threads=1")


@dataclass
class Run:
    """The folder of a finished run."""

    path: Path
    outcome: Outcome

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "result.json").read_text())
        return found

    @property
    def log(self) -> str:
        return (self.path / "log.txt").read_text()

    def column(self, name: str) -> list[float]:
        """A column of metrics.csv."""
        with open(self.path / "metrics.csv", newline="") as file:
            return [float(row[name]) for row in csv.DictReader(file)]

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        found: dict[str, Any] = torch.load(self.path / "checkpoints" / f"{name}.pt", weights_only=True)
        return found


def located(words: tuple[str, ...], arrays: Path) -> tuple[str, ...]:
    """Return the words, with the path of the arrays if they use them, also in place of {arrays}."""
    words = tuple(word.replace("{arrays}", str(arrays)) for word in words)
    return (*words, f"dataset.path={arrays}") if "dataset=arrays" in words else words


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """Start dlrun in a new process, from a folder."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), **env}
    command = [sys.executable, "-m", "dlrun", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=found, text=True, **pipes)


class _Asked(TorchDispatchMode):
    """Counts the operations that read a tensor's values from Python, which on CUDA would wait for the GPU."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        if name in self.WAIT or (name == "index" and any(_mask(i) for i in args[1])):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def _mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Count the operations that make Python wait for the device, by name; on CUDA with torch's sync debug mode."""
    found: Counter[str] = Counter()
    if DEVICE != "cuda":
        with _Asked() as mode:
            yield found
        found.update(mode.found)
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one in said:
        if "synchronizing CUDA operation" in str(one.message):
            found[f"{Path(one.filename).name}:{one.lineno}"] += 1
