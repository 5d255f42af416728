"""Training compared with common alternatives (issue 7: at least three times Lightning, as accurate within noise).

    pip install lightning timm
    python tests/benchmarks/bench_peers.py data/cifar10 [SEEDS]     FOLDER has train/<class>/ and test/<class>/ images

The same network, batches of 128, crop with padding and flip, optimizer, schedule and epochs, on 10,000 training and
2,000 test images that every side has decoded in memory: PyTorch Lightning and a hand-written loop with torchvision's
transforms in a DataLoader, the same loop with timm's loader, and `dlrun train` with its defaults, files and
diagnostics. Each runs in its own process, in turns; the DataLoaders with 0 and 2 workers for the first seed, of which
the faster counts and is used for the other seeds. Printed: images per second of the training epochs after the first
(median), test accuracy over seeds, and the ratio to Lightning. The peers train in fp32, their default; `bf16` repeats
Lightning with its bf16-mixed precision and channels-last weights. Sides whose package is missing are listed. For GPUs
see bench_gpu.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

EPOCHS, BATCH, RATE, TRAIN, TEST = 6, 128, 0.05, 10_000, 2_000
SIDES = {"lightning": "pytorch_lightning", "lightning-bf16": "pytorch_lightning", "hand-written": "", "timm": "timm"}
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")


def pack(folder: Path, out: Path) -> None:
    """Decode the images once, classes in turn, into the arrays that all sides read."""
    from PIL import Image

    found: dict[str, Any] = {}
    for split, count, name in (("train", TRAIN, ""), ("test", TEST, "_test")):
        classes = sorted(p for p in (folder / split).iterdir() if p.is_dir())
        files = [(f, k) for k, c in enumerate(classes) for f in sorted(c.iterdir())[: count // len(classes)]]
        found[f"x{name}"] = np.stack([np.asarray(Image.open(f).convert("RGB").resize((32, 32))) for f, _ in files])
        found[f"y{name}"] = np.array([k for _, k in files])
    np.savez(out, **found)


def dataset(arrays: Any, transform: Any) -> Any:
    """Like torchvision.datasets.CIFAR10: an array whose images become PIL images and are transformed."""
    from PIL import Image
    from torch.utils.data import Dataset

    class Pictures(Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.transform = transform  # timm's loader sets its own

        def __len__(self) -> int:
            return len(arrays[1])

        def __getitem__(self, k: int) -> Any:
            return self.transform(Image.fromarray(arrays[0][k])), int(arrays[1][k])

    return Pictures()


def network(channels_last: bool = False) -> Any:
    import torch

    from dlrun.models.cnn import CNN
    from dlrun.models.init import initialise

    model = CNN(3, 10)
    initialise(model, "default")
    model.to(DEVICE)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def finished() -> None:
    """Wait for the GPU, so that the time includes its work."""
    if DEVICE != "cpu":
        import torch

        torch.accelerator.synchronize()


def optimizer(model: Any, steps: int) -> tuple[Any, Any]:
    import torch

    sgd = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True)
    return sgd, torch.optim.lr_scheduler.CosineAnnealingLR(sgd, EPOCHS * steps)


def loaders(arrays: Any, workers: int, *, timm: bool) -> tuple[Any, Any]:
    """The training and the test loader."""
    from torch.utils.data import DataLoader
    from torchvision import transforms as t

    mean_, std = arrays["x"].mean((0, 1, 2)) / 255, arrays["x"].std((0, 1, 2)) / 255
    end = [t.ToTensor(), t.Normalize(mean_.tolist(), std.tolist())]
    more: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": DEVICE != "cpu"}
    test = DataLoader(dataset((arrays["x_test"], arrays["y_test"]), t.Compose(end)), 256, **more)
    crop = [t.RandomCrop(32, padding=4), t.RandomHorizontalFlip()]
    train = dataset((arrays["x"], arrays["y"]), t.Compose(crop + end))
    if not timm:
        return DataLoader(train, BATCH, shuffle=True, **more), test
    import torch
    from timm.data import create_loader
    from timm.data.transforms import ToNumpy

    train = dataset((arrays["x"], arrays["y"]), None)
    made = create_loader(
        train,
        (3, 32, 32),
        BATCH,
        is_training=True,
        mean=tuple(mean_),
        std=tuple(std),
        device=torch.device(DEVICE),
        **more,
    )
    made.dataset.transform = t.Compose([*crop, ToNumpy()])
    return made, test


def hand_written(arrays: Any, workers: int, *, timm: bool) -> tuple[list[float], float]:
    """Seconds of each training epoch, and the test accuracy."""
    import torch
    from torch.nn import functional

    train, test = loaders(arrays, workers, timm=timm)
    model = network()
    sgd, schedule = optimizer(model, len(train))
    seconds = []
    for _ in range(EPOCHS):
        model.train()
        started = time.perf_counter()
        for x, y in train:
            x, y = x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)
            sgd.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            sgd.step()
            schedule.step()
        finished()
        seconds.append(time.perf_counter() - started)
    model.eval()
    with torch.inference_mode():
        right = sum(int((model(x.to(DEVICE)).argmax(1).cpu() == y).sum()) for x, y in test)
    return seconds, right / len(test.dataset)


def lightning(arrays: Any, workers: int, folder: str, *, bf16: bool) -> tuple[list[float], float]:
    """The same with a default Trainer: progress bar, log and a checkpoint per epoch, as in dlrun."""
    from torch.nn import functional

    try:
        import pytorch_lightning as pl
        from pytorch_lightning.loggers import CSVLogger
    except ImportError:  # the same under its other name
        import lightning.pytorch as pl
        from lightning.pytorch.loggers import CSVLogger

    train, test = loaders(arrays, workers, timm=False)
    seconds: list[float] = []

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network(bf16)

        def training_step(self, batch: Any, _: int) -> Any:
            loss = functional.cross_entropy(self.model(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def test_step(self, batch: Any) -> None:
            self.log("acc", (self.model(batch[0]).argmax(1) == batch[1]).float().mean(), on_epoch=True)

        def configure_optimizers(self) -> Any:
            sgd, schedule = optimizer(self, len(train))
            return {"optimizer": sgd, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_epoch_start(self) -> None:
            seconds.append(-time.perf_counter())

        def on_train_epoch_end(self) -> None:
            finished()
            seconds[-1] += time.perf_counter()

    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu" if DEVICE == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        default_root_dir=folder,
        logger=CSVLogger(folder),
    )
    module = Module()
    trainer.fit(module, train)
    return seconds, trainer.test(module, test, verbose=False)[0]["acc"]


def peer(side: str, workers: int, seed: int, file: str) -> None:
    """In its own process: print images per second and accuracy as JSON."""
    import torch

    torch.manual_seed(seed)
    arrays = dict(np.load(file))
    if side.startswith("lightning"):
        with tempfile.TemporaryDirectory() as folder:
            seconds, accuracy = lightning(arrays, workers, folder, bf16=side.endswith("bf16"))
    else:
        seconds, accuracy = hand_written(arrays, workers, timm=side == "timm")
    print(json.dumps([TRAIN / median(seconds[1:]), accuracy]))


def dlrun(seed: int, file: Path, out: Path) -> tuple[float, float]:
    """`dlrun train` on the same arrays; the validation split, which peers do not have, is the test images."""
    words = [f"dataset.path={file}", "model=cnn", "optimizer=nesterov", f"optimizer.lr={RATE}", "scheduler=cosine"]
    words += ["check.skip=[data_duplicates]"]  # which rightly says that validation images come again in the test split
    words += [f"trainer.epochs={EPOCHS}", f"trainer.batch_size={BATCH}", "augment=crop_flip", "trainer.keep=last"]
    words += [f"trainer.device={DEVICE}"]
    run = [sys.executable, "-m", "dlrun", "train", "dataset=arrays", *words, f"seed={seed}", f"run.dir={out}"]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    from dlrun.folders import reading

    rates = [float(row["samples_per_second"]) for row in reading.metrics(out)]
    return median(rates[1:]), json.loads((out / "result.json").read_text())["test_acc"]


def measured(side: str, workers: int, seed: int, file: Path) -> tuple[float, float, int]:
    """Images per second, test accuracy and the worker count given."""
    words = [sys.executable, "-W", "ignore", __file__, "--side", side, str(workers), str(seed), str(file)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side}: {done.stderr[-2000:]}")
    rate, accuracy = json.loads(done.stdout.splitlines()[-1])
    return rate, accuracy, workers


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder, seeds = Path(sys.argv[1]).resolve(), range(1, 1 + int(sys.argv[2] if len(sys.argv) > 2 else 3))
    found: dict[str, list[tuple[float, float]]] = {}
    faster: dict[str, int] = {}  # of the two worker counts, by side
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "images.npz"
        pack(folder, file)
        data = dict(np.load(file))
        # dlrun keeps a validation split apart; given one of its own, it trains on all that the peers train on
        ours = Path(scratch) / "ours.npz"
        np.savez(ours, **data, x_val=data["x_test"], y_val=data["y_test"])
        for seed in seeds:
            for side, package in SIDES.items():
                if package and importlib.util.find_spec(package) is None:
                    print(f"{side}: not measured, {package} is not installed")
                    continue
                counts = (faster[side],) if side in faster else (0, 2)
                rate, accuracy, faster[side] = max(measured(side, count, seed, file) for count in counts)
                found.setdefault(side, []).append((rate, accuracy))
                print(f"seed {seed}, {side}: {found[side][-1][0]:,.0f} images/s, {found[side][-1][1]:.4f}", flush=True)
            found.setdefault("dlrun", []).append(dlrun(seed, ours, Path(scratch) / f"run{seed}"))
            print(f"seed {seed}, dlrun: {found['dlrun'][-1][0]:,.0f} images/s, {found['dlrun'][-1][1]:.4f}", flush=True)
    base = median(rate for rate, _ in found["lightning"]) if "lightning" in found else float("nan")
    for side, pairs in found.items():
        rate, accuracies = median(rate for rate, _ in pairs), [a for _, a in pairs]
        spread = f" ± {100 * stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        print(
            f"{side:<16}{rate:>8,.0f} images/s, {rate / base:.2f} × Lightning; test accuracy "
            f"{100 * mean(accuracies):.2f}{spread} %"
        )


if __name__ == "__main__":
    if "--side" in sys.argv:
        peer(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
