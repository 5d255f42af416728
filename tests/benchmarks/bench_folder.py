"""One epoch of image files from the cache against ImageFolder with a DataLoader, and the memory of four workers.

    python tests/benchmarks/bench_folder.py FOLDER   # FOLDER/<class>/*.jpg, or FOLDER/train/<class>/*.jpg

Both sides resize to 64 x 64, crop and flip, normalise, in batches of 128. Memory is proportional set size (PSS): a page
shared by four processes counts a quarter in each. Freed memory is reused and allocated in large pages, as in
`dlrun train`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dlrun import cli

SIDE = 64
CHILD = """
import sys, torch
from pathlib import Path
from bench_folder import ours, pss
torch.set_num_threads(1)
before = pss()
batches = ours(Path(sys.argv[1]), sys.argv[2])
for _ in batches.epoch(1): pass
print("ready", flush=True); sys.stdin.readline()
print(before, pss(), flush=True); sys.stdin.readline()
"""


def ours(root: Path, cache: str) -> Any:
    """The batches that a run trains on."""
    from dlrun.data import Batches, prepare
    from dlrun.data.augment import CropFlip
    from dlrun.data.files import image_folder
    from dlrun.training import memory

    memory.keep_freed()
    raw = image_folder(str(root), image_size=SIDE)
    data = prepare(raw, val_fraction=0.1, test_fraction=0.2, split_seed=0, cache=cache)
    return Batches(data.train, 128, mean=data.mean, std=data.std, augment=CropFlip(4), shuffle=True)


def theirs(root: Path) -> Any:
    """The usual pipeline of torchvision, two persistent worker processes."""
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision import transforms as t

    steps = [t.Resize(SIDE), t.CenterCrop(SIDE), t.RandomCrop(SIDE, 4), t.RandomHorizontalFlip(), t.ToTensor()]
    steps.append(t.Normalize([0.5] * 3, [0.25] * 3))
    top = root / "train" if (root / "train").is_dir() else root
    dataset = datasets.ImageFolder(str(top), t.Compose(steps))
    return DataLoader(dataset, 128, shuffle=True, num_workers=2, persistent_workers=True)


def rate(batches: Iterable[Any]) -> float:
    """Images per second over one pass."""
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch[0])
    return count / (time.perf_counter() - start)


def pss() -> float:
    """Megabytes of this process, shared pages divided by the number of processes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def grown(root: Path, cache: str, count: int) -> float:
    """Total growth in megabytes of `count` workers after they have read every image."""
    words = [sys.executable, "-c", CHILD, str(root), cache]
    pipe = subprocess.PIPE
    here = Path(__file__).parent
    workers = [subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, cwd=here) for _ in range(count)]
    for worker in workers:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    total = 0.0
    for worker in workers:
        assert worker.stdin
        assert worker.stdout
        print(file=worker.stdin, flush=True)
        before, after = map(float, worker.stdout.readline().split())
        total += after - before
    for worker in workers:
        worker.communicate("\n")
    return total


def main() -> None:
    """Print the ratios."""
    root = Path(sys.argv[1]).resolve()
    cli._large_pages()
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        batches = ours(root, cache)
        first = time.perf_counter() - start
        start = time.perf_counter()
        batches = ours(root, cache)
        again = time.perf_counter() - start
        print(f"first look at {len(batches.images):,} images {first:.1f} s, the next run's {again:.2f} s")
        loader = theirs(root)
        rate(loader)  # starts the workers
        pairs = [(rate(batches.epoch(number)), rate(loader)) for number in range(2, 4)]
        mine, other = (sorted(side)[0] for side in zip(*pairs, strict=True))
        print(f"later epochs: {mine:,.0f} images/s, ImageFolder and DataLoader {other:,.0f}: {mine / other:.1f} times")
        one, four = grown(root, cache, 1), grown(root, cache, 4)
        size = Path(cache).glob("*.pack")
        held = sum(path.stat().st_size for path in size) / 1e6
        print(f"memory over imports: one worker {one:.0f} MB, four {four:.0f} MB in all; the cache is {held:.0f} MB")


if __name__ == "__main__":
    main()
