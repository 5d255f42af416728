"""Sweeps in a separate process, over a model whose trials end as its option `mood` says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.folders import sweep as sweep_folder
from support import warm
from support.commands import TINY

MOODY = """
import os, signal, time
from torch import nn

class Net(nn.Module):
    def __init__(self, in_channels, num_classes, image_size, mood="ok"):
        super().__init__()
        self.net, self.mood = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes)), mood
        print("made with", mood)
        if mood == "raise":
            raise ArithmeticError("this one raises")
        if mood == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if mood == "hang":
            time.sleep(1000)

    def forward(self, x):
        if self.mood == "slow":
            time.sleep(0.05)
        return self.net(x) * (float("nan") if self.mood == "explode" else 1)
"""


MOODS = ("train", "-m", "model=custom", "model._target_=moody.Net", "trust=[moody]", "hydra.launcher.workers=2")


QUICK = [w for w in TINY if not w.startswith("model.")]


def start(folder: Path, *words: str, real: bool = False) -> subprocess.Popen[str]:
    """Start a command there; a real process imports torch anew, and so do its workers."""
    begin = subprocess.Popen if real else warm.popen
    return begin(
        [sys.executable, "-m", "dlrun", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def rows(folder: Path) -> dict[str, dict[str, str]]:
    return {row["trial"]: row for row in sweep_folder.table(folder)}


def starts(folder: Path) -> int:
    """The number of started runs of a sweep."""
    return sum(log.read_text().count("made with") for log in folder.glob("*/log.txt"))


def workers(folder: Path) -> list[str]:
    """Processes that are in a folder: the sweep that was typed there, and its trials, which may outlive it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(folder):
                found.append(f"{process.name} {(process / 'cmdline').read_bytes()!r}")
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A sweep over four moods of a model, run to its end in a separate process."""
    folder = tmp_path_factory.mktemp("moody")
    (folder / "moody.py").write_text(MOODY)
    words = ("+model.mood=ok,raise,die,explode", *QUICK, "sweep.dir=s")
    process = start(folder, *MOODS, *words)
    out, err = process.communicate(timeout=120)
    return folder, process.returncode, out + err


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    for _ in range(4800):  # four minutes: other programs may have the cores
        if there():
            return
        if process is not None and process.poll() is not None:
            raise AssertionError("".join(process.communicate()))
        time.sleep(0.05)
    raise AssertionError("it never came")
