"""Cost of each augmentation in milliseconds per batch of 128 images, beside torchvision's v2 and a training step.

    python tests/benchmarks/bench_augment.py [trainer.threads=2 model=resnet20 ...]        # 32 × 32, wall time
    python tests/benchmarks/bench_augment.py torchvision [224]     # one thread, processor time, the smallest of ROUNDS

The first compares every option with the bare step, forward, backward and optimizer on one such batch; the images are
random uint8 RGB. The second compares with torchvision's transform of the same name, image by image, as a DataLoader
applies it: it gets (C, H, W) tensors, and turning the (H, W, C) of a decoder into them is not counted, while dlrun's
time contains it. The images are smooth, as photographs are. All take turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
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


def against_step() -> None:
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


def pairs(side: int) -> dict[str, tuple[dict[str, Any], Any]]:
    """The keys of an augmentation by name, and torchvision's."""
    from torchvision.transforms import v2

    bilinear = {"interpolation": v2.InterpolationMode.BILINEAR}
    crop, flip, wide = v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), v2.TrivialAugmentWide(**bilinear)
    moves = {"rotate": 15.0, "shift": 0.1, "shear": 10.0, "scale": 0.1}
    tones = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
    return {
        "crop_flip": ({"pad": side // 8, "flip": True}, v2.Compose([v2.RandomCrop(side, side // 8), flip])),
        "resized_crop": ({"crop": "full", "flip": True}, v2.Compose([crop, flip])),
        "flip_vertical": ({"flip_vertical": True}, v2.RandomVerticalFlip()),
        "affine": (moves, v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), 10, **bilinear)),
        "brightness": ({"brightness": 0.2}, v2.ColorJitter(brightness=0.2)),
        "contrast": ({"contrast": 0.2}, v2.ColorJitter(contrast=0.2)),
        "saturation": ({"saturation": 0.2}, v2.ColorJitter(saturation=0.2)),
        "hue": ({"hue": 0.05}, v2.ColorJitter(hue=0.05)),
        "colour": (tones, v2.ColorJitter(0.2, 0.2, 0.2, 0.05)),
        "blur": ({"blur": 1.0}, v2.GaussianBlur(7, (0.1, 1.0))),
        "sharpness": ({"sharpness": 0.5}, v2.RandomAdjustSharpness(1.5, 1.0)),
        "grayscale": ({"grayscale": 0.2}, v2.RandomGrayscale(0.2)),
        "autocontrast": ({"autocontrast": 0.5}, v2.RandomAutocontrast(0.5)),
        "equalize": ({"equalize": 0.5}, v2.RandomEqualize(0.5)),
        "posterize": ({"posterize": 4}, v2.RandomPosterize(4, 1.0)),
        "solarize": ({"solarize": 0.5}, v2.RandomSolarize(128, 0.5)),
        "erase": ({"erase": 0.25}, v2.RandomErasing(0.25)),
        "randaugment": ({"randaugment": 2}, v2.RandAugment(**bilinear)),
        "trivialaugment": ({"trivialaugment": True}, wide),
        "augmix": ({"augmix": 3}, v2.AugMix(**bilinear)),
        "strong": (
            {"crop": "full", "flip": True, "trivialaugment": True, "erase": 0.1},
            v2.Compose([crop, flip, wide, v2.RandomErasing(0.1)]),
        ),
    }


def each(change: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The batch of images changed one by one."""
    return torch.stack([change(image) for image in images])


def against_torchvision(side: int, rounds: int = 5) -> None:
    """Print one line per augmentation."""
    from dlrun.data.augment import Augment
    from dlrun.data.draws import Draws
    from dlrun.training import memory

    memory.keep_freed()  # as in training
    torch.set_num_threads(1)
    smooth = torch.nn.functional.interpolate(torch.rand(BATCH, 3, 9, 9), (side, side), mode="bicubic")
    planes = (smooth.clamp(0, 1) * 255).to(torch.uint8)
    images = planes.permute(0, 2, 3, 1).contiguous()
    print(f"{BATCH} images of {side} × {side}, one thread, processor time in ms: dlrun, torchvision, their ratio")

    def seconds(call: Callable[[], Any]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    for name, (keys, theirs) in pairs(side).items():
        augment, best = Augment(**keys), [float("inf")] * 2
        for turn in range(rounds):
            ours = seconds(partial(augment, images, Draws(1, turn, torch.arange(BATCH))))
            best = [min(best[0], ours), min(best[1], seconds(partial(each, theirs, planes)))]
        print(f"{1e3 * best[0]:8.1f} {1e3 * best[1]:8.1f} {best[0] / best[1]:6.2f}  {name}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["torchvision"]:
        against_torchvision(int(sys.argv[2]) if len(sys.argv) > 2 else 224)
    else:
        against_step()
