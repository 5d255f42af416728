"""A run with a checkpoint after two steps, and damage to files."""

from __future__ import annotations

from pathlib import Path

from dlrun.folders.run import Run, claim
from dlrun.training import checkpoint, loop
from dlrun.training.checkpoint import State
from dlrun.training.experiment import Experiment, build
from support.composed import SMALL, composed


def paused_after_two_steps(folder: Path, *words: str) -> tuple[Run, Experiment]:
    """A run with a checkpoint after two steps, and the experiment that is to continue from it."""
    cfg = composed(*SMALL, "trainer.batch_size=16", *words)
    exp, run = build(cfg), claim(str(folder), "test")
    for batch, _ in zip(exp.train.epoch(1), range(2), strict=False):
        loop.step(exp, loop.Batch(*batch))
    checkpoint.write(run, checkpoint.snapshot(exp, State(1, 2)), is_best=False)
    return run, build(cfg)


def flipped(data: bytes, bit: int) -> bytes:
    """The bytes with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
