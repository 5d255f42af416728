"""`dlrun batch_time`: the timings, the knee, and the end of memory or time (O6)."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.data.batches import Batch
from dlrun.probes import batch_time
from dlrun.probes.batch_time import Timing
from dlrun.training import loop
from dlrun.training.experiment import Experiment, build
from support.composed import SMALL, composed


def timings(*milliseconds: float) -> list[Timing]:
    return [Timing(2**i, m * 2**i / 1e3, m / 1e3, 0.0) for i, m in enumerate(milliseconds)]


def test_the_knee_is_where_the_time_per_sample_stops_falling() -> None:
    assert batch_time.knee(timings(8, 4, 2, 1.2, 1.0, 1.0, 1.0)) == 8
    assert batch_time.knee(timings(8, 4, 2, 1)) == 8
    assert batch_time.knee(timings(1, 1, 1, 2)) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_batch_time_survives_running_out_of_memory(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    real = loop.step

    def step(exp: Experiment, batch: Batch) -> loop.Step:
        done = real(exp, batch)
        if len(batch) > 16:
            raise error
        return done

    monkeypatch.setattr(loop, "step", step)
    exp = build(composed(*SMALL))
    before = [p.detach().clone() for p in exp.model.parameters()]
    found, ending = batch_time.measure(exp, 60.0, lambda t: None)
    assert [t.batch_size for t in found] == [1, 2, 4, 8, 16]
    assert [int(n) for n in re.findall(r"\d+", ending)] == [32, 16]
    assert all(torch.equal(a, b) for a, b in zip(before, exp.model.parameters(), strict=True))


def test_batch_time_hides_no_other_error_and_keeps_to_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = build(composed(*SMALL))
    found, ending = batch_time.measure(exp, 1e-6, lambda t: None)
    assert [t.batch_size for t in found] == [1]
    assert "--seconds=" in ending

    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(loop, "step", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        batch_time.measure(exp, 60.0, lambda t: None)


def test_batch_time_from_the_command_line(dlrun: Callable[..., Any], here: Path) -> None:
    done = dlrun("batch_time", "--seconds=5", *SMALL, "trainer.batch_size=7")
    assert done.code == 0, done.err
    folder = next((here / "outputs" / "batch_time").iterdir())
    with open(folder / "batch_time.csv", newline="") as file:
        sizes = [int(row["batch_size"]) for row in csv.DictReader(file)]
    assert sizes == [1, 2, 4, 8, 16, 32, 64]  # of 108 training images
    assert (folder / "batch_time.png").read_bytes().startswith(b"\x89PNG")
    command = next(line for line in done.out.splitlines() if line.startswith("next: dlrun train"))
    assert int(command.rpartition("trainer.batch_size=")[2]) in sizes
    assert command.count("batch_size") == 1
