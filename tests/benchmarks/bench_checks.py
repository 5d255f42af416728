"""Cost of the default checks, and which of them take the time: `python tests/benchmarks/bench_checks.py`.

Complete suites without receipts: the default CNN on digits, and resnet18 on generated 32x32 colour images.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    from dlrun import checks
    from dlrun.config.compose import compose
    from dlrun.training.experiment import build

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        draw = np.random.default_rng(0)
        y = np.arange(4000) % 10
        # ten patterns under noise: learnable, as a healthy dataset is
        patterns = draw.integers(60, 196, (10, 32, 32, 3))
        x = np.clip(patterns[y] + draw.normal(0, 40, (4000, 32, 32, 3)), 0, 255).astype(np.uint8)
        np.savez("images.npz", x=x, y=y)
        setups = {
            "cnn on digits": ("check.fresh=true",),
            "resnet18 on 32x32": (
                "check.fresh=true",
                "check.budget=600",
                "dataset=arrays",
                "dataset.path=images.npz",
                "model=resnet18",
            ),
        }
        for name, words in setups.items():
            exp = build(compose(*words))
            started = time.perf_counter()
            results = checks.run(exp)
            print(f"{name}: {time.perf_counter() - started:.1f} s")
            for r in sorted(results, key=lambda r: -r.seconds):
                if r.seconds >= 0.05 or r.status in ("fail", "warn"):
                    print(f"  {r.check:<16} {r.seconds:6.2f} s  {r.status}  {r.value}")


if __name__ == "__main__":
    main()
