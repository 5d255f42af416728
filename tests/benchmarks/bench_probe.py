"""What a frozen network costs per epoch, through it and on its features: bench_probe.py (M3).

A resnet18 of torchvision with random weights, frozen up to its classifier, on 2,000 random images of 64 × 64: the same
run with trainer.feature_views=0 and with features, without augmentation. Printed are seconds of processor time per
epoch of both, training and evaluation, children included, the time of the features, and the largest difference of the
weights at the end. Target: at least 20 times as fast an epoch, the same weights up to rounding.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

IMAGES, SIDE, EPOCHS = 2000, 64, (2, 6)  # through the network two epochs are enough


def run(folder: Path, views: int, epochs: int) -> float:
    """Train in this process; return the seconds of processor time per epoch, without those before the first one."""
    from dlrun.config.compose import compose
    from dlrun.folders.run import claim
    from dlrun.run.execute import execute
    from dlrun.training import loop

    cfg = compose(
        *("model=torchvision", "model.name=resnet18", "model.freeze=backbone", "dataset=arrays", "check=none"),
        *(f"dataset.path={folder / 'data.npz'}", f"trainer.epochs={epochs}", f"trainer.feature_views={views}"),
        *("trainer.batch_size=64", "trainer.report=false", "trainer.threads=1"),
        *("trainer.precision=fp32", "scheduler=constant", f"dataset.cache={folder / 'cache'}"),
    )
    original, spent = loop.fit, list[float]()

    def timed(*arguments: object) -> None:
        started = time.process_time()
        original(*arguments)  # type: ignore[arg-type]
        spent.append(time.process_time() - started)

    loop.fit = timed  # type: ignore[assignment]
    try:
        execute(cfg, claim(str(folder / f"views{views}-{epochs}"), "probe"), quiet=True)
    finally:
        loop.fit = original
    return spent[0] / epochs


def main() -> None:
    if len(sys.argv) != 1:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rng = np.random.default_rng(0)
        np.savez(
            folder / "data.npz",
            x=rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8),
            y=rng.permutation(np.arange(IMAGES) % 10),
        )
        few, many = EPOCHS
        through, on = run(folder, 0, few), run(folder, 8, many)
        run(folder, 8, few)
        states = [torch.load(folder / f"views{views}-{few}/checkpoints/last.pt")["model"] for views in (0, 8)]
        apart = max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0])
        seconds = json.loads((folder / f"views8-{many}/result.json").read_text())["feature_seconds"]
        with open(folder / f"views8-{many}/metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    print(f"through the network {through:.2f} s per epoch, on features {on:.3f} s: {through / on:.0f} times as fast")
    print(f"features of {IMAGES:,} images in {seconds:.1f} s (wall); {len(rows)} epochs; weights differ by {apart:.1g}")


if __name__ == "__main__":
    main()
