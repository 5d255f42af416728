"""Parts of bench_gpu.py besides the bare step: peers, the speedrun, cost of augmentation, the profile of a step."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Iterator
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
from gpu_rig import SETUPS, Bench, Setup, made, timed

__all__ = ["augmentation", "jpegs", "peers", "profile", "speedrun"]

TIMES = 3.0  # as fast as Lightning with its DataLoader, on a small network
AUGMENTS = ("none", "crop_flip", "affine", "colour", "blur", "noise", "cutout", "randaugment")
AUGMENTS += ("resized_crop", "trivialaugment", "augmix", "strong")


def augmentation(bench: Bench) -> None:
    """Cost of a batch with each augmentation, as a share of the bare step of resnet18 in bfloat16."""
    from bench_throughput import bare

    setup = SETUPS[3]
    exp = bench.built(setup, "trainer.precision=bf16")
    steps, step = len(exp.train), bare(exp)[0]
    step()
    whole = timed(bench.device, step) / steps
    bench.table.head(
        f"Batches of {exp.train.batch_size} images of 32 pixels, beside a bare step of {1e3 * whole:.2f} ms (resnet18)",
        *("augment", "ms a batch", "share of the step"),
    )
    for name in AUGMENTS:
        made = bench.built(setup, f"augment={name}", "trainer.precision=bf16")
        batches = made.train.epoch(1)
        for _ in islice(batches, 2):
            pass
        count = 0

        def rest(batches: Iterator[Any] = batches) -> None:
            nonlocal count
            for _ in islice(batches, 20):
                count += 1

        seconds = timed(bench.device, rest) / max(1, count)
        bench.table.row(name, f"{1e3 * seconds:.3f}", f"{seconds / whole:.1%}")


def jpegs(bench: Bench) -> None:
    """What dataset.jpeg=auto measures: images decoded per second by the processor and by the device."""
    import torch
    from bench_large import SIZE, photographs

    from dlrun.data.decoding import Decoding
    from dlrun.data.images import Streamed

    files = []
    for number, content in enumerate(photographs(16 if bench.tiny else 512)):
        files.append(bench.folder / f"{number}.jpg")
        files[-1].write_bytes(content)
    images, device = Streamed(files, (SIZE, SIZE, 3), True, decoding=Decoding(decoder=3)), torch.device(bench.device)
    bench.table.head(
        f"{len(files)} JPEGs of about 500×375, decoded and resized to {SIZE}×{SIZE}, medians of three",
        *("dataset.jpeg", "images/s"),
    )
    if why := bench.dlrun.broken(device):
        bench.table.say(f"\nnot measured: torchvision cannot decode on {device} ({why})")
        return
    turns = [[bench.dlrun.rate(images, how, device) for how in ("processor", "device")] for _ in range(3)]
    for how, rates in zip(("processor", "device"), zip(*turns, strict=True), strict=True):
        bench.table.row(how, f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})")
    index = torch.arange(len(files))
    gap = (next(bench.dlrun.read_on(images, [index], device)).cpu().int() - images.take(index)).abs()
    bench.table.say(f"\nThey differ by {gap.float().mean():.3f} of 255 in the mean, and by at most {gap.max()}.")


def speedrun(bench: Bench, words: list[str], name: str) -> None:
    """`experiment=cifar10_speedrun` in its own process, compared with the bare steps of the recipe."""
    from bench_speedrun import reference
    from bench_speedrun import speedrun as run

    own = [
        *words,
        f"trainer.device={bench.device}",
        "trainer.deterministic=false",
        "dataset.val_fraction=0.02",
        "check=none",
    ]
    if bench.tiny:
        own += ["model.widths=[4,8,8]", "trainer.batch_size=16", "trainer.epochs=4", "augment.progressive=[[20,1]]"]
        own += ["optimizer.per_layer.whiten.epochs=2"]
    bench.table.head(f"experiment=cifar10_speedrun on {name}")
    bare = reference(own)
    started = time.perf_counter()
    accuracies = run(bench.folder / f"speedrun{len(words)}", 1, own)
    whole = time.perf_counter() - started
    result = json.loads((bench.folder / f"speedrun{len(words)}" / "result.json").read_text())
    bench.table.say(
        f"{result['epochs']} epochs in {result['seconds']:.2f} s, the whole process {whole:.1f} s; test accuracy "
        f"{accuracies[0]:.4f}, by six views {accuracies[1]:.4f}; the bare steps of eight full epochs: {bare:.2f} s"
    )


def peers(bench: Bench) -> None:
    """The cnn compared with Lightning, timm's loader and a hand-written loop, if they are installed."""
    os.environ["BENCH_DEVICE"] = bench.device
    import bench_peers

    images = bench_peers.TRAIN if not bench.tiny else 512
    file = made(bench.folder, "peers", 32, images, 0, 500)
    with np.load(file) as found:
        data = dict(found)
    ours = bench.folder / "ours.npz"
    np.savez(ours, **data, x_val=data["x_test"], y_val=data["y_test"])
    workers = 0 if bench.tiny else min(8, len(os.sched_getaffinity(0)))
    bench.table.head(
        f"cnn on {images:,} images, batches of {bench_peers.BATCH}, {workers} workers of DataLoaders",
        *("side", "images/s", "test accuracy", "dlrun is so many times as fast", f"≥ {TIMES:g} (Lightning)"),
    )
    rate, accuracy = bench_peers.dlrun(1, ours, bench.folder / "peer-run")
    bench.table.row("dlrun train", f"{rate:,.0f}", f"{accuracy:.4f}", "", "")
    for side, package in bench_peers.SIDES.items():
        names = [package, "lightning"] if package == "pytorch_lightning" else [package]
        if package and not any(importlib.util.find_spec(n) for n in names):
            bench.table.row(side, "not installed", "", "", "")
        elif bench.left() < 15:
            bench.table.row(side, "not measured: no time left", "", "", "")
        else:
            other, accuracy, _ = bench_peers.measured(side, workers, 1, file)
            # the peers' rate is over their TRAIN images, which is not what a tiny file holds
            other *= images / bench_peers.TRAIN
            met = ("yes" if rate >= TIMES * other else "NO") if side.startswith("lightning") else ""
            bench.table.row(side, f"{other:,.0f}", f"{accuracy:.4f}", f"{rate / other:.2f}", met)


def profile(bench: Bench, setup: Setup) -> None:
    """Where a step's time goes: launching it from Python, work of the device, and the most expensive kernels."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    exp = bench.built(setup, "trainer.precision=bf16")
    exp.model.train()
    steps = 8 if not bench.tiny else 2
    batches = exp.train.epoch(1)

    def some(parts: dict[str, float]) -> None:
        for _ in range(steps):
            started = time.perf_counter()
            x, y, index = next(batches)
            drawn = time.perf_counter()
            bench.dlrun.step(exp, x, y, index)
            parts["batch"] = parts.get("batch", 0) + drawn - started
            parts["step"] = parts.get("step", 0) + time.perf_counter() - drawn

    some({})
    launched: dict[str, float] = {}
    wall = timed(bench.device, lambda: some(launched))
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.device == "cuda" else [])
    with profiler(activities=kinds) as seen:
        timed(bench.device, lambda: some({}))
    key = "self_device_time_total" if bench.device == "cuda" else "self_cpu_time_total"
    # on a card kernels alone: their time is told a second time of what launched them
    where = "CUDA" if bench.device == "cuda" else "CPU"
    kernels = (e for e in seen.key_averages() if where in str(e.device_type) and not e.is_user_annotation)
    events = sorted(kernels, key=lambda e: float(getattr(e, key)), reverse=True)
    busy = sum(getattr(e, key) for e in events) / 1e3 / steps
    bench.table.head(f"Where a step's time goes: {setup.name}, bf16, batches of {exp.train.batch_size}")
    bench.table.say(
        f"A step takes {1e3 * wall / steps:.2f} ms. Python launches the batch in {1e3 * launched['batch'] / steps:.2f} "
        f"ms and the step in {1e3 * launched['step'] / steps:.2f} ms; the device works {busy:.2f} ms: if the "
        "launches take as long as the whole, they are the limit.\n"
    )
    bench.table.say("| kernel | calls a step | ms a step | share |\n| --- | --- | --- | --- |")
    for event in events[:12]:
        mine = getattr(event, key) / 1e3 / steps
        name = event.key.replace("|", "/")[:90]
        bench.table.row(name, f"{event.count / steps:g}", f"{mine:.3f}", f"{mine / max(busy, 1e-9):.1%}")
