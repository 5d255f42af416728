"""Training with crop, flip and diagnostics against the bare step, evaluation against the bare forward.

    python tests/benchmarks/bench_throughput.py dataset=cifar10 [trainer.precision=bf16 ...]

The bare step is forward, backward and optimizer on one fixed batch in memory, of the same dtype and memory layout.
Both sides take turns, ROUNDS times, and the median ratio is printed.
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

ROUNDS = 5
SETUPS = ("model=cnn trainer.batch_size=128", "model=resnet20 trainer.batch_size=128")
DATA = "dataset.limit=2560 augment=crop_flip optimizer=sgd scheduler=constant check=none"


def experiment(*words: str) -> Any:
    """What `dlrun train WORDS` builds."""
    from dlrun.composing import compose
    from dlrun.experiment import build

    return build(compose(*words))


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bare(exp: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """As many steps, and as many forward passes over validation, as an epoch has, and nothing else."""
    (x, y, _), (held, _, _) = next(exp.train.epoch(1)), next(exp.val.epoch(0))

    def train() -> None:
        exp.model.train()
        for _ in range(len(exp.train)):
            exp.optimizer.zero_grad(set_to_none=True)
            with exp.autocast():
                loss = exp.loss(exp.model(x), y)
            loss.backward()
            exp.optimizer.step()

    def evaluate() -> None:
        exp.model.eval()
        with torch.inference_mode(), exp.autocast():
            for _ in range(len(exp.val)):
                exp.model(held)

    return train, evaluate


def main() -> None:
    """Print the ratios."""
    from dlrun import engine
    from dlrun.checkpoint import State
    from dlrun.diagnostics import Watch
    from dlrun.progress import Screen

    for setup in SETUPS:
        exp = experiment(*DATA.split(), *setup.split(), *sys.argv[1:])
        watch, state, screen = Watch(exp), State(), Screen(Path(tempfile.mkdtemp()) / "log")
        train, evaluate = bare(exp)
        ours = lambda: (engine.train_epoch(exp, 1, state, screen, watch), watch.look(1))  # noqa: B023, E731
        train(), ours(), evaluate()
        trained = [(seconds(train), seconds(ours)) for _ in range(ROUNDS)]
        evaluated = [(seconds(evaluate), seconds(lambda: engine.predict(exp, exp.val))) for _ in range(ROUNDS)]  # noqa: B023
        count = len(exp.data.train.labels)
        rate = count / median(mine for _, mine in trained)
        print(f"{setup}, {str(exp.dtype).removeprefix('torch.')}: {rate:,.0f} images/s")
        print(f"  training / bare step {median(limit / mine for limit, mine in trained):.3f}")
        print(f"  evaluation / bare forward {median(limit / mine for limit, mine in evaluated):.3f}", flush=True)


if __name__ == "__main__":
    main()
