"""Claims of the essays that are no study: bench_claims.py FOLDER --log LOG [NAME ...].

    python tests/benchmarks/bench_claims.py data/cifar10 --log claims.jsonl
    python tests/benchmarks/bench_claims.py data/cifar10 --log claims.jsonl chance average

FOLDER has train/<class>/ and test/<class>/ images of ten classes. `chance`: the loss of an untrained network.
`average`: what an average of the weights adds to the last weights. `random`: the best of nine points of a grid, and of
nine random ones, on two axes of which one matters. LOG gets a line of JSON per claim; one that it has is skipped.
`claims_page.py LOG` prints what was seen as a table.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from dlrun.analysis.claims import AGREES, DOES_NOT, UNDECIDED
from dlrun.analysis.spread import margin

PLAIN = ("check=none", "trainer.report=false", "trainer.diagnostics=false", "trainer.threads=1")
SEEDS = (1, 2, 3)
RANGES = ((1e-5, 1e-1), (3e-5, 3e-1), (1e-4, 1.0))  # of the rate: no grid is lucky three times
CHANCE = {"cross_entropy": math.log(10), "hinge": 9.0}


def dlrun(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dlrun", "train", *words], capture_output=True, text=True)
    if done.returncode not in (0, 4, 5):  # a trial whose rate is too high may diverge
        sys.exit(done.stdout + done.stderr)


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def line(seen: str, claimed: str, outcome: str) -> dict[str, str]:
    return {"seen": seen, "claimed": claimed, "outcome": outcome}


def noise(gains: list[float]) -> float:
    """How far the mean of paired gains is from zero by chance."""
    return margin((gains,), len(gains), 10**9)


def between(gains: list[float], low: float, high: float) -> str:
    """Whether the mean of paired gains lies between two numbers, beyond the noise of the pairs."""
    mean, wide = fmean(gains), noise(gains)
    if low <= mean - wide and mean + wide <= high:
        return AGREES
    return DOES_NOT if mean + wide < low or mean - wide > high else UNDECIDED


def chance(folder: Path, out: Path) -> Iterator[dict[str, str]]:
    """The losses of untrained networks, as the first check of a training measures them."""
    import torch

    from dlrun.config.compose import compose
    from dlrun.training.experiment import build

    root = (f"dataset.root={folder}", "dataset=image_folder", "dataset.image_size=32", "dataset.limit=500")
    for name, expected in CHANCE.items():
        losses = []
        for seed in SEEDS:
            exp = build(compose(*root, f"loss={name}", f"seed={seed}", "regularizer=none", *PLAIN))
            with torch.no_grad():
                x, y, _ = next(iter(exp.train.epoch(1)))
                losses.append(float(exp.loss(exp.model.eval()(x).float(), y)))
        off = max(abs(loss / expected - 1) for loss in losses)
        seen = f"loss={name} of three untrained networks is {min(losses):.3f} to {max(losses):.3f}"
        yield line(seen, f"{expected:.3f} within 5 %", AGREES if off < 0.05 else DOES_NOT)


def average(folder: Path, out: Path) -> Iterator[dict[str, str]]:
    """Test accuracy of an average of the weights over that of the last weights, of the same trainings."""
    gains = []
    for seed in SEEDS:
        run = out / f"average{seed}"
        root = (f"dataset.root={folder}", "dataset=image_folder", "dataset.image_size=32", "dataset.limit=2000")
        dlrun(
            *root,
            *PLAIN,
            "trainer.epochs=30",
            "trainer.ema=0.99",
            "scheduler=constant",
            f"seed={seed}",
            f"run.dir={run}",
        )
        found = result(run)
        gains.append(found["test_acc"] - found["raw_test_acc"])
    seen = f"an average (trainer.ema=0.99, constant rate) adds {fmean(gains):.4f} to test_acc"
    yield line(f"{seen} (noise {noise(gains):.2g}, 3 seeds)", "0.005 to 0.03", between(gains, 0.005, 0.03))


def random(folder: Path, out: Path) -> Iterator[dict[str, str]]:
    """How much lower the best val_loss of random points is than that of a grid, on digits."""
    gains = []
    for number, (low, high) in enumerate(RANGES):
        for seed in SEEDS:
            rate = f"{low},{math.sqrt(low * high):g},{high}"
            common = ("-m", *PLAIN, "optimizer=adam", "trainer.epochs=2", f"seed={seed}")
            grid = ("search=grid", f"optimizer.lr={rate}", "optimizer.eps=1e-10,1e-8,1e-6")
            drawn = ("search=random", "search.trials=9", f"search.seed={seed}", f"optimizer.lr=loguniform:{low}:{high}")
            best = []
            for name, words in (("grid", grid), ("random", (*drawn, "optimizer.eps=loguniform:1e-10:1e-6"))):
                sweep = out / f"{name}{number}{seed}"
                dlrun(*common, *words, f"sweep.dir={sweep}")
                losses = [result(file.parent).get("val_loss") for file in sweep.glob("*/result.json")]
                best.append(min(loss for loss in losses if loss is not None and math.isfinite(loss)))
            gains.append(best[0] - best[1])
    wide = noise(gains)
    outcome = AGREES if fmean(gains) > wide else DOES_NOT if -fmean(gains) > wide else UNDECIDED
    seen = f"the best val_loss of 9 random points is {fmean(gains):.4f} lower than of a grid of 3 × 3 on digits"
    yield line(f"{seen} (noise {wide:.2g}, {len(gains)} pairs)", "lower where one of two axes matters", outcome)


CLAIMS: dict[str, Callable[[Path, Path], Iterator[dict[str, str]]]] = {
    "chance": chance,
    "average": average,
    "random": random,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[*CLAIMS])
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    known = {json.loads(text)["claim"] for text in args.log.read_text().splitlines()} if args.log.is_file() else set()
    for name in args.names:
        if name in known:
            continue
        with tempfile.TemporaryDirectory() as out, args.log.open("a") as log:
            for found in CLAIMS[name](args.folder.resolve(), Path(out)):
                print(json.dumps({"claim": name, **found}), file=log, flush=True)
                print(name, found, flush=True)


if __name__ == "__main__":
    main()
