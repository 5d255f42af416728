"""Claims of the essays that are no study: bench_claims.py FOLDER [PIECE ...] --log LOG [--studies FOLDER].

    python tests/benchmarks/bench_claims.py data/cifar10 --log claims.jsonl --studies studies-cifar10-2000

Pieces: `chance`, the loss of an untrained network, with cross-entropy and hinge; `random`, nine trials at random and a
grid of nine, where one of two axes matters, three times each; `variety`, votes of networks with different kernels and
of equal ones, from the runs of the study kernel_width in the folder that bench_studies.py made. Each is a line of JSON
in LOG, and one that is there is skipped; sweeps are beside LOG and are resumed. claims_page.py reads it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from dlrun.analysis import study, sweeps
from dlrun.analysis.claims import AGREES, DOES_NOT, UNDECIDED
from dlrun.analysis.spread import margin

CLASSES = 10
RATES, DECAYS = ("0.0001", "0.01", "1"), ("1e-8", "1e-7", "1e-6")
KERNELS = ("3", "5", "7")


def dlrun(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dlrun", *words], capture_output=True, text=True)
    if done.returncode not in (0, 4, 5):
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def data(folder: Path, limit: int) -> tuple[str, ...]:
    shape = ("dataset.image_size=32", "dataset.val_fraction=0.25", "trainer.threads=1")
    return ("dataset=image_folder", f"dataset.root={folder}", f"dataset.limit={limit}", *shape)


def better(one: list[float], other: list[float]) -> tuple[str, float]:
    """Whether the first are higher beyond the noise of both, and that noise."""
    noise = margin((one, other), len(one), len(other))
    gain = fmean(one) - fmean(other)
    return UNDECIDED if not abs(gain) > noise else AGREES if gain > 0 else DOES_NOT, noise


def chance(args: argparse.Namespace, place: Path) -> list[dict[str, str]]:
    made = []
    for loss, expected in (("cross_entropy", math.log(CLASSES)), ("hinge", CLASSES - 1.0)):
        said = dlrun("check", *data(args.folder, args.limit), f"loss={loss}", "check.only=[initial_loss]")
        found = re.search(r"initial_loss +\w+ +([\d.]+)", said)
        assert found, said
        value = float(found[1])
        outcome = AGREES if abs(value / expected - 1) <= 0.05 else DOES_NOT
        made.append({"seen": f"an untrained cnn with {loss} has a loss of {value:g}",
                     "claimed": f"{expected:.3f} within 5 %", "outcome": outcome})  # fmt: skip
    return made


def random(args: argparse.Namespace, place: Path) -> list[dict[str, str]]:
    plain = ("optimizer=sgd", "check=none", "trainer.epochs=5", "trainer.report=false", "trainer.diagnostics=false")
    ranges = ("optimizer.lr=loguniform:1e-4:1", "optimizer.weight_decay=loguniform:1e-8:1e-6")
    lists = (f"optimizer.lr={','.join(RATES)}", f"optimizer.weight_decay={','.join(DECAYS)}")
    kinds = {"grid": ("search=grid", *lists), "random": ("search=random", "search.trials=9", *ranges)}
    best: dict[str, list[float]] = {name: [] for name in kinds}
    for seed in args.seeds:
        for name, words in kinds.items():
            out = place / f"{name}-{args.limit}-{seed}"
            more = (f"seed={seed}", f"search.seed={seed}", f"sweep.dir={out}", *data(args.folder, args.limit))
            dlrun(*(("resume", str(out)) if (out / "sweep.yaml").exists() else ("train", "-m", *words, *plain, *more)))
            found = sweeps.read(out)
            best[name].append(max(row["val_acc"] for row in found.rows if isinstance(row["val_acc"], float)))
    outcome, noise = better(best["random"], best["grid"])
    seen = f"best val_acc of 9 random trials {fmean(best['random']):.4f}, of a grid of 9 {fmean(best['grid']):.4f}"
    count = f"{len(args.seeds)} times each, noise {noise:.2g}"
    return [{"seen": f"{seen} ({count})", "claimed": "random is better where few axes matter", "outcome": outcome}]


def variety(args: argparse.Namespace, place: Path) -> list[dict[str, str]]:
    folder = args.studies / "kernel_width"
    found = study.read(folder, sweeps.read(folder))
    if not isinstance(found, study.Found):
        sys.exit(found or f"{folder}: no study; bench_studies.py kernel_width makes it")
    by_name = {setting.name: setting for setting in found.settings if setting.name in KERNELS}
    runs = [[run for run, result in by_name[k].runs if result["status"] == "completed"] for k in KERNELS]
    count = min(map(len, runs))
    own = [score(row[:count]) for row in runs]  # equal kernels, other seeds
    mixed = [score([runs[k][(k + turn) % count] for k in range(len(KERNELS))]) for turn in range(count)]
    outcome, noise = better(mixed, own)
    seen = f"test_acc of votes of kernels {', '.join(KERNELS)} is {fmean(mixed):.4f}, of equal kernels {fmean(own):.4f}"
    return [{"seen": f"{seen} (the same {3 * count} runs, noise {noise:.2g})",
             "claimed": "ensembles gain more with variety", "outcome": outcome}]  # fmt: skip


def score(runs: list[Path]) -> float:
    """Test accuracy of the mean probability of runs."""
    shares, labels = [], np.zeros(0)
    for run in runs:
        with np.load(run / "predictions.npz") as file:
            powers = np.exp(file["test_logits"].astype(float) - file["test_logits"].max(1, keepdims=True))
            labels = file["test_labels"]
        shares.append(powers / powers.sum(1, keepdims=True))
    return float((np.mean(shares, axis=0).argmax(1) == labels).mean())


PIECES = {"chance": chance, "random": random, "variety": variety}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pieces", nargs="*", help=f"of {', '.join(PIECES)}")
    parser.add_argument("--log", type=Path, default=Path("claims.jsonl"))
    parser.add_argument("--studies", type=Path, help="the folder of the sweeps of bench_studies.py")
    parser.add_argument("--limit", type=int, default=1000, help="images")
    parser.add_argument("--seeds", type=int, nargs="*", default=(1, 2, 3))
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    if unknown := set(args.pieces) - set(PIECES):
        parser.error(f"no piece is called {', '.join(sorted(unknown))}; there are {', '.join(PIECES)}")
    lines = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    done = {line["piece"] for line in lines if line["limit"] == args.limit}
    for name in [name for name in args.pieces or PIECES if name not in done]:
        if name == "variety" and args.studies is None:
            print("variety: left out; --studies FOLDER names the sweeps of bench_studies.py")
            continue
        began = time.monotonic()
        found = PIECES[name](args, args.log.resolve().with_suffix(""))
        about: dict[str, Any] = {"piece": name, "data": args.folder.name, "limit": args.limit}
        about |= {"seconds": round(time.monotonic() - began, 1), "claims": found}
        with args.log.open("a") as file:
            file.write(json.dumps(about) + "\n")
        for one in found:
            print(f"{name}: {one['outcome']}: {one['seen']}", flush=True)


if __name__ == "__main__":
    main()
