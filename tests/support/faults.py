"""Commands whose disk fails at a chosen operation: tests/faults/shim.c, loaded before everything else."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support import warm
from support.commands import Outcome

KILL, SHORT = -1, -2
SHIM = Path(__file__).parent.parent / "faults" / "shim.c"
ARMED = """
import ctypes, sys
place, at, kind, log = sys.argv[1:5]
ctypes.CDLL(None).fault_arm(place.encode(), ctypes.c_long(int(at)), int(kind), log.encode())
sys.argv = ["dlrun", *sys.argv[5:]]
from dlrun.cli import main
main()
"""
TIMED = ("seconds", "train_seconds", "eval_seconds", "samples_per_second", "memory_mb")
# of result.json: what a straight run and a resumed one share
SAME = ("status", "epochs", "best_epoch", "tested_epoch", "val_acc", "val_loss", "test_acc", "test_loss")


def built(folder: Path) -> Path:
    """The shim, compiled; skips the test where that cannot be done."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    library = folder / "shim.so"
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"the shim cannot be built: {done.stderr[:200]}")
    return library


@contextmanager
def preloaded(library: Path) -> Iterator[None]:
    """Let processes of `support.warm` have the shim: they come from another server."""
    kept, warm._server = warm._server, None
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        warm.close()
        warm._server = kept
        os.environ.pop("LD_PRELOAD")
        if before is not None:
            os.environ["LD_PRELOAD"] = before


def run(folder: Path, *words: str, at: int = 0, kind: int = 0, log: Path | None = None, **env: str) -> Outcome:
    """Run a command in a folder; its operation `at` below the folder fails."""
    place = str(folder.resolve())
    return warm.call(folder, place, str(at), str(kind), str(log or ""), *words, code=ARMED, **env)


def operations(folder: Path, *words: str) -> list[str]:
    """The operations of a command, each as its kind and the path in the folder."""
    log = folder.parent / f"{folder.name}.log"
    done = run(folder, *words, log=log)
    assert done.code == 0, done.err
    lines = [line.split(" ", 2) for line in log.read_text().splitlines()]
    return [f"{kind} {os.path.relpath(path, folder.resolve())}" for _, kind, path in lines]


def one_line(done: Outcome) -> None:
    """A command that failed said why in few lines without a traceback."""
    said = done.out + done.err
    assert "Traceback" not in said, said
    assert len(done.err.strip().splitlines()) <= 2, done.err  # a second one may be of the cache


def checkpoints_load(folder: Path) -> int:
    """Load every checkpoint below a folder; returns their number."""
    from dlrun.training import checkpoint

    files = [file for file in folder.rglob("*.pt") if not file.name.startswith(".")]
    for file in files:
        assert checkpoint.load(file)["epoch"] >= 1
    return len(files)


def _hashed(node: Any, total: Any) -> None:
    if isinstance(node, torch.Tensor):
        total.update(node.numpy().tobytes())
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in ("seconds", "pace"):
                total.update(str(key).encode())
                _hashed(value, total)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _hashed(value, total)
    else:
        total.update(repr(node).encode())


def essence(folder: Path) -> dict[str, Any]:
    """All of a run, or of the runs of a sweep, that must not depend on what happened on the way."""
    found: dict[str, Any] = {}
    for run_folder in sorted({file.parent for file in folder.rglob("config.yaml")}):
        name = os.path.relpath(run_folder, folder)
        for file in sorted((run_folder / "checkpoints").glob("*.pt")):
            total = hashlib.sha256()
            _hashed(torch.load(file, weights_only=True), total)
            found[f"{name}/{file.name}"] = total.hexdigest()
        with open(run_folder / "metrics.csv", newline="") as opened:
            rows = [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(opened)]
        found[f"{name}/metrics"] = rows
        with np.load(run_folder / "predictions.npz") as arrays:
            found[f"{name}/predictions"] = {k: hashlib.sha256(arrays[k].tobytes()).hexdigest() for k in arrays}
        result = json.loads((run_folder / "result.json").read_bytes())
        found[f"{name}/result"] = {key: result.get(key) for key in SAME}
    return found


@dataclass(frozen=True)
class Scenario:
    """A command, the folders that it needs, and what to type after a fault."""

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...]
    begun: str = ""  # the file that must be there for `again`; else the command is typed once more
    given: tuple[str, ...] = ()  # of the folder of donors
    results: tuple[str, ...] = ("run",)  # compared as runs
    files: tuple[str, ...] = ()  # compared as bytes

    def tried(self, donors: Path, top: Path, at: int, kind: int, expected: dict[str, Any]) -> str:
        """Let operation `at` fail, continue, and compare; returns what happened in a word."""
        here = self.place(donors, top / f"{at}-{kind}")
        before = sum(1 for _ in here.rglob("*.pt"))
        done = run(here, *self.words, at=at, kind=kind)
        note = f"{self.name} at {at} kind {kind}: {done}"
        try:
            if done.code >= 0:
                one_line(done)
            assert checkpoints_load(here) >= before
            if done.code:
                follow = self.again if not self.begun or (here / self.begun).exists() else self.words
                note += f" then {follow}"
                second = run(here, *follow)
                note += f": {second}"
                assert second.code == 0
            assert self.found(here) == expected
            left = [file.name for file in here.rglob("*.tmp")]
            assert not left or not self.begun, left
        except AssertionError as error:
            raise AssertionError(f"{note}\n{error}") from error
        shutil.rmtree(here)
        return "failed" if done.code > 0 else "killed" if done.code < 0 else "went on"

    def place(self, donors: Path, here: Path) -> Path:
        here.mkdir(parents=True)
        for name in self.given:
            shutil.copytree(donors / name, here / name, symlinks=True)
        return here

    def found(self, here: Path) -> dict[str, Any]:
        """What the command leaves: the content that must be the same, and the names of all files."""
        runs = {f"{name}/{key}": value for name in self.results for key, value in essence(here / name).items()}
        files = (file for name in self.results for file in (here / name).rglob("*") if file.suffix != ".tmp")
        names = sorted(str(file.relative_to(here)) for file in files)
        return runs | {name: (here / name).read_bytes() for name in self.files} | {"names": names}


def logged(text: str) -> None:
    """Print with the time: the whole takes long."""
    print(time.strftime("%H:%M:%S"), text, flush=True)
