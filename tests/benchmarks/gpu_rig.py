"""Shared parts of bench_gpu.py: setups, generated images, timing, and the table that grows row by row."""

from __future__ import annotations

import argparse
import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["SETUPS", "Bench", "Setup", "made", "timed"]

FAST = ("trainer.deterministic=false", "optimizer=sgd", "scheduler=constant", "augment=crop_flip", "check=none")


@dataclass(frozen=True)
class Setup:
    """A network, its images, and how many per step and per epoch."""

    name: str
    words: tuple[str, ...]
    batch: int
    images: int
    side: int = 32
    tiny: tuple[str, ...] = ("model.width=4",)


SETUPS = (
    Setup("cnn, batch 128", ("model=cnn",), 128, 12_800),
    Setup("cnn", ("model=cnn",), 512, 51_200),
    Setup("resnet20", ("model=resnet20",), 512, 51_200),
    Setup("resnet18", ("model=resnet18",), 512, 25_600),
    Setup(
        "resnet50 at 224",
        ("model=resnet50", "model.stem=imagenet"),
        *(128, 1_280, 224),
        tiny=("model.width=4", "model.blocks=[1,1,1,1]"),
    ),
)


class Table:
    """Rows that are printed, and appended to a file, as soon as they are measured."""

    def __init__(self, out: Path | None, device: str) -> None:
        self.out, self.device = out, device

    def say(self, line: str = "") -> None:
        """A line of Markdown."""
        print(line, flush=True)
        if self.out is not None:
            with open(self.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def head(self, title: str, *columns: str) -> None:
        """Begin a table."""
        self.say(f"\n### {title}\n")
        if columns:
            self.say(f"| {' | '.join(columns)} |")
            self.say("|" + " --- |" * len(columns))

    def row(self, *cells: str) -> None:
        """Add a row."""
        self.say(f"| {' | '.join(cells)} |")


def inside() -> SimpleNamespace:
    """The parts of dlrun that are measured: the one place that knows where they are."""
    from dlrun.config.compose import compose
    from dlrun.console import Screen
    from dlrun.data.batches import Batch
    from dlrun.data.jpegs import broken, read_on
    from dlrun.training import experiment, loop
    from dlrun.training.checkpoint import State
    from dlrun.training.diagnostics import Watch
    from dlrun.training.jpeg import rate
    from dlrun.training.shared_data import SharedData

    build = partial(experiment.build, shared=SharedData(share=False))  # setups of the same images read them once
    found = {"compose": compose, "build": build, "State": State, "Watch": Watch, "Screen": Screen}
    found |= {"broken": broken, "read_on": read_on, "rate": rate}

    def step(exp: Any, x: Any, y: Any, index: Any) -> Any:
        return loop.step(exp, Batch(x, y, index))

    return SimpleNamespace(**found, step=step, train_epoch=loop.train_epoch)


def synchronize(device: str) -> None:
    """Wait until all launched work is done."""
    if device != "cpu":
        import torch

        torch.accelerator.synchronize()


def timed(device: str, call: Callable[[], Any]) -> float:
    """Seconds of a call and of all work that it launched."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def made(folder: Path, name: str, side: int, train: int, val: int, test: int) -> Path:
    """Images of ten classes, noise around one pattern per class, as an .npz."""
    file, rng = folder / f"{name}.npz", np.random.default_rng(0)
    patterns = rng.integers(0, 192, (10, side, side, 3), dtype=np.uint8)
    found: dict[str, Any] = {}
    for kind, count in (("", train), ("_val", val), ("_test", test)):
        if count:
            found[f"y{kind}"] = y = np.arange(count) % 10
            found[f"x{kind}"] = patterns[y] + rng.integers(0, 64, (count, side, side, 3), dtype=np.uint8)
    np.savez(file, **found)
    return file


class Bench:
    """What all parts share: the device, the size, the remaining time, and the table."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.device, self.tiny, self.folder, self.root = options.device, options.tiny, folder, options.root
        self.table = Table(options.out, options.device)
        self.end = time.monotonic() + options.seconds
        self.dlrun = inside()
        most = {32: max(s.images for s in SETUPS if s.side == 32), 224: 1_280}
        if self.tiny:
            most = {32: 64, 224: 16}
        self.files = {s: made(folder, f"side{s}", 32 if self.tiny else s, n, 40, 40) for s, n in most.items()}

    def left(self) -> float:
        """Remaining seconds."""
        return self.end - time.monotonic()

    def built(self, setup: Setup, *words: str) -> Any:
        """The experiment of a setup."""
        batch, images = (8, 0) if self.tiny else (setup.batch, setup.images)
        own = [f"dataset.path={self.files[setup.side]}", f"trainer.batch_size={batch}", f"dataset.limit={images}"]
        own += setup.tiny if self.tiny else ()
        asked = ("dataset=arrays", f"trainer.device={self.device}", *FAST, *setup.words, *own, *words)
        return self.dlrun.build(self.dlrun.compose(*asked))

    def part(self, name: str, least: float, measure: Callable[[], None]) -> None:
        """Measure a part if there is time for it; a failure becomes one line, and the next part is measured."""
        if self.left() < least:
            self.table.say(f"\n{name}: not measured, {self.left():.0f} s were left")
            return
        try:
            measure()
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self.table.say(f"\n{name}: FAILED, {type(error).__name__}: {lines[0][:300]}")
            traceback.print_exc()
            self.failed = True
        finally:
            gc.collect()
            if self.device == "cuda":
                import torch

                torch.cuda.empty_cache()

    failed = False
