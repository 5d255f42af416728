"""An epoch of fine-tuning with and without a busy neighbour, with unbounded and with bounded spinning (issue 28.5).

    python tests/benchmarks/bench_neighbour.py [--epochs 9] [--rounds 2] [--model mobilenet_v3_small] [--priority]

Each process fine-tunes a network of torchvision, from random weights, on photographs that the benchmark draws; all
processors. A second program, one thread that computes without pause in a session of its own, runs during odd epochs
and is stopped during even ones and the first, so that the machine is calm when the training begins. Settings in turn:
`libgomp` is what OpenMP does by itself (GOMP_SPINCOUNT=300000), `passive` OMP_WAIT_POLICY=PASSIVE, `dlrun` what dlrun
does if nothing is set. An epoch during which other programs took more than FOREIGN of a processor does not count.

On a machine that is never calm `--priority` (root) puts training and neighbour above all other programs and counts
every epoch; but dlrun sees those programs, and waits as beside a neighbour. `--alone` starts none. Goals: with the
neighbour at most 2.2 times the calm epoch of `libgomp`, calm at most 1.03 times.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

SETTINGS = {"libgomp": {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "dlrun": {}}
FOREIGN = 0.1
TICKS = os.sysconf("SC_CLK_TCK")


def draw(folder: Path, count: int, side: int) -> None:
    """Write photographs of two classes: smooth random fields, whose mean differs a little."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / ("train" if number % 5 else "test") / "ab"[number // 5 % 2]
        place.mkdir(parents=True, exist_ok=True)
        field = rng.integers(0, 200, (8, 8, 3)) + 25 * (number // 5 % 2)
        Image.fromarray(field.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC).save(
            place / f"{number}.jpg", quality=90
        )


def used(pid: int) -> float:
    """Return the processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy() -> float:
    """Return the processor seconds of all programs of this machine."""
    fields = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    return (int(fields[0]) + int(fields[1]) + int(fields[2])) / TICKS


def above_others(pid: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, -20)
    Path(f"/proc/{pid}/autogroup").write_text("-20")


def rows(out: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    except OSError:
        return []


def run(
    words: list[str], env: dict[str, str], out: Path, alone: bool, priority: bool
) -> list[tuple[bool, float, float]]:
    """Train; of each epoch after the first: whether the neighbour ran, its seconds, the processors others took."""
    keys = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    env = {key: word for key, word in os.environ.items() if key not in keys} | env
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    neighbour.send_signal(signal.SIGSTOP)
    command = [sys.executable, "-m", "dlrun", "train", *words, f"run.dir={out}"]
    training = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.DEVNULL)
    found = []
    try:
        for process in (neighbour, training) if priority else ():
            above_others(process.pid)
        before, known = (busy(), used(training.pid), used(neighbour.pid), time.perf_counter()), 0
        while training.poll() is None:
            time.sleep(0.01)
            if len(done := rows(out)) == known:
                continue
            known = len(done)
            print(".", end="", flush=True)
            neighbour.send_signal(signal.SIGSTOP if alone or known % 2 else signal.SIGCONT)
            now = (busy(), used(training.pid), used(neighbour.pid), time.perf_counter())
            total, own, other, wall = (b - a for a, b in zip(before, now, strict=True))
            before = now
            if known > 1:
                seconds = float(done[-1]["train_seconds"]) + float(done[-1]["eval_seconds"])
                found.append((known % 2 == 1 and not alone, seconds, (total - own - other) / wall))
    finally:
        neighbour.kill()
        training.kill()
        neighbour.wait()
    if training.wait():
        sys.exit(f"training ended with {training.returncode}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--photos", type=int, default=640)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--settings", nargs="*", default=[*SETTINGS])
    parser.add_argument("--spins", type=int, nargs="*", default=[], help="further settings: these GOMP_SPINCOUNT")
    parser.add_argument("--alone", action="store_true", help="never with the neighbour: for the cost on a calm machine")
    parser.add_argument("--priority", action="store_true", help="above all other programs of this machine (root)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with this
    settings = {name: SETTINGS[name] for name in args.settings}
    settings |= {f"{count} spins": {"GOMP_SPINCOUNT": str(count)} for count in args.spins}
    seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
    left = 0
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "photos", args.photos, args.side)
        words = ["experiment=finetune", f"dataset.root={folder}/photos", f"dataset.image_size={args.side}"]
        words += [f"model.name={args.model}", "model.weights=null", "model.freeze=null", "model.unfreeze_at=0"]
        words += [f"trainer.epochs={args.epochs}", "check=none", "trainer.report=false", "trainer.device=cpu"]
        words += ["dataset.normalize=data"]
        for turn in range(args.rounds):
            for name, env in settings.items():
                found = run(words, env, Path(folder) / f"{name}-{turn}", args.alone, args.priority)
                for beside, spent, foreign in found:
                    if foreign > FOREIGN and not args.priority:
                        left += 1
                    else:
                        seconds[name, beside].append(spent)
                shown = [f"{spent:.2f}{'*' * beside}{'!' * (foreign > FOREIGN)}" for beside, spent, foreign in found]
                print(f" {name}: {' '.join(shown)}", flush=True)
    print(
        f"epochs with a * had a neighbour, with a ! other programs; {left} left out; median, and lower quartile, over"
    )
    print("the same of libgomp alone")
    calm = [percentile(seconds["libgomp", False], share) for share in (50, 25)]
    for (name, beside), found in sorted(seconds.items()):
        if found:
            now = [percentile(found, share) for share in (50, 25)]
            ratios = ", ".join(f"{a:.2f} s ({a / b:.3f})" for a, b in zip(now, calm, strict=True))
            print(f"{name}{' with a neighbour' * beside}: {ratios}, {len(found)} epochs")


def percentile(found: list[float], share: int) -> float:
    return float(np.percentile(found, share)) if found else float("nan")


if __name__ == "__main__":
    main()
