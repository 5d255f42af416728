"""Cost of saving a run: the same epochs with all files of a run, and with nothing written.

    python tests/benchmarks/bench_checkpoint.py [trainer.threads=1 ...]

One experiment trains short runs of three kinds, which take turns in an alternating order: `nothing` (no snapshot, no
file), `beside` (rows, checkpoint and result.json by a thread, as `dlrun train` does) and `between` (the same work in
the training thread, between two epochs). An epoch lasts from the end of one to the end of the next. Printed are the
median epoch with nothing written; for the other kinds how much longer the mean epoch of a run is than that of the
neighbouring run of `nothing`, as median and quartiles; how long a save blocks the training thread, which in `beside`
is the snapshot and the rest of the previous write; and the processor time of the write itself. The last two together
bound the cost of saving, whatever else the machine does: whole runs differ by up to 15 % among themselves.

Measured, two cores that both train, torch 2.14: a save blocks the training thread for 0.8 to 1.0 ms (cnn) and 2.4 ms
(resnet20), instead of 7.0 to 7.6 and 20.8 to 22.8; blocked time and write come to at most 0.56 % of an epoch of 3,000
images of 32 × 32 with resnet20 and 0.86 % with the cnn, a fifteenth of that with CIFAR's 45,000, and to 3.1 to 3.7 % of
an epoch of digits, which takes 0.15 s. Of the 4 ms of the thread, torch.save of 55 tensors takes 1.7 (pickling them
1.0, CRC 0.3, Python's random state 0.15), writing and flushing 1.1 MB 0.8, two rows of CSV 0.2, a result.json 0.4 twice
per second; the snapshot takes 0.35 in the training thread. Whole runs: cnn on digits with trainer.threads=1, which
leaves one core to the thread, +0.3 % (between +2.3 %); with both cores +3.7 to +8.9 % (between +5.4 to +7.8 %).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import numpy as np

KINDS = ("nothing", "beside", "between")


class Kept:
    """Trains runs of an experiment, each in its own folder, and times them."""

    def __init__(self, folder: Path, *words: str) -> None:
        from dlrun.config.compose import compose
        from dlrun.training.checkpoint import Writer
        from dlrun.training.experiment import build
        from dlrun.training.recording import Recorder

        self.exp = build(compose("check=none", *words))
        self.folder, self.count = folder, 0
        self.held: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.wrote: list[float] = []
        self.real = (Recorder._writing, Writer.wait, Writer.begin)

    def epochs(self, kind: str) -> list[float]:
        """Train a run of this kind and return the seconds of its epochs except the first."""
        from dlrun.console import Screen
        from dlrun.folders.run import Run, claim
        from dlrun.training import loop
        from dlrun.training.checkpoint import State, Writer
        from dlrun.training.recording import Recorder

        writing, wait, begin = self.real
        spent, ends = [0.0], list[float]()

        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            def inside(*words: Any, **more: Any) -> Any:
                started = time.perf_counter()
                try:
                    return call(*words, **more)
                finally:
                    spent[0] += time.perf_counter() - started

            return inside

        def counted(work: Callable[[], None]) -> Callable[[], None]:
            def write() -> None:
                started = time.thread_time()
                work()
                self.wrote.append(time.thread_time() - started)

            return write

        if kind == "nothing":
            Recorder._writing, Writer.begin = (lambda *_, **__: None), lambda self, work: None  # type: ignore
        else:
            Recorder._writing = timed(writing)  # type: ignore
            Writer.begin = timed(  # type: ignore
                (lambda self, work: begin(self, counted(work))) if kind == "beside" else lambda self, work: work()
            )
        Writer.wait = timed(wait)  # type: ignore
        # asked at the end of each epoch but the last
        Run.asked_to_stop = lambda self: ends.append(time.perf_counter())  # type: ignore
        self.count += 1
        path = self.folder / f"{self.count:03d}"
        run, screen = claim(str(path / "run"), "bench"), Screen(path / "log.txt", quiet=True)
        loop.fit(self.exp, run, State(), screen)
        run.release()
        self.held[kind].append(spent[0] / self.exp.cfg.trainer.epochs)
        return [end - start for start, end in pairwise(ends)]

    def restore(self) -> None:
        """Undo what `epochs` replaced, for the next experiment."""
        from dlrun.training.checkpoint import Writer
        from dlrun.training.recording import Recorder

        Recorder._writing, Writer.wait, Writer.begin = self.real  # type: ignore


def measure(name: str, rounds: int, folder: Path, *words: str) -> None:
    kept = Kept(folder / name, *words)
    for kind in KINDS:
        kept.epochs(kind)
        kept.held[kind].clear()
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for kind in KINDS if number % 2 else KINDS[::-1]:
            found[kind].append(kept.epochs(kind))
    bare = found["nothing"]
    print(f"{name}: {median(chain(*bare)):.4f} s an epoch with nothing written, {rounds} runs of each kind")
    for kind in KINDS[1:]:
        shares = [fmean(mine) / fmean(none) - 1 for mine, none in zip(found[kind], bare, strict=True)]
        low, middle, high = quantiles(shares, n=4)
        print(
            f"  {kind:<8} {median(chain(*found[kind])):.4f} s an epoch, {middle:+.1%} ({low:+.1%} to {high:+.1%}); "
            f"the training thread is held {median(kept.held[kind]) * 1e3:.2f} ms",
            flush=True,
        )
    kept.restore()
    held, wrote, epoch = median(kept.held["beside"]), median(kept.wrote), median(chain(*bare))
    print(f"  held and {wrote * 1e3:.2f} ms of another thread: at most {(held + wrote) / epoch:.2%} of such an epoch")


def images(path: Path) -> None:
    """Noise in the size of CIFAR's images, in ten classes."""
    draw = np.random.default_rng(0)
    np.savez(path, x=draw.integers(0, 256, (3000, 32, 32, 3), dtype=np.uint8), y=np.arange(3000) % 10)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as top:
        measure("cnn on digits", 20, Path(top), "trainer.epochs=10", *sys.argv[1:])
        images(Path(top) / "images.npz")
        data = ("dataset=arrays", f"dataset.path={top}/images.npz", "trainer.epochs=4")
        measure("cnn on 3,000 images", 4, Path(top), *data, *sys.argv[1:])
        measure("resnet20 on 3,000 images", 2, Path(top), "model=resnet20", *data, *sys.argv[1:])
