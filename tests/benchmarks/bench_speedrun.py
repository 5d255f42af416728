"""`experiment=cifar10_speedrun` from the command line to its result: seconds, and test accuracy by one view and by six.

    python tests/benchmarks/bench_speedrun.py                                                  downloads CIFAR-10
    python tests/benchmarks/bench_speedrun.py dataset=image_folder dataset.root=data/cifar10   an image folder of it
    SEEDS=3 python tests/benchmarks/bench_speedrun.py …                                        seeds 1 to 3 in turn

All results are read from the run's result.json and metrics.csv; only the wall time of the process, with imports, checks
and report, is measured here. Before and after it the steps of the reference recipe are timed: eight epochs of all
images at full size, weights and images in bfloat16, the same batch in memory for every step, and only forward, backward
and optimizer. Their total makes machines comparable.
Where the time goes (two cores with avx512_bf16, batches of 512, one thread, processor time while others worked):
convolutions 84 to 88 % of a step, at 227 to 303 GFLOP/s forward, 159 to 303 to their inputs and 148 to 219 to their
weights; GELU 5 %, max pools 4 %, batch norms 2.5 %. Weights in bf16 instead of autocast took 1.02 of its time,
torch.compile 1.25. An image in a batch of 2,000 costs as much as in one of 256 if freed memory is reused
(dlrun/training/memory.py), without that 1.36 times as much.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev

STEPS = 8


def speedrun(folder: Path, seed: int, words: list[str]) -> tuple[float, float]:
    """Train in its own process; print the time, and return both accuracies."""
    own = ["experiment=cifar10_speedrun", f"seed={seed}", f"run.dir={folder}", *words]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dlrun", "train", *own], check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - started
    result = json.loads((folder / "result.json").read_text())
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    plain, views = result.get("plain_test_acc", result["test_acc"]), result["test_acc"]
    print(
        f"seed {seed}: {result['epochs']} epochs in {result['seconds']:.0f} s, "
        f"the whole process {whole:.0f} s ({result['test_seconds']:.0f} s of it the test); "
        f"test accuracy {plain:.4f}, by {result.get('multi_crop', 'one view')} {views:.4f}; "
        f"{mean(float(r['samples_per_second']) for r in rows):,.0f} images/s"
    )
    for row in rows:
        print(f"  epoch {row['epoch']}: {float(row['train_seconds']):.1f} s, train {float(row['train_acc']):.4f}")
    return plain, views


def reference(words: list[str]) -> float:
    """Seconds that the bare steps of eight epochs would take, from STEPS of each kind."""
    own = ["experiment=cifar10_speedrun", *words, "augment.progressive=[]", "check=none"]
    asked = [sys.executable, __file__, "--bare", *own]
    return float(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)


def bare(words: list[str]) -> float:
    """In its own process: the steps that `reference` times."""
    import torch
    from torch.nn import functional

    from dlrun.config.compose import compose
    from dlrun.training.experiment import build

    exp = build(compose(*words))
    x, y, _ = next(exp.train.epoch(1))
    model, x = exp.model.to(torch.bfloat16), x.to(torch.bfloat16)

    def step() -> float:
        started = time.perf_counter()
        exp.optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(x), y, label_smoothing=0.2).backward()
        exp.optimizer.step()
        if exp.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - started

    seconds = 0.0
    for epochs in (3, 5):  # with the first layer, and after it is frozen
        step()
        seconds += epochs * len(exp.data.train) / len(x) * median(step() for _ in range(STEPS))
        model.whiten.requires_grad_(False)
    return seconds


def main() -> None:
    """Print one line per seed, mean and deviation of several, and the time with that of the bare reference."""
    seeds = range(1, int(os.environ.get("SEEDS", "1")) + 1)
    root = Path(tempfile.mkdtemp())
    bares = [reference(sys.argv[1:])]
    found = [speedrun(root / str(seed), seed, sys.argv[1:]) for seed in seeds]
    bares.append(reference(sys.argv[1:]))
    took = mean(json.loads((root / str(seed) / "result.json").read_text())["seconds"] for seed in seeds)
    print(
        f"bare steps of the reference's eight epochs: {bares[0]:.0f} s before, {bares[1]:.0f} s after; "
        f"training took {took / mean(bares):.2f} of that"
    )
    if len(found) > 1:
        for name, scores in zip(("one view", "all views"), zip(*found, strict=True), strict=True):
            print(f"test accuracy by {name}: {mean(scores):.4f} ± {stdev(scores):.4f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        print(bare(sys.argv[2:]))
    else:
        main()
