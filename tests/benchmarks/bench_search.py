"""A sweep against a bare pool: 32 trials of ten epochs of a small CNN on digits, two workers (issue 5.1, S6).

`python tests/benchmarks/bench_search.py [TRIALS [REPEATS]]`, five times by default, in turns. Left: a joblib pool of
two over the training function below: same network, batch, optimizer, data, epochs; no files, no checks, no table.
Right: the same by `dlrun train -m`. Wall time of complete processes. Target: at most 1.15 for the medians: single runs
of either vary by a third.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from statistics import median

BARE = """
import sys
from joblib import Parallel, delayed

def train(lr):
    import torch
    from dlrun.models.cnn import CNN
    from sklearn.datasets import load_digits
    torch.set_num_threads(1)
    torch.manual_seed(1)
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None].contiguous(memory_format=torch.channels_last)
    y = torch.tensor(found.target)
    x = (x - x.mean()) / x.std()
    x, y, vx, vy = x[:1294], y[:1294], x[1294:1438], y[1294:1438]
    net = CNN(in_channels=1, num_classes=10, depth=3, width=8).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for epoch in range(10):
        net.train()
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
        net.eval()
        with torch.inference_mode():
            accuracy = (net(vx).argmax(1) == vy).float().mean().item()
    return accuracy

if __name__ == "__main__":
    n = int(sys.argv[1])
    print(max(Parallel(n_jobs=2)(delayed(train)(10 ** (-4 + 3 * k / n)) for k in range(n))))
"""


def timed(words: list[str], folder: str) -> float:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.perf_counter() - started


def once(trials: int) -> tuple[float, float]:
    """Return the seconds of a joblib pool and of a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/bare.py", "w") as file:
            file.write(BARE)
        words = ("optimizer.lr=loguniform:1e-4:1e-1", f"search.trials={trials}", "hydra.launcher.workers=2")
        setup = ("trainer.epochs=10", "trainer.batch_size=32", "model.width=8", "trainer.threads=1", "check=none")
        bare = timed(["bare.py", str(trials)], folder)
        sweep = timed(["-m", "dlrun", "train", "-m", *words, *setup, "trainer.report=false"], folder)
    print(f"joblib {bare:.1f} s, dlrun {sweep:.1f} s, ratio {sweep / bare:.2f}", flush=True)
    return bare, sweep


def main(trials: int = 32, repeats: int = 5) -> None:
    bare, sweep = (median(seconds) for seconds in zip(*(once(trials) for _ in range(repeats)), strict=True))
    print(
        f"medians of {repeats}: joblib {bare:.1f} s, dlrun {sweep:.1f} s, ratio {sweep / bare:.2f} (at most 1.15), "
        f"{trials} trials"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
