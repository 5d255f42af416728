"""Decoded images per second of photographs as in ImageNet, against the usual loaders (issue 28: 1.3 times the better).

    pip install webdataset
    python tests/benchmarks/bench_large.py [--count 2000] [--workers 2] [--turns 3] [--folder FOLDER] [--start]
        [--jpegs cpu]

Makes JPEGs of about 500×375 and 100 KB, as files of class folders and in tars; FOLDER keeps them for the next call.
There each measurement is a line of `rounds.jsonl` at once: a call that was stopped continues after the last one, and
prints the medians of all when it has them. The order of the sides changes from turn to turn.
Each side reads all of them in a shuffled order with the same number of workers, in a process of its own and in turns,
and ends in batches of 128 normalised float32 images of 224×224, the shorter side resized and the centre cut out:
torchvision's ImageFolder with a DataLoader; webdataset's loader; dlrun's batches of the same folder and the same tars.
On CUDA, and with `--jpegs cpu` on the processor, the tars are also decoded by torchvision.io, as `dataset.jpeg=device`
does it; on CUDA these batches end there.
`processes` is what dlrun would do with processes that decode into shared memory in place of threads. Printed are the
images per second between the first batch and the last, and the processor time of an image, which other programs change
less; medians of the turns. That of processes includes their start.

`--start` measures the start instead: listing 50 tars of 1,000 members each without a cache, with an empty one, with the
lists in it.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

SIZE, BATCH, CLASSES, SHARD, POOL = 224, 128, 10, 500, 40
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PEERS = ("imagefolder", "webdataset")
SIDES = (*PEERS, "dlrun image_folder", "dlrun image_folder decoder 3", "dlrun shards", "processes")
ON_DEVICE = "dlrun shards jpeg=device"


def photographs(count: int) -> Iterator[bytes]:
    """JPEGs of pictures with the spectrum of photographs, mixed of a pool; sizes as in ImageNet."""
    import numpy as np
    from PIL import Image

    made = np.random.default_rng(0)
    y, x = np.meshgrid(np.fft.fftfreq(500), np.fft.rfftfreq(500), indexing="ij")
    falls = np.maximum(np.hypot(x, y), 1e-3) ** -1.2

    def picture() -> Any:
        bands = [np.fft.irfft2((made.normal(size=x.shape) + 1j * made.normal(size=x.shape)) * falls) for _ in "rgbl"]
        colours = np.dstack([0.3 * band + bands[3] for band in bands[:3]])
        return (colours - colours.mean()) * (60 / colours.std())

    pool = [picture() for _ in range(POOL)]
    for number in range(count):
        one, other = made.choice(POOL, 2, replace=False)
        shift = made.integers(0, 500, 2)
        mixed = np.clip(128 + 0.8 * pool[one] + 0.6 * np.roll(pool[other], shift, (0, 1)), 0, 255).astype(np.uint8)
        height, width = ((375, 500), (333, 500), (500, 375))[number % 3]
        buffer = io.BytesIO()
        Image.fromarray(mixed[:height, :width]).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def make(folder: Path, count: int) -> None:
    """Write the same images as class folders and as tars, unless they are there."""
    if (folder / "done").exists() and (folder / "done").read_text() == str(count):
        return
    tar = None
    for number, content in enumerate(photographs(count)):
        label = number % CLASSES
        path = folder / "photos" / f"class{label}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if number % SHARD == 0:
            if tar:
                tar.close()
            (folder / "tars").mkdir(exist_ok=True)
            tar = tarfile.open(folder / "tars" / f"train-{number // SHARD:04}.tar", "w")  # noqa: SIM115
        assert tar is not None
        for ending, part in (("jpg", content), ("cls", str(label).encode())):
            info = tarfile.TarInfo(f"{number:06}.{ending}")
            info.size = len(part)
            tar.addfile(info, io.BytesIO(part))
    if tar:
        tar.close()
    (folder / "done").write_text(str(count))


def transform() -> Any:
    from torchvision import transforms as t

    return t.Compose([t.Resize(SIZE), t.CenterCrop(SIZE), t.ToTensor(), t.Normalize(MEAN, STD)])


def imagefolder(folder: Path, workers: int) -> Iterable[Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    return DataLoader(ImageFolder(str(folder / "photos"), transform()), BATCH, shuffle=True, num_workers=workers)


def webdataset(folder: Path, workers: int) -> Iterable[Any]:
    import webdataset as wds

    tars = sorted(map(str, (folder / "tars").glob("*.tar")))
    read = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode("pil").to_tuple("jpg", "cls")
    return wds.WebLoader(read.map_tuple(transform(), int).batched(BATCH), batch_size=None, num_workers=workers)


def split(folder: Path, side: str) -> Any:
    """The images of a side of dlrun, as `dlrun train` reads them."""
    from dlrun.data.files import image_folder
    from dlrun.data.shards import shards

    if "image_folder" in side:
        return image_folder(str(folder / "photos"), SIZE, decoder=3 if "decoder 3" in side else 2).train
    return shards(str(folder / "tars" / "*.tar"), image_size=SIZE, decoder=3).train


def dlrun(folder: Path, workers: int, side: str, device: str) -> Iterable[Any]:
    from dlrun.data.batches import Batches
    from dlrun.training.memory import keep_freed

    keep_freed()  # as training does
    mean, std = ([255 * value for value in values] for values in (MEAN, STD))
    where = {"device": device, "jpegs": True} if side == ON_DEVICE else {}
    return Batches(split(folder, side), BATCH, mean=mean, std=std, shuffle=True, workers=workers, **where).epoch(1)


def prepare(folder: Path, slots: Any) -> None:
    global _images, _slots
    import torch

    from dlrun.training.memory import keep_freed

    keep_freed()
    torch.set_num_threads(1)
    _images, _slots = split(folder, "shards").images, slots


def decode(slot: int, start: int, index: list[int]) -> None:
    for row, number in enumerate(index, start):
        _slots.numpy()[slot, row] = _images.decode(number)  # type: ignore[name-defined]


def processes(folder: Path, workers: int) -> Iterator[Any]:
    """The same batches by processes that decode into shared memory: two batches ahead, as the threads are."""
    import torch

    slots = torch.empty(4, BATCH, SIZE, SIZE, 3, dtype=torch.uint8).share_memory_()
    count = len(split(folder, "shards"))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).split(BATCH)
    mean, scale = (torch.tensor(values).repeat(SIZE * SIZE) for values in (MEAN, [1 / value for value in STD]))
    # not a fork: threads of torch would hang in it
    with ProcessPoolExecutor(workers, get_context("spawn"), prepare, (folder, slots)) as pool:
        pending: deque[Any] = deque()

        def submit(number: int) -> None:
            if number < len(order):
                parts, start, tasks = order[number].tensor_split(workers), 0, []
                for part in parts:
                    tasks.append(pool.submit(decode, number % 4, start, part.tolist()))
                    start += len(part)
                pending.append(tasks)

        for number in range(3):
            submit(number)
        for number, index in enumerate(order):
            for task in pending.popleft():
                task.result()
            flat = slots[number % 4, : len(index)].flatten(1)
            yield (flat - 255 * mean).mul_(scale / 255).view(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2), index
            submit(number + 3)


def processor() -> float:
    """Seconds of the processor of this process, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured(side: str, folder: Path, workers: int, device: str) -> tuple[float, float]:
    """Images per second between the first batch and the last, and milliseconds of the processor per image."""
    for name in ("torch", "torchvision.transforms", "webdataset", "dlrun.data.batches", "dlrun.data.shards"):
        import_module(name)  # which is not measured
    made = {"imagefolder": imagefolder, "webdataset": webdataset, "processes": processes}.get(side)
    count, started, first, before = 0, 0.0, 0, processor()
    batches = iter(dlrun(folder, workers, side, device) if made is None else made(folder, workers))
    for batch in batches:
        assert batch[0].shape[1:] == (3, SIZE, SIZE)
        assert batch[0].dtype.is_floating_point
        if not started:
            started, first = time.perf_counter(), len(batch[0])
        else:
            count += len(batch[0])
    if side == ON_DEVICE and device == "cuda":
        import torch

        torch.cuda.synchronize()
    rate = count / (time.perf_counter() - started)
    del batches  # which ends its processes
    return rate, 1000 * (processor() - before) / (first + count)


def starts(folder: Path) -> None:
    """Print the seconds until the samples of tars of small members are known."""
    from dlrun.data.shards import shards

    for number in range(50):
        with tarfile.open(folder / f"start-{number:03}.tar", "w") as tar:
            for sample in range(500):
                for ending, part in (("jpg", bytes(4096)), ("cls", str(sample % CLASSES).encode())):
                    info = tarfile.TarInfo(f"{number:03}{sample:05}.{ending}")
                    info.size = len(part)
                    tar.addfile(info, io.BytesIO(part))
    time.sleep(1.5)  # a tar that was changed just now is not kept
    for what, cache in (("without a cache", "none"), ("first start", "cache"), ("later start", "cache")) * 3:
        began, used = time.perf_counter(), time.process_time()
        found = shards(
            str(folder / "start-*.tar"), image_size=SIZE, cache=str(folder / cache) if cache != "none" else cache
        )
        assert len(found.train.labels) == 25_000
        print(
            f"{what}: {time.perf_counter() - began:.2f} s, {time.process_time() - used:.2f} s of the processor",
            flush=True,
        )
        if what == "later start":
            for file in (folder / "cache").iterdir():
                print(f"  {file.suffix} of {file.stat().st_size / 1e6:.1f} MB")
                file.unlink()


def rounds(
    folder: Path, count: int, workers: int, turns: int, sides: tuple[str, ...], device: str
) -> list[dict[str, Any]]:
    """Measure what the log of a folder lacks; return all."""
    log = folder / "rounds.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = [one for one in known if (one["count"], one["workers"]) == (count, workers) and one["turn"] < turns]
    there = {(one["turn"], one["side"]) for one in known}
    for turn in range(turns):
        for side in (*sides[turn % len(sides) :], *sides[: turn % len(sides)]):
            if (turn, side) in there:
                continue
            words = [sys.executable, "-W", "ignore", __file__, "--side", side, "--folder", str(folder)]
            done = subprocess.run(
                [*words, "--workers", str(workers), "--jpegs", device], capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"{side}: {done.stderr[-2000:]}")
            rate, cost = json.loads(done.stdout.splitlines()[-1])
            about = {"count": count, "workers": workers, "turn": turn, "side": side, "rate": rate, "cost": cost}
            known.append(about)
            with log.open("a") as file:
                file.write(json.dumps(about) + "\n")
            print(f"turn {turn + 1}, {side}: {rate:,.0f} images/s, {cost:.2f} ms of the processor", flush=True)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--start", action="store_true")
    parser.add_argument("--side", choices=(*SIDES, ON_DEVICE), help=argparse.SUPPRESS)
    parser.add_argument("--jpegs", choices=("cuda", "cpu"), help="decode on this device as well; CUDA if it is there")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measured(args.side, args.folder, args.workers, args.jpegs)))
        return
    import torch

    device = args.jpegs or ("cuda" if torch.cuda.is_available() else "")
    sides = (*SIDES, ON_DEVICE) if device else SIDES
    with tempfile.TemporaryDirectory() as scratch:
        if args.start:
            starts(Path(scratch))
            return
        folder = (args.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, args.count)
        found = rounds(folder, args.count, args.workers, args.turns, sides, device or "cpu")
    rates, costs = (
        {side: [one[what] for one in found if one["side"] == side] for side in sides} for what in ("rate", "cost")
    )
    fastest, cheapest = max(median(rates[side]) for side in PEERS), min(median(costs[side]) for side in PEERS)
    for side in sides:
        rate, cost = median(rates[side]), median(costs[side])
        spread = f"{min(rates[side]):,.0f} to {max(rates[side]):,.0f}"
        print(
            f"{side:<30}{rate:>6,.0f} images/s ({spread}), {rate / fastest:.2f} × the better loader; "
            f"{cost:.2f} ms of the processor, {cheapest / cost:.2f} × less"
        )


if __name__ == "__main__":
    main()
