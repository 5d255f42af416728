"""What a training on several devices costs, measured on processes of this machine, and what that predicts for GPUs.

    python tests/benchmarks/bench_costs.py [--processes 1,2,4] [--parts steps,reduce,shards,writes] dataset=cifar10
    python tests/benchmarks/bench_costs.py --predict

`steps`: 1, 2 and 4 gloo processes of one thread train resnet20, 128 images each: images per second of all, and the
bytes that each sends in a step, which are those of its own TCP sockets (TCP_INFO), not of the machine's counters.
`reduce`: seconds of an all-reduce against its size. `shards`: a perceptron of 17 million weights with AdamW, with and
without trainer.sharding: seconds and bytes of a step, and bytes of weights, gradients and moments between steps.
`writes`: seconds of a checkpoint against its size, in this process. `--predict` prints the table of the model for 8, 64
and 512 GPUs; its numbers of cards and links are assumptions, whose sources are beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

PARTS = ("steps", "reduce", "shards", "writes")
SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 26)  # bytes
WIDE = ("model=mlp", "model.depth=5", "model.width=2048", "model.norm=none", "optimizer=adamw", "augment=none")

# ResNet-50 on ImageNet: torchvision's resnet50, and the split of 2012
WEIGHTS, IMAGES, EPOCHS = 25_557_032, 1_281_167, 90
# assumptions, none of them measured here: NVIDIA's A100 with 80 GB in DGX A100 systems
RATE = 2470.0  # images per second of one, mixed precision: github.com/NVIDIA/DeepLearningExamples, resnet50v1.5 README
NEAR = (
    300e9  # bytes per second to another GPU of the system, one way: nvidia.com/data-center/nvlink, 600 GB/s both ways
)
FAR = 25e9  # to another system: one 200 Gb/s adapter per GPU: DGX A100 data sheet
CORES = 128  # of a system of 8: the same sheet
HOP = 5e-6  # seconds of a message, and of one of 2 log2(n) steps of an all-reduce (NCCL 2.4 uses trees)
LARGEST = 8192  # images of a batch up to which accuracy stays: Goyal et al. 2017, arXiv 1706.02677, figure 1
BEHIND = 2 / 3  # part of a step, its backward pass, in which gradients are sent already (Li et al. 2020, PyTorch DDP)
EACH = 256  # images of a batch for one GPU, where the batch allows it


def ring_bytes(size: float, processes: int) -> float:
    """Return the bytes that each of so many processes sends to add up `size` bytes (Patarasuk & Yuan 2009, ring)."""
    return 2 * (processes - 1) / processes * size


def step_bytes(weights: int, processes: int, *, sharded: bool = False) -> float:
    """Return the bytes that each process sends in a training step, gradients and weights being float32.

    Sharded weights are collected twice, and gradients go once around the ring instead of twice.
    """
    return ring_bytes(4 * weights, processes) * (1.5 if sharded else 1.0)


def checkpoint_bytes(weights: int, *, moments: int, average: bool = False) -> int:
    """Return the bytes of the tensors in a checkpoint: weights, `moments` of the optimizer for each, their average."""
    return 4 * weights * (1 + moments + average)


def device_bytes(weights: int, processes: int, *, moments: int, sharded: bool) -> float:
    """Return the bytes of weights, gradients and moments that a device keeps between steps."""
    return 4 * weights * (2 + moments) / (processes if sharded else 1)


@dataclass(frozen=True)
class Predicted:
    """A training of ResNet-50 on so many GPUs by the model; seconds are those of a step."""

    gpus: int
    each: int
    compute: float
    wire: float
    seconds: float
    rate: float  # images per second of all
    cores: float  # of a system, that decode without a break


def predicted(gpus: int, decode: float) -> Predicted:
    """Return what the assumptions give for so many GPUs; `decode` seconds of a core for an image."""
    each = min(EACH, LARGEST // gpus)
    compute = each / RATE
    wire = step_bytes(WEIGHTS, gpus) / (NEAR if gpus <= 8 else FAR) + 2 * math.log2(gpus) * HOP
    seconds = compute + max(0.0, wire - BEHIND * compute)
    rate = gpus * each / seconds
    return Predicted(gpus, each, compute, wire, seconds, rate, decode * rate * min(8, gpus) / gpus)


def table(decode: float) -> str:
    """Return the predictions as a table."""
    head = (
        "GPUs",
        "images of a batch; each",
        "compute; wire; step",
        "images per second",
        "90 epochs",
        "decoding cores",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for gpus in (1, 8, 64, 512):
        one = predicted(gpus, decode)
        times = "; ".join(f"{1000 * part:.1f}" for part in (one.compute, one.wire, one.seconds))
        minutes = IMAGES * EPOCHS / one.rate / 60
        row = (f"{gpus}", f"{gpus * one.each:,}; {one.each}", f"{times} ms", f"{one.rate:,.0f}", f"{minutes:,.1f} min")
        lines.append(f"| {' | '.join(row)} | {one.cores:.0f} of {CORES} |")
    return "\n".join(lines)


def sent() -> int:
    """Return the bytes that the TCP sockets of this process have sent (tcpi_bytes_sent, Linux 4.19)."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if stat.S_ISSOCK(os.stat(f"/proc/self/fd/{name}").st_mode):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    if one.family in (socket.AF_INET, socket.AF_INET6):
                        told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                        total += struct.unpack_from("Q", told, 200)[0]
    return total


def kept(exp: Any) -> int:
    """Return the bytes of weights, gradients and moments that this process has between two steps."""
    from dlrun.training.sharded import local, of

    tensors = [*exp.model.parameters(), *of(exp).model.parameters()]
    tensors += [p.grad for p in of(exp).model.parameters() if p.grad is not None]
    tensors += [entry for one in exp.optimizer.state.values() for entry in one.values()]
    storages = [local(tensor.detach()).untyped_storage() for tensor in tensors]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def measured(work: Callable[[], Any], seconds: float, least: int = 3) -> dict[str, float]:
    """Do work for so long, in all processes as often; bytes and seconds of one time (median)."""
    import torch
    from torch import distributed as dist

    work()
    dist.barrier()
    before, took = sent(), list[float]()
    end = time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
        enough = torch.tensor(float(time.perf_counter() > end and len(took) >= least))
        dist.broadcast(enough, 0)
        if enough:
            return {"seconds": median(took), "bytes": (sent() - before) / len(took), "times": len(took)}


def joined(words: list[str], place: Any, group: Any) -> tuple[Any, Callable[[], Any]]:
    """An experiment that all processes train, and what takes a step of it."""
    from bench_distributed import batches

    from dlrun.config.compose import compose
    from dlrun.training import loop
    from dlrun.training.checkpoint import State
    from dlrun.training.experiment import build

    built = build(compose(*words))
    exp, _ = group.join(built, State() if not place.rank else None)
    source = batches(exp)
    return exp, lambda: loop.step(exp, next(source))


def rank(part: str, words: list[str], seconds: float) -> None:
    """One of the processes; the first prints what it measured as JSON."""
    import torch
    from torch import distributed as dist

    from dlrun.config.compose import compose
    from dlrun.config.ranks import own
    from dlrun.training.group import Group

    place = own()
    assert place is not None
    torch.set_num_threads(1)
    group, found = Group(place), dict[str, Any]()
    group.awaited() if place.rank else group.begin(compose(*words).plain)
    exp, step = joined(words, place, group)
    found["weights"] = sum(p.numel() for p in exp.model.parameters())
    if part == "reduce":
        for size in SIZES:
            data = torch.ones(size // 4)
            found[str(size)] = measured(lambda data=data: dist.all_reduce(data), seconds / len(SIZES))
    else:
        found |= measured(step, seconds)
        found["kept"] = kept(exp)
    if not place.rank:
        print(json.dumps(found), flush=True)
    group.leave()


def started(part: str, words: list[str], processes: int, seconds: float) -> dict[str, Any]:
    """Start so many processes, each on a core in turn, and return what the first one measured."""
    from bench_distributed import output

    command = [sys.executable, __file__, "--part", part, "--seconds", str(seconds), *words]
    out = output(command, processes)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def alone(words: list[str], seconds: float) -> float:
    """Images per second of one process by itself."""
    from bench_distributed import EACH as IMAGES_EACH
    from bench_distributed import batches, taken

    from dlrun.config.compose import compose
    from dlrun.training.experiment import build

    exp = build(compose(*words, f"trainer.batch_size={IMAGES_EACH}"))
    source = batches(exp)
    taken(exp, source, 2, seconds)
    images, spent, _ = taken(exp, source, None, seconds)
    return images / spent


def steps(words: list[str], counts: list[int], seconds: float) -> None:
    """Print images per second and bytes of a step of each number of processes."""
    from bench_distributed import EACH as IMAGES_EACH
    from bench_distributed import SETUP

    for count in counts:
        if count == 1:
            print(f"steps, 1 process: {alone([*SETUP, *words], seconds):.1f} images/s, 0 bytes", flush=True)
            continue
        found = started("steps", [*SETUP, *words, f"trainer.batch_size={IMAGES_EACH * count}"], count, seconds)
        rate, model = IMAGES_EACH * count / found["seconds"], step_bytes(found["weights"], count)
        print(
            f"steps, {count} processes: {rate:.1f} images/s, {found['bytes']:,.0f} bytes of a step, "
            f"{found['bytes'] / model:.3f} of the model's {model:,.0f}, {found['times']} steps",
            flush=True,
        )


def reduce(words: list[str], counts: list[int], seconds: float) -> None:
    """Print seconds and bytes of an all-reduce by its size."""
    from bench_distributed import SETUP

    for count in counts:
        if count == 1:
            continue
        found = started("reduce", [*SETUP, *words, "model=mlp", "trainer.batch_size=64"], count, 2 * seconds)
        for size in SIZES:
            one, model = found[str(size)], ring_bytes(size, count)
            speed = one["bytes"] / one["seconds"] / 1e6
            print(
                f"all-reduce, {count} processes, {size:,} bytes: {1000 * one['seconds']:.3f} ms, "
                f"{one['bytes'] / model:.3f} of the model's bytes, {speed:.0f} MB/s",
                flush=True,
            )


def shards(words: list[str], counts: list[int], seconds: float) -> None:
    """Print what a step costs with weights that are whole, and divided."""
    from bench_distributed import SETUP

    setup = [word for word in SETUP if word.partition("=")[0] not in ("model", "optimizer", "augment")]
    for count in counts:
        if count == 1:
            continue
        for kind in ("none", "fsdp2"):
            given = [*setup, *words, *WIDE, f"trainer.batch_size={16 * count}", f"trainer.sharding={kind}"]
            found = started("shards", given, count, 2 * seconds)
            model = step_bytes(found["weights"], count, sharded=kind != "none")
            least = device_bytes(found["weights"], count, moments=2, sharded=kind != "none")
            print(
                f"sharding={kind}, {count} processes, {found['weights']:,} weights: {1000 * found['seconds']:.0f} ms, "
                f"{found['bytes']:,.0f} bytes of a step, {found['bytes'] / model:.3f} of the model's, "
                f"{found['kept'] / 1e6:.1f} MB kept, {found['kept'] / least:.4f} of the model's",
                flush=True,
            )


def writes() -> None:
    """Print size and seconds of checkpoints."""
    import torch

    from dlrun.config.compose import compose
    from dlrun.folders.run import claim
    from dlrun.training import checkpoint
    from dlrun.training.experiment import build

    for width in (256, 1024, 2048, 4096):
        words = ("dataset=digits", "model=mlp", "model.depth=3", f"model.width={width}", "optimizer=adamw")
        exp = build(compose(*words, "trainer.device=cpu"))
        for p in exp.model.parameters():
            p.grad = torch.zeros_like(p)
        exp.optimizer.step()
        count = sum(p.numel() for p in exp.model.parameters())
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            run, took = claim(f"{folder}/run", "costs"), list[float]()
            for _ in range(3):
                content = checkpoint.snapshot(exp, checkpoint.State(epoch=1))
                began = time.perf_counter()
                checkpoint.write(run, content, is_best=True)
                took.append(time.perf_counter() - began)
            size, model = run.last.stat().st_size, checkpoint_bytes(count, moments=2)
            run.release()
        print(
            f"checkpoint of {size / 1e6:.1f} MB, {size / model:.4f} of the model's: {1000 * median(took):.0f} ms, "
            f"{size / median(took) / 1e6:.0f} MB/s",
            flush=True,
        )


def main() -> None:
    """Measure, or predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=lambda text: [*map(int, text.split(","))], default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--priority", action="store_true", help="above all other programs (root alone may)")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument(
        "--decode", type=float, default=2.29e-3, help="seconds of a core for a photograph (bench_large.py)"
    )
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args, words = parser.parse_known_args()
    if args.rank is not None:
        from bench_distributed import take_core

        take_core(args.rank)
        rank(args.part, words, args.seconds)
        return
    if args.predict:
        print(table(args.decode))
        return
    parts = {"steps": steps, "reduce": reduce, "shards": shards}
    if args.priority:
        os.nice(-20)
    for part in args.parts.split(","):
        writes() if part == "writes" else parts[part](words, args.processes, args.seconds)


if __name__ == "__main__":
    main()
