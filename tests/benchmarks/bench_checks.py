"""Cost of the default checks, and which of them take the time (issue: 5 s, 60 s, and within check.budget=60).

    python tests/benchmarks/bench_checks.py                       three complete suites
    python tests/benchmarks/bench_checks.py --only resnet50       one of them
    python tests/benchmarks/bench_checks.py --processor           beside other programs

Complete suites without receipts: the default CNN on digits, resnet18 on generated colour images of 32×32 pixels, and
resnet50 of torchvision on ones of 224×224. --processor computes on one thread and counts its processor time instead of
the wall clock, in check.budget as well, so that other programs do not change the result; on two idle cores a suite
then takes less time than is printed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

SETUPS = {
    "cnn on digits": (),
    "resnet18 at 32×32": ("dataset=arrays", "dataset.path=images32.npz", "model=resnet18"),
    "resnet50 at 224×224": (
        "dataset=arrays",
        "dataset.path=images224.npz",
        "model=torchvision",
        "model.name=resnet50",
    ),
}


def paint(side: int, count: int) -> None:
    """Write colour images of ten smooth patterns under noise: learnable, as a healthy dataset is."""
    import torch
    from torch.nn import functional as F

    draw = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 10
    patterns = (torch.rand(10, 3, 4, 4, generator=draw) * 100 + 78)[y]
    coarse = patterns + 15 * torch.randn(count, 3, 4, 4, generator=draw)
    fine = 25 * torch.randn(count, 3, 16, 16, generator=draw)
    x = sum(F.interpolate(part, size=(side, side), mode="bilinear") for part in (coarse, fine))
    pixels = x.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()  # type: ignore[union-attr]
    np.savez(f"images{side}.npz", x=pixels, y=y.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the default checks.")
    parser.add_argument("--only", default="", help="setups whose names hold this text")
    parser.add_argument("--processor", action="store_true", help="one thread, and its processor time as the clock")
    parser.add_argument("--budget", type=float, default=60.0, help="check.budget, in seconds")
    given = parser.parse_args()
    if given.processor:
        time.perf_counter = time.process_time  # before the checks take it
    words = [f"check.budget={given.budget:g}", "check.fresh=true", *["trainer.threads=1"] * given.processor]
    from dlrun import checks
    from dlrun.config.compose import compose
    from dlrun.training.experiment import build

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, setup in SETUPS.items():
            if given.only not in name:
                continue
            side = {"32": 32, "224": 224}.get(name.rpartition("×")[2], 0)
            if side:
                paint(side, 4000 if side == 32 else 400)
            exp = build(compose(*setup, *words))
            started, worked = time.perf_counter(), time.process_time()
            results = checks.run(exp)
            took, spent = time.perf_counter() - started, time.process_time() - worked
            not_run = sum(r.status == "skip" and r.value != "off" for r in results)
            print(f"{name}: {took:.1f} s, processor time {spent:.1f} s; {len(results)} checks, {not_run} not run")
            for r in sorted(results, key=lambda r: -r.seconds):
                if r.seconds >= 0.05 or r.status in ("fail", "warn", "skip"):
                    print(f"  {r.check:<16} {r.seconds:6.2f} s  {r.status}  {r.value}  {r.message}")


if __name__ == "__main__":
    main()
