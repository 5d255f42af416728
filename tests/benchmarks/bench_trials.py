"""What a sweep itself costs per trial at 10 and at 5,000 trials, with trials that only sleep (issue 28.2).

    python tests/benchmarks/bench_trials.py [--counts 10 100 1000 5000] [--sleep 0.02] [--sampler random] [--profile]

A launcher of the benchmark stands in for the pool: a trial sleeps and leaves the files of a completed run. Everything
else is the sweep's: drawing, composing the config, the study, the table, the line of each trial. Printed: seconds of
the processor per trial, without those of the launcher, on the way and for the whole command; what the second half of
the trials took of it over the first; the longest time that table.csv lacked a trial that had ended. Goal: with 5,000
trials at most 1.25 times the cost per trial of 10.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from dlrun.commands import train
from dlrun.folders import sweep as sweep_folder
from dlrun.search.launchers import choose
from dlrun.search.launchers.job import Job
from dlrun.search.launchers.protocol import Ended


class Sleeper:
    """Eight trials at a time that sleep; `own` is the processor time of this launcher, `marks` that of each end."""

    threads, slots, heartbeat = 1, 8, 0.0

    def __init__(self, seconds: float) -> None:
        self.seconds, self.own, self.marks = seconds, 0.0, list[float]()
        self.since: float | None = None  # the first end that the table lacks
        self._due: list[tuple[float, Job]] = []

    def submit(self, job: Job) -> None:
        self.marks = self.marks or [time.process_time() - self.own]
        self._due.append((time.monotonic() + self.seconds, job))

    def wait(self, seconds: float) -> list[Ended]:
        began = time.process_time()
        if self._due:
            time.sleep(max(0.0, min(seconds, self._due[0][0] - time.monotonic())))
        over = [job for until, job in self._due if until <= time.monotonic()]
        self._due = self._due[len(over) :]
        for job in over:
            leave(job)
            self.since = self.since or time.monotonic()
        self.own += time.process_time() - began
        self.marks += [time.process_time() - self.own] * len(over)
        return [Ended(job.number, 0) for job in over]

    def waiting(self) -> str:
        return ""

    def kill(self, number: int) -> None: ...
    def interrupt(self) -> None: ...
    def close(self) -> None: ...


def leave(job: Job) -> None:
    """Write the files of a completed run."""
    folder, rate = Path(job.folder), float(job.config["optimizer"]["lr"])
    folder.mkdir(parents=True)
    score = 0.9 - 0.01 * abs(job.number % 97 - 50) - min(rate, 0.1)
    (folder / "config.yaml").write_text(yaml.dump(job.config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))
    (folder / "metrics.csv").write_text(f"epoch,val_loss,val_acc\n1,0.5,{score}\n")
    about = {"status": "completed", "epochs": 1, "best_epoch": 1, "val_acc": score, "val_loss": 0.5, "seconds": 1.0}
    (folder / "result.json").write_text(json.dumps({**about, **job.record, "seed": 1, "test_acc": score}))


def sweep(count: int, seconds: float, sampler: str, folder: Path) -> tuple[Sleeper, float, float]:
    """Run a sweep; return its launcher, the processor seconds of the whole command and the longest wait for a row."""
    sleeper = Sleeper(seconds)
    choose.launcher = lambda *_: sleeper
    waits, write = [0.0], sweep_folder.write_table

    def timed(path: Path, rows: list[dict[str, Any]]) -> Path:
        waits.append(time.monotonic() - (sleeper.since or time.monotonic()))
        sleeper.since = None
        return write(path, rows)

    sweep_folder.write_table = timed
    words = ["optimizer.lr=loguniform:1e-5:1", "model.width=8,16,32", f"search.sampler={sampler}"]
    words += [f"search.trials={count}", "trainer.report=false", f"sweep.dir={folder / str(count)}", "trainer.epochs=1"]
    began = time.process_time()
    code = train.main(["-m", *words])
    sweep_folder.write_table = write
    assert code == 0
    assert len(sweep_folder.table(folder / str(count))) == count
    return sleeper, time.process_time() - began - sleeper.own, max(waits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[10, 100, 1000, 5000])
    parser.add_argument("--sleep", type=float, default=0.02)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sweep(10, args.sleep, args.sampler, Path(folder) / "warm")  # imports
        for count in args.counts:
            kept, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
            profile = cProfile.Profile()
            try:
                if args.profile:
                    profile.enable()
                sleeper, whole, longest = sweep(count, args.sleep, args.sampler, Path(folder) / "sweeps")
                profile.disable()
            finally:
                sys.stdout.close()
                sys.stdout = kept
            marks = sleeper.marks
            half = len(marks) // 2
            halves = (marks[-1] - marks[half]) / (marks[half] - marks[0])
            print(
                f"{count} trials: {1000 * (marks[-1] - marks[0]) / count:.2f} ms per trial on the way, "
                f"{1000 * whole / count:.2f} ms with start and end; second half over first {halves:.2f}; "
                f"a row waited at most {longest:.2f} s",
                flush=True,
            )
            if args.profile:
                pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
