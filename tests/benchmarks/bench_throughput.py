"""Training with crop, flip and diagnostics against the bare step, evaluation against the bare forward pass.

    python tests/benchmarks/bench_throughput.py dataset=cifar10 [trainer.precision=bf16 trainer.threads=1 ...]

The bare step is forward, backward and optimizer on one fixed batch in memory, the bare forward pass one over the same
batch sizes as validation, of the same dtype and memory layout. The sides take turns epoch by epoch in an alternating
order, so that other load on the machine affects both; medians of the ratios are printed, by wall time and by processor
time, which with trainer.threads=1 hardly depends on other load. An epoch here is 36 steps, a tenth of CIFAR-10's, so
the layer diagnostics after it weigh ten times as much.

Where the time goes (batches of 128, one thread, processor time, share of the bare step of the cnn in fp32, 78 to
140 ms by load): a batch 1.0 % (crop and flip 0.5, normalising 0.2, taking the images 0.1, order and labels the rest),
norms of a measured step (3 per epoch) 0.2 %, gradient norm 0.1 %, sums and their finiteness under 0.1 %, schedule
0.01 %; the diagnostics after an epoch a tenth of one step. Larger costs were in both sides: pages returned to the
system and allocated again (see dlrun/training/memory.py), and evaluation in batches of 1024, too large for the cache
(twice the time per image).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROUNDS = 6
SETUPS = ("model=cnn trainer.batch_size=128", "model=resnet20 trainer.batch_size=128")
DATA = "dataset.limit=5632 dataset.val_fraction=0.1819 augment=crop_flip optimizer=sgd scheduler=constant check=none"


def experiment(*words: str) -> Any:
    """Build what `dlrun train WORDS` does."""
    from dlrun.config.compose import compose
    from dlrun.training.experiment import build

    return build(compose(*words))


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall time of a call, and processor time of all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def turns(bare: Callable[[], Any], ours: Callable[[], Any]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The seconds of both, ROUNDS times, after one round to warm up."""
    bare(), ours()
    found = []
    for number in range(ROUNDS):
        if number % 2:
            mine = seconds(ours)
            found.append((seconds(bare), mine))
        else:
            found.append((seconds(bare), seconds(ours)))
    return found


def bare(exp: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Only the steps of an epoch, and forward passes over as many images in batches of the same size."""
    x, y, _ = next(exp.train.epoch(1))
    held = [x for x, _, _ in exp.val.epoch(0)]

    def train() -> None:
        exp.model.train()
        for _ in range(len(exp.train)):
            exp.optimizer.zero_grad(set_to_none=True)
            with exp.autocast():
                loss = exp.loss(exp.stepped(x), y)
            loss.backward()
            exp.optimizer.step()

    def evaluate() -> None:
        exp.model.eval()
        with torch.inference_mode(), exp.autocast():
            for batch in held:
                exp.model(batch)

    return train, evaluate


def main() -> None:
    """Print the ratios."""
    from dlrun.console import Screen
    from dlrun.training import loop
    from dlrun.training.checkpoint import State
    from dlrun.training.diagnostics import Watch

    for setup in SETUPS:
        exp = experiment(*DATA.split(), *setup.split(), *sys.argv[1:])
        watch, state, screen = Watch(exp), State(), Screen(Path(tempfile.mkdtemp()) / "log")
        train, evaluate = bare(exp)
        # epoch 2 is one without histograms, as all but four are
        trained = turns(train, lambda: (loop.train_epoch(exp, 2, state, screen, watch), watch.look(2)))  # noqa: B023
        evaluated = turns(evaluate, lambda: loop.predict(exp, exp.val))  # noqa: B023
        rate = len(exp.data.train) / median(mine[0] for _, mine in trained)
        print(
            f"{setup}, {str(exp.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads: {rate:,.0f} images/s"
        )
        for name, pairs in {"training / bare step": trained, "evaluation / bare forward": evaluated}.items():
            clock, processor = (median(limit[k] / mine[k] for limit, mine in pairs) for k in (0, 1))
            print(f"  {name:<26} {clock:.3f} by the clock, {processor:.3f} in processor time", flush=True)


if __name__ == "__main__":
    main()
