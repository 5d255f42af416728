"""Cost of each augmentation in milliseconds per batch of 128 images of 32 × 32, and of the bare training step.

    python tests/benchmarks/bench_augment.py [trainer.threads=2 model=resnet20 ...]

The images are random uint8 RGB: the time of an augmentation does not depend on their content. The bare step is forward,
backward and optimizer on one such batch. All take turns, ROUNDS times; medians are printed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

ROUNDS, BATCH = 21, 128
SETUPS = ("crop_flip", "resized_crop", "affine", "colour", "blur", "noise", "cutout", "randaugment")
SETUPS += ("trivialaugment", "augmix", "strong")
EVERYTHING = "affine augment.pad=4 augment.flip=true augment.brightness=0.2 augment.contrast=0.2 augment.saturation=0.2"
EVERYTHING += " augment.hue=0.05 augment.blur=1 augment.noise=0.05 augment.cutout=8 augment.randaugment=2"


def experiment(folder: str, *words: str) -> Any:
    """Build what `dlrun train WORDS` does, on random images of ten classes."""
    from dlrun.config.compose import compose
    from dlrun.training.experiment import build

    path = Path(folder) / "images.npz"
    if not path.exists():
        x = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
        np.savez(path, x=x, y=np.arange(len(x)) % 10)
    words = ("dataset=arrays", f"dataset.path={path}", f"trainer.batch_size={BATCH}", "check=none", *words)
    return build(compose(*words))


def main() -> None:
    """Print one line per option."""
    with tempfile.TemporaryDirectory() as folder:
        made = {
            name.replace(" augment.", " "): experiment(folder, *f"augment={name}".split(), *sys.argv[1:])
            for name in (*SETUPS, "crop_flip augment.hue=0.1 augment.cutout=8", EVERYTHING)
        }
    exp = next(iter(made.values()))
    images = exp.data.train.images.take(torch.arange(BATCH)).to(exp.device)
    x, y, _ = next(exp.train.epoch(1))
    generator = torch.Generator(exp.device).manual_seed(0)

    def step() -> None:
        exp.optimizer.zero_grad(set_to_none=True)
        with exp.autocast():
            loss = exp.loss(exp.model(x), y)
        loss.backward()
        exp.optimizer.step()

    calls = {"bare step": step}
    for name, other in made.items():
        calls[name] = lambda augment=other.train.augment: augment(images, generator)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if exp.device.type != "cpu":
                torch.accelerator.synchronize()
            taken[name].append(time.perf_counter() - start)
    whole = median(taken["bare step"][3:])
    print(f"{BATCH} images of 32 × 32, {torch.get_num_threads()} threads, {exp.dtype}, {exp.device}")
    for name, seconds in taken.items():
        mine = median(seconds[3:])
        print(f"{1e3 * mine:8.2f} ms  {mine / whole:6.1%} of the step  {name}")


if __name__ == "__main__":
    main()
