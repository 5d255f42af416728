"""Seconds per step against the batch size, in powers of two, until memory runs out (`dlrun batch_time`, O6).

A step includes all that it costs in training: sampling and augmenting the batch, forward, backward, update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dlrun.data.batches import Batch, Batches
from dlrun.probes.untouched import endless, untouched
from dlrun.reports.figures import SHARP, figure_bytes
from dlrun.training import loop, memory
from dlrun.training.experiment import Experiment
from dlrun.training.memory import out_of_memory

__all__ = ["Timing", "draw", "knee", "measure", "table"]

NEAR = 1.25  # the knee: the smallest batch whose time per sample is at most this times the lowest
WARM, MOST, LONG = 2, 20, 0.3  # steps not counted; most steps timed per size; seconds after which 3 are enough


@dataclass(frozen=True)
class Timing:
    """Lowest seconds per step and per sample; peak_mb is the peak memory in MiB, 0 if it cannot be measured."""

    batch_size: int
    step_seconds: float
    sample_seconds: float
    peak_mb: float


def measure(exp: Experiment, seconds: float, say: Callable[[Timing], None]) -> tuple[list[Timing], str]:
    """Time 1, 2, 4 … samples per step and pass each timing to `say`; return the timings and why they ended.

    They end with the size of the training split, when memory runs out, or after `seconds`.
    """
    timings: list[Timing] = []
    started, size = time.perf_counter(), 1
    while size <= len(exp.data.train.labels):
        spent = time.perf_counter() - started
        if timings and spent + (WARM + 3) * 2 * timings[-1].step_seconds > seconds:
            return timings, f"{seconds:g} seconds are used up; --seconds={4 * seconds:g} continues"
        try:
            with untouched(exp):
                timings.append(_time(exp, size))
        except Exception as error:
            if size == 1 and "more than 1 value per channel" in str(error):
                size = 2  # batch norm cannot normalise a single value
                continue
            if not out_of_memory(error):
                raise
            _free(exp.device)
            fits = f"the largest that fits is {timings[-1].batch_size}" if timings else "not even one sample fits"
            return timings, f"memory ran out at batch size {size}; {fits}"
        say(timings[-1])
        size *= 2
    return timings, f"the training split has {len(exp.data.train.labels)} images"


def _time(exp: Experiment, size: int) -> Timing:
    exp.model.train()
    memory.forget_peak(exp.device)
    old = exp.train
    options = {"augment": old.augment, "balance": old.balance, "seed": old.seed}
    fresh = exp.batches(exp.data.train, batch_size=size, shuffle=True, drop_last=True, **options)
    taken = list(_steps(exp, fresh))
    peak = memory.peak_mb(exp.device) or 0.0
    best = min(taken)  # other processes only ever add time
    return Timing(size, best, best / size, peak)


def _steps(exp: Experiment, batches: Batches) -> Iterator[float]:
    """Seconds of each counted step."""
    steps, total = endless(batches), 0.0
    for i in range(WARM + MOST):
        started = time.perf_counter()
        x, y, _ = next(steps)
        loop.step(exp, Batch(x, y))
        if exp.device.type != "cpu":
            torch.accelerator.synchronize(exp.device)
        seconds = time.perf_counter() - started
        if i >= WARM:
            yield seconds
            total += seconds
            if total > LONG and i >= WARM + 2:
                return


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def knee(timings: Iterable[Timing]) -> int:
    """Return the smallest batch size whose time per sample is within a quarter of the lowest."""
    there = list(timings)
    lowest = min(t.sample_seconds for t in there)
    return next(t.batch_size for t in there if t.sample_seconds <= NEAR * lowest)


def table(timings: Iterable[Timing]) -> list[dict[str, Any]]:
    """The rows of batch_time.csv, one per batch size."""
    return [asdict(t) for t in timings]


def draw(timings: list[Timing], chosen: int, ending: str, title: str) -> bytes:
    """Return a PNG of milliseconds per sample and per step against the batch size, with the knee marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    sizes = [t.batch_size for t in timings]
    above.plot(sizes, [1e3 * t.sample_seconds for t in timings], "o-", color="#0072B2")
    above.set(yscale="log", ylabel="milliseconds per sample")
    above.set_title(f"Time against batch size: {title}", loc="left")
    below.plot(sizes, [1e3 * t.step_seconds for t in timings], "o-", color="#0072B2")
    below.set(xscale="log", yscale="log", ylabel="milliseconds per step")
    below.set_xlabel(f"batch size ({ending.split(';')[0]})")
    below.set_xticks(sizes, [str(s) for s in sizes])
    below.xaxis.set_minor_locator(NullLocator())
    for axes in (above, below):
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.axvline(chosen, color="#D55E00", ls="--", lw=2, label=f"knee: trainer.batch_size={chosen}")
        axes.grid(alpha=0.3)
    above.legend(frameon=False)
    return figure_bytes(figure, SHARP)
