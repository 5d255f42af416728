"""The first epoch of camera photos: `dlrun train` against ImageFolder, DataLoader (two workers) and a plain loop.

    python tests/benchmarks/bench_photos.py [--count 500] [--turns 1] [--threads 0] [--folder FOLDER] [--checks]

Draws photos of 12 megapixels as JPEG files of 3 to 5 MB, twenty of them; all others are one of these with another
comment, so that their bytes differ. Both sides train the same small network for one epoch on 72 % of them, evaluate 8 %
after it and 20 % at the end, as whole processes: reading, decoding, Resize and CenterCrop, imports. dlrun also hashes
the files, fills its cache and measures the channels; its second start reads the cache. Both ways to decode large JPEG
files at a reduced scale are measured. `--checks` adds the checks before training and the report. Prints wall and
processor seconds (user and system, children included).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 3000, 4000
DRAWN, CLASSES, NOISE = 20, 5, 6
QUIET = ("check=none", "trainer.report=false")
SMALL = ("model=mlp", "model.depth=1", "model.width=16", "optimizer=sgd", "trainer.epochs=1")
THEIRS = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision import datasets, transforms as t
from dlrun.models.mlp import MLP

root, side, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if threads:
    torch.set_num_threads(threads)
steps = t.Compose([t.Resize(side * 256 // 224), t.CenterCrop(side), t.ToTensor(), t.Normalize([0.5] * 3, [0.25] * 3)])
whole = datasets.ImageFolder(root, steps)
train, val, test = random_split(whole, [0.72, 0.08, 0.2], generator=torch.Generator().manual_seed(0))
model = MLP(3, side, len(whole.classes), depth=1, width=16)
optimizer, loss_of = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), nn.CrossEntropyLoss()
for x, y in DataLoader(train, 32, shuffle=True, num_workers=2):
    optimizer.zero_grad()
    loss_of(model(x), y).backward()
    optimizer.step()
model.eval()
with torch.no_grad():
    for part in (val, test):
        found = [(model(x).argmax(1) == y).float().mean() for x, y in DataLoader(part, 256, num_workers=2)]
print(float(sum(found) / len(found)))
"""


def detail(draw: np.random.Generator, side: int, height: int, width: int) -> np.ndarray:
    """Random patches, `side` of them in a row, enlarged."""
    small = draw.integers(0, 256, (max(2, side * height // width), side, 3), dtype=np.uint8)
    layer = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return (np.asarray(layer, dtype=np.float32) - 127) * np.float32(12 / side**0.5)


def camera(seed: int) -> bytes:
    """A photograph-like JPEG: detail at all scales, and the noise of a sensor."""
    draw = np.random.default_rng(seed)
    pixels = np.zeros((HEIGHT // 4, WIDTH // 4, 3), np.float32) + draw.normal(127, 20, 3).astype(np.float32)
    for side in (4, 8, 16, 32, 64, 128, 256):
        pixels += detail(draw, side, HEIGHT // 4, WIDTH // 4)
    whole = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    pixels = np.asarray(whole, dtype=np.float32) + detail(draw, 1024, HEIGHT, WIDTH)
    pixels += draw.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32) * NOISE
    with tempfile.TemporaryFile() as file:
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        file.seek(0)
        return file.read()


def photos(folder: Path, count: int) -> None:
    """Fill folder/<class>/ with photos whose bytes all differ."""
    drawn = [camera(seed) for seed in range(min(DRAWN, count))]
    for number in range(count):
        data, comment = drawn[number % len(drawn)], f"photo {number}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        path = folder / f"class{number % CLASSES}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[:2] + segment + data[2:])


def timed(words: list[str], folder: Path) -> tuple[float, float]:
    """Wall and processor seconds of a process and its children."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)[:200]}\n{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--folder", type=Path, help="keep the photos here, and use those that are there")
    parser.add_argument("--threads", type=int, default=0, help="of the network; 0: all cores")
    parser.add_argument("--checks", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = (asked.folder or Path(name) / "photos").resolve()
        if not root.exists() or not any(root.iterdir()):
            photos(root, asked.count)
        sizes = [path.stat().st_size for path in root.glob("*/*.jpg")]
        print(f"{len(sizes)} photos of {WIDTH}x{HEIGHT}, {min(sizes) / 1e6:.1f} to {max(sizes) / 1e6:.1f} MB")
        print(f"{'seconds':<34} {'wall':>7} {'processor':>10}")
        for turn in range(asked.turns):
            run = ["-m", "dlrun", "train", "dataset=image_folder", f"dataset.root={root}", *SMALL]
            run += [f"dataset.image_size={asked.side}", f"dataset.cache={name}/cache{turn}"]
            run += [f"trainer.threads={asked.threads}"]
            run += [] if asked.checks else QUIET
            theirs = timed(["-c", THEIRS, str(root), str(asked.side), str(asked.threads)], Path(name))
            print(f"{'ImageFolder and DataLoader':<34} {theirs[0]:7.1f} {theirs[1]:10.1f}", flush=True)
            for decode in ("auto", "fast"):
                for start in ("first", "second"):
                    ours = timed([*run, f"dataset.decode={decode}"], Path(name))
                    what = f"dlrun, decode={decode}, {start} start"
                    ratio = f"{theirs[0] / ours[0]:.2f} and {theirs[1] / ours[1]:.2f} times as fast"
                    print(f"{what:<34} {ours[0]:7.1f} {ours[1]:10.1f}   {ratio}", flush=True)


if __name__ == "__main__":
    main()
