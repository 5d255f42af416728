"""A user's first training, complete processes from a cold start: `python tests/benchmarks/bench_first_run.py`.

Prints test accuracy and wall seconds (imports, checks and files included) for seeds 0 to 4, each in a new folder, so
that no receipt of an earlier run skips the checks.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    accuracies, seconds = [], []
    for seed in range(5):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            words = [sys.executable, "-m", "dlrun", "train", f"seed={seed}", "run.dir=run"]
            subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
            result = json.loads((Path(folder) / "run" / "result.json").read_text())
        accuracies.append(result["test_acc"])
        print(
            f"seed {seed}: test accuracy {accuracies[-1]:.4f}, {seconds[-1]:.1f} s (training {result['seconds']:.1f} s)"
        )
    spread = statistics.stdev(accuracies)
    print(f"mean {statistics.mean(accuracies):.4f} ± {spread:.4f}; median {statistics.median(seconds):.1f} s")


if __name__ == "__main__":
    main()
