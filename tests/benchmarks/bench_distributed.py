"""Two processes that train one run (gloo, one thread each) against two that train a run each, in images per second.

    python tests/benchmarks/bench_distributed.py [--rounds 6] [--seconds 8] [--priority] dataset=cifar10 [KEY=VALUE …]

The same two processes, each on a core of its own, take turns: each alone with batches of 128, then together with
batches of 256, 128 images each. A step is what `dlrun train` does: the batch with its augmentation, gradients, SGD.
Apart, both take steps for so many seconds; together, they take as many as that should allow. The ratio of a round is
of images per second, and of processor time per image, which hardly depends on other programs; medians are printed.
`--priority` puts the processes above all other programs (root alone may).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
EACH = 128
SETUP = ("model=resnet20", "augment=crop_flip", "optimizer=sgd", "check=none", "trainer.device=cpu")
SETUP += ("trainer.threads=1", "trainer.precision=fp32", "trainer.sync_batchnorm=false")
PROCESSES = 2


def batches(exp: Any) -> Iterator[Any]:
    """Training batches without end."""
    from dlrun.data.batches import Batch

    for epoch in range(1, 1 << 30):
        numbers = exp.train.numbers(epoch)
        if exp.group is not None:
            exp.group.begin_epoch(exp, epoch)
        exp.model.train()
        for i, (x, y, index) in enumerate(exp.train.epoch(epoch)):
            batch = Batch(x, y, index, epoch=epoch, step=i, seed=exp.cfg.seed, sample=numbers[i])
            yield batch if exp.group is None else exp.group.placed(batch)
        if exp.group is not None:
            exp.group.end_steps(exp)


def taken(exp: Any, source: Iterator[Any], steps: int | None, seconds: float) -> tuple[int, float, float]:
    """Take so many steps, or as many as so many seconds allow; images of this process, seconds, processor seconds."""
    from dlrun.training import loop

    wall, processor, images, done = time.perf_counter(), time.process_time(), 0, 0
    while done < steps if steps is not None else time.perf_counter() - wall < seconds:
        batch = next(source)
        loop.step(exp, batch)
        images, done = images + len(batch), done + 1
    return images, time.perf_counter() - wall, time.process_time() - processor


def rank(words: list[str], rounds: int, seconds: float) -> None:
    """One of the processes; the first prints a line of JSON per round."""
    from torch import distributed as dist

    from dlrun.config.compose import compose
    from dlrun.config.ranks import own
    from dlrun.training import loop
    from dlrun.training.checkpoint import State
    from dlrun.training.experiment import build
    from dlrun.training.group import Group

    place = own()
    assert place is not None
    group = Group(place)
    alone = build(compose(*words, f"trainer.batch_size={EACH}", f"seed={place.rank}"))
    whole = build(compose(*words, f"trainer.batch_size={EACH * PROCESSES}"))
    group.awaited() if place.rank else group.begin(whole.cfg.plain)
    together, _ = group.join(whole, State() if not place.rank else None)
    apart, shared = batches(alone), batches(together)
    for exp, source in ((alone, apart), (together, shared)):
        for _ in range(3):
            loop.step(exp, next(source))
    for _ in range(rounds):
        found = []
        for exp, source in ((alone, apart), (together, shared)):
            dist.barrier()
            steps = None if exp is alone else int(group.told(found[0][0] / EACH))
            found.append(taken(exp, source, steps, seconds))
        import torch

        numbers = torch.tensor(found, dtype=torch.float64)
        speeds = numbers[:, 0] / numbers[:, 1]
        dist.all_reduce(speeds)  # images per second of all processes
        dist.all_reduce(numbers)
        if not place.rank:
            work = (numbers[:, 2] / numbers[:, 0]).tolist()
            print(json.dumps({"speeds": speeds.tolist(), "work": work}), flush=True)
    group.leave()


def output(command: list[str], processes: int) -> str:
    """Run a command in so many processes that can meet, each with its `--rank`; what the first one printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    running = []
    for number in range(processes):
        env = os.environ | known | {"RANK": str(number), "LOCAL_RANK": str(number), "PYTHONPATH": str(ROOT)}
        running.append(subprocess.Popen([*command, "--rank", str(number)], env=env, stdout=subprocess.PIPE, text=True))
    first, *_ = [process.communicate()[0] for process in running]
    return first


def take_core(number: int) -> None:
    """Bind this process to a core, the next one for the next number."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})


def main() -> None:
    """Start the processes, and print what the first one measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--priority", action="store_true")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    args, words = parser.parse_known_args()
    if args.rank is not None:
        take_core(args.rank)
        if args.priority:
            os.nice(-20)
        rank([*SETUP, *words], args.rounds, args.seconds)
        return
    out = output([sys.executable, __file__, *sys.argv[1:]], PROCESSES)
    rows = [json.loads(line) for line in out.splitlines()]
    for row in rows:
        print("apart {:7.1f}/s  together {:7.1f}/s".format(*row["speeds"]))
    ratios = [together / apart for apart, together in (row["speeds"] for row in rows)]
    work = [apart / together for apart, together in (row["work"] for row in rows)]
    print(f"images per second: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"images per second of processor time: {median(work):.3f} ({min(work):.3f} to {max(work):.3f})")


if __name__ == "__main__":
    main()
