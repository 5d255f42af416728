"""Starts of `dlrun train` on many small files: the first, a later one, and one with another `dataset.split_seed`.

    python tests/benchmarks/bench_many_files.py [--count 50000] [--classes 300] [--side 64] [--folder FOLDER]

Draws JPEG files of 2 to 3 KB, all with other pixels, and lets `dlrun.data.prepare` read them in a new process, as a run
does before its first step, with the test split: digests, folds, decoding into a new cache, moments of the channels.
Prints processor seconds (user and system, with imports), wall seconds, the largest memory and the images decoded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

DRAWN = 500  # pictures; all others are mixtures of two of them
CHILD = """
import json, resource, sys, time
started = time.perf_counter()
from dlrun.data import images, prepare
from dlrun.data.files import image_folder
from dlrun.training import memory

memory.keep_freed()
count, original = [], images.decoded
images.decoded = lambda *how: (count.append(0), original(*how))[1]
root, cache, side, seed = sys.argv[1:]
raw = image_folder(root, image_size=int(side))
data = prepare(raw, val_fraction=0.1, test_fraction=0.2, split_seed=int(seed), cache=cache)
size = len(data.train) + len(data.val) + len(data.test().split)
data.record(final=True)
used = resource.getrusage(resource.RUSAGE_SELF)
row = [used.ru_utime + used.ru_stime, time.perf_counter() - started, used.ru_maxrss / 1e6, len(count), size]
print(json.dumps(row))
"""


def small_files(folder: Path, count: int, classes: int, side: int) -> None:
    """Fill folder/<class>/ with JPEG files of different pixels."""
    draw = np.random.default_rng(0)
    pictures = []
    for _ in range(DRAWN):
        patches = draw.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        whole = Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)
        pictures.append(np.clip(np.asarray(whole) + draw.normal(0, 8, (side, side, 1)), 0, 255).astype(np.uint8))
    for number in range(count):
        one, other = pictures[number % DRAWN], pictures[number // DRAWN % DRAWN]
        path = folder / f"class{number % classes:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one // 2 + other // 3).save(path, quality=85)


def start(root: Path, cache: Path, side: int, seed: int) -> list[float]:
    """Processor and wall seconds, gigabytes, images decoded and images in all of one start."""
    words = [sys.executable, "-c", CHILD, str(root), str(cache), str(side), str(seed)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    row: list[float] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=300)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="keep the files here, and use those that are there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, cache = (asked.folder or Path(name) / "images").resolve(), Path(name) / "cache"
        if not root.exists() or not any(root.iterdir()):
            small_files(root, asked.count, asked.classes, asked.side)
        print(f"{'start':<22} {'processor s':>11} {'wall s':>7} {'GB':>6} {'decoded':>8} {'images':>8}")
        for what, seed in (("first", 0), ("later", 0), ("another split_seed", 1)):
            processor, wall, memory, decoded, size = start(root, cache, asked.side, seed)
            print(f"{what:<22} {processor:11.1f} {wall:7.1f} {memory:6.2f} {decoded:8,} {size:8,}", flush=True)
        print(f"the cache takes {sum(path.stat().st_size for path in cache.iterdir()) / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
