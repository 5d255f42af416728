"""Whether the advice of a verdict helps: plant a situation, train, type what dlrun printed, compare (B1–B4).

    python tests/benchmarks/bench_verdicts.py --log verdicts.jsonl                      on digits: two minutes
    python tests/benchmarks/bench_verdicts.py --log more.jsonl --part others            other networks and optimizers
    python tests/benchmarks/bench_verdicts.py --log cifar.jsonl --part FOLDER           images of FOLDER, an hour
    python tests/benchmarks/bench_verdicts.py --log verdicts.jsonl --part rates         a grid of rates, and lr_range
    python tests/benchmarks/bench_verdicts.py --log verdicts.jsonl --part none          only the table

A line of the log is a situation with a seed; a line that is there is not repeated, so the same command continues.
Each advice is taken from the terminal and typed: `dlrun train --from RUN <words>`. That includes the warnings that a
run prints while it trains.

Half of the digits are the validation split: 808 images. The score is the validation accuracy of the weights that the
run kept; a diverged run kept none and scores 0. An advice improved a case if the advised run is better beyond noise,
and harmed it if it is worse beyond noise. Noise is the larger of
    two standard deviations of the score over the seeds of the situation, before the advice,
    1.96·√(b + c) / n: of n validation images b were right only before and c only after (McNemar's test, 95 %),
except that for harm the first is omitted, so that a situation with wide scores does not excuse it.
Rates: a verdict contradicts the grid if it asks for another rate at one whose score is not below the best beyond
McNemar's noise, or asks for a lower rate below the best one or a higher rate above it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

SEEDS = (1, 2, 3)
QUIET = ("check=none", "trainer.threads=1", "trainer.report=false")
HALF = ("dataset.val_fraction=0.5", "dataset.test_fraction=0.1")
FEW = ("dataset.val_fraction=0.95", "dataset.test_fraction=0.1", "trainer.batch_size=8", "trainer.epochs=60")
NOISY = ("dataset=arrays", "dataset.path=noisy.npz", "trainer.epochs=40")
MLP, CNN = ("model=mlp", "model.width=64"), ("model=cnn", "model.width=8")
ADVICE = re.compile(r"^(\w+).*: try (\S+=\S+(?: \S+=\S+)*)$", re.MULTILINE)
RATE = {"flat", "exploding", "slow", "update_ratio", "noisy"}


def digits() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The situations that the issue asks for, on digits."""
    for name, model in (("mlp", MLP), ("cnn", CNN)):
        half = (*model, *HALF)
        yield f"{name}: too short", (*half, "trainer.epochs=3")
        yield f"{name}: too small a rate", (*half, "trainer.epochs=12", "optimizer.lr=2e-5")
        yield f"{name}: too large a rate", (*half, "trainer.epochs=12", "optimizer.lr=2")
        plain = ("model.norm=none", "optimizer=sgd", "optimizer.lr=1")
        yield f"{name}: too large a rate, no norm", (*half, "trainer.epochs=12", *plain)
        yield f"{name}: one step in all", (*half, "trainer.batch_size=100000", "trainer.epochs=1")
        yield f"{name}: one step per epoch", (*half, "trainer.batch_size=100000", "trainer.epochs=30")
        tiny = ("trainer.batch_size=2", "trainer.epochs=8", "optimizer.lr=0.01", "scheduler=constant")
        yield f"{name}: tiny batches", (*half, *tiny, *(("model.norm=none",) if name == "cnn" else ()))
        yield f"{name}: wrong labels", (*model, *NOISY)
        yield f"{name}: overfitting", (*model, *FEW, "model.norm=none")
        yield f"{name}: too small a network", (*half, "model.width=2", "optimizer.lr=0.01")
        yield f"{name}: healthy", half
        yield f"{name}: healthy, sgd", (*half, "optimizer=sgd", "optimizer.lr=0.1")


def others() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The same situations for networks, optimizers and schedules that no threshold was chosen with."""
    small = ("model=resnet20", "model.width=4")
    for name, model, rate in (
        ("resnet20, nesterov", (*small, "optimizer=nesterov"), 0.05),
        ("tanh, rmsprop", ("model=mlp", "model.activation=tanh", "model.norm=none", "optimizer=rmsprop"), 0.001),
        ("gelu, group norm, adamw", (*CNN, "model.activation=gelu", "model.norm=group", "optimizer=adamw"), 0.003),
    ):
        half = (*model, *HALF, "scheduler=cosine", "trainer.epochs=15")
        yield f"{name}: healthy", (*half, f"optimizer.lr={rate}", "trainer.epochs=30")
        yield f"{name}: too short", (*half, f"optimizer.lr={rate}", "trainer.epochs=1")
        yield f"{name}: too small a rate", (*half, f"optimizer.lr={rate / 300:g}")
        yield f"{name}: too large a rate", (*half, f"optimizer.lr={rate * 300:g}")
        yield f"{name}: one step per epoch", (*half, f"optimizer.lr={rate}", "trainer.batch_size=100000")
        yield f"{name}: overfitting", (*model, *FEW, f"optimizer.lr={rate}")


def images(folder: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The situations on 2,000 images of a folder, with 2,000 more for validation."""
    data = ("dataset=image_folder", f"dataset.root={folder}", "dataset.limit=4000", "dataset.val_fraction=0.5")
    half = ("model=cnn", "model.width=16", *data, "trainer.epochs=8")
    yield "images: eight epochs", half
    yield "images: too short", (*half, "trainer.epochs=2")
    yield "images: too small a rate", (*half, "optimizer.lr=2e-5")
    yield "images: too large a rate", (*half, "optimizer.lr=2")
    yield "images: one step per epoch", (*half, "trainer.batch_size=100000")
    yield "images: overfitting", (*half, "dataset.limit=2500", "dataset.val_fraction=0.8", "trainer.epochs=40")


def mislabel(folder: Path) -> None:
    """Write digits, 800 of which have two wrong labels in five for training and 800 have the right ones."""
    from sklearn.datasets import load_digits

    found, draw = load_digits(), np.random.default_rng(0)
    order = np.argsort(draw.random(len(found.target)) + np.zeros(len(found.target)))
    ranks = np.array([np.sum(found.target[order][:k] == found.target[order][k]) for k in range(len(order))])
    order = order[np.argsort(ranks, kind="stable")]  # every stretch of ten holds every class
    x, y = (found.images[order] * 15).astype(np.uint8), found.target[order].copy()
    wrong = (np.arange(800) // 10) % 5 < 2
    y[:800][wrong] = (y[:800][wrong] + 1 + (np.arange(800)[wrong] // 50) % 9) % 10
    parts = {"": slice(0, 800), "_val": slice(800, 1600), "_test": slice(1600, None)}
    arrays = {f"{what}{part}": of[where] for part, where in parts.items() for what, of in (("x", x), ("y", y))}
    np.savez(folder / "noisy.npz", **arrays)


def train(*words: str) -> str:
    """Call `dlrun train` in this process; return what it printed."""
    from dlrun import cli

    said = io.StringIO()
    sys.argv = ["dlrun", "train", *words]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main()
        except SystemExit as ending:
            if ending.code not in (None, 0, 4):
                raise RuntimeError(said.getvalue()) from ending
    return said.getvalue()


def right(run: Path) -> Any:
    """Which validation images the kept weights classify correctly, in the order of their ids; None if diverged."""
    if not (run / "predictions.npz").exists():
        return None
    with np.load(run / "predictions.npz") as stored:
        order = np.argsort(stored["val_ids"])
        return (stored["val_logits"].argmax(1) == stored["val_labels"])[order]


def scored(run: Path, count: int = 808) -> tuple[float, Any]:
    hits = right(run)
    return (0.0, np.zeros(count, bool)) if hits is None else (float(hits.mean()), hits)


def case(name: str, words: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Train a situation, follow each advice, and return the line of the log."""
    os.environ["COLUMNS"] = "1000"
    with tempfile.TemporaryDirectory() as scratch:
        mislabel(Path(scratch))
        own = [w.replace("noisy.npz", f"{scratch}/noisy.npz") for w in words]
        said = train(*own, *QUIET, f"seed={seed}", f"run.dir={scratch}/own")
        result = json.loads(Path(scratch, "own", "result.json").read_text())
        line = {"situation": name, "seed": seed, "status": result["status"], "followed": []}
        line["verdicts"] = [f"{v['name']} -> {v['try']}" for v in result["verdicts"]]
        for k, (verdict, words_typed) in enumerate(dict.fromkeys(ADVICE.findall(said))):
            train("--from", f"{scratch}/own", *words_typed.split(), f"run.dir={scratch}/{k}")
            after, hits = scored(Path(scratch, str(k)))
            line["score"], before = scored(Path(scratch, "own"), len(hits))
            b, c = int((before & ~hits).sum()), int((hits & ~before).sum())
            told = {"verdict": verdict, "try": words_typed, "score": after, "b": b, "c": c, "n": len(hits)}
            line["followed"].append(told)
        line.setdefault("score", scored(Path(scratch, "own"))[0])
    return line


def rates() -> Iterator[tuple[str, tuple[str, ...], tuple[float, ...]]]:
    """Networks with and without norms, and the rates of their grids."""
    adam = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
    sgd = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    for name, model in (("mlp", MLP), ("cnn", CNN)):
        for plain in ((), ("model.norm=none",)):
            for optimizer, grid in (("adam", adam), ("sgd", sgd)):
                words = (*model, *plain, *HALF, "trainer.epochs=12", f"optimizer={optimizer}")
                yield f"{name}, {'no norm, ' if plain else ''}{optimizer}", words, grid


def row(name: str, words: tuple[str, ...], grid: tuple[float, ...]) -> dict[str, Any]:
    """Train at every rate of a grid and at the one that lr_range suggests; return the line of the log."""
    from dlrun.config.compose import compose
    from dlrun.probes import lr_range
    from dlrun.training.experiment import build

    exp = build(compose(*words, *QUIET))
    points = lr_range.measure(exp, 1e-7, 1.0, 100)
    kinds = {"normalised": lr_range.normalised(exp.model), "adaptive": lr_range.adaptive(exp.optimizer)}
    asked = lr_range.judge(points, 1e-7, 1.0, **kinds).lr
    found = []
    for lr in [*grid, *([asked] if asked else [])]:
        with tempfile.TemporaryDirectory() as scratch:
            train(*words, *QUIET, f"optimizer.lr={lr:g}", f"run.dir={scratch}/run")
            verdicts = json.loads(Path(scratch, "run", "result.json").read_text())["verdicts"]
            score, hits = scored(Path(scratch, "run"))
            advice = [(v["name"], v["try"]) for v in verdicts]
            bits = np.packbits(hits).tobytes().hex()
            found.append({"lr": lr, "score": score, "bits": bits, "advice": advice, "lr_range": lr == asked})
    return {"grid": name, "rates": found}


def table(lines: list[dict[str, Any]]) -> None:
    """Print what each verdict did, and the cases in which it did not help."""
    runs = defaultdict(list)
    for line in lines:
        if "situation" in line:
            runs[line["situation"]].append(line)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    silent, healthy = [], Counter[str]()
    for name, cases in runs.items():
        own = [line["score"] for line in cases]
        spread = 2 * stdev(own) if len(own) > 1 else 0.0
        for line in cases:
            if "healthy" in name:
                healthy["with a verdict" if line["verdicts"] else "without"] += 1
            elif not line["verdicts"]:
                silent.append(f"{name}, seed {line['seed']}: {line['score']:.3f}")
            for told in line["followed"]:
                gain, chance = told["score"] - line["score"], 1.96 * math.sqrt(told["b"] + told["c"]) / told["n"]
                what = "improved" if gain > max(spread, chance) else "harmed" if -gain > chance else "unchanged"
                counts[told["verdict"]][what] += 1
                if what != "improved" or "healthy" in name:
                    shown = f"{line['score']:.3f} -> {told['score']:.3f} (noise {max(spread, chance):.3f})"
                    print(f"{what}: {name}, seed {line['seed']}: {told['verdict']} -> {told['try']}: {shown}")
        first = sorted({v.split(" ->")[0] for line in cases for v in line["verdicts"]})
        after = [told["score"] for line in cases for told in line["followed"]]
        print(
            f"{name}: {mean(own):.3f} -> {mean(after):.3f} {' '.join(first)}" if after else f"{name}: {mean(own):.3f}"
        )
    print("\n".join(f"no verdict: {text}" for text in silent))
    print(f"{'verdict':14} improved unchanged harmed")
    total: Counter[str] = Counter()
    for verdict, found in sorted(counts.items()):
        total.update(found)
        print(f"{verdict:14} {found['improved']:8} {found['unchanged']:9} {found['harmed']:6}")
    print(f"{'all':14} {total['improved']:8} {total['unchanged']:9} {total['harmed']:6}; healthy {dict(healthy)}")


def agreement(lines: list[dict[str, Any]]) -> None:
    """Print how the rate's verdicts agree with grids and with lr_range."""
    contradicts, given, silent, ranged = [], 0, 0, []
    for line in lines:
        if "grid" not in line:
            continue
        top = max(line["rates"], key=lambda r: r["score"])
        best = np.unpackbits(np.frombuffer(bytes.fromhex(top["bits"]), np.uint8)).astype(bool)[:808]
        for at in line["rates"]:
            hits = np.unpackbits(np.frombuffer(bytes.fromhex(at["bits"]), np.uint8)).astype(bool)[:808]
            below = int((best & ~hits).sum()) - int((hits & ~best).sum())
            worse = below > 1.96 * math.sqrt(int((best ^ hits).sum()))
            asked = [float(t.split("=")[1]) for n, t in at["advice"] if n in RATE and t.startswith("optimizer.lr=")]
            if at["lr_range"]:
                ranged.append(bool(asked))
                continue
            if not asked:
                silent += worse and not at["advice"]
                continue
            given += 1
            if not worse or (asked[0] > at["lr"]) != (top["lr"] > at["lr"]):
                contradicts.append(f"{line['grid']} at {at['lr']:.2g}: try {asked[0]:g}, best {top['lr']:.2g}")
    if ranged or given:
        print(f"grids: {given} advices on the rate, {len(contradicts)} contradict; worse without a verdict: {silent}")
        print(f"runs at the rate of lr_range with a verdict on the rate: {sum(ranged)} of {len(ranged)}")
        print("\n".join(contradicts))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--part", default="digits", help="digits, others, rates, none, or a folder of images")
    parser.add_argument("--only", default="", help="situations whose name holds this")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    lines = [json.loads(text) for text in args.log.read_text().splitlines()] if args.log.exists() else []
    done = {(line.get("situation", line.get("grid")), line.get("seed")) for line in lines}
    kinds = {"digits": digits, "others": others}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        jobs: list[Any] = []
        if args.part == "rates":
            jobs = [pool.submit(row, *asked) for asked in rates() if (asked[0], None) not in done]
        elif args.part != "none":
            planted = kinds[args.part]() if args.part in kinds else images(str(Path(args.part).resolve()))
            wanted = [(name, words) for name, words in planted if args.only in name]
            jobs = [pool.submit(case, *one, s) for s in SEEDS for one in wanted if (one[0], s) not in done]
        for job in as_completed(jobs):
            if (error := job.exception()) is not None:
                print(f"failed: {error}", flush=True)
                continue
            lines.append(job.result())
            with open(args.log, "a") as log:
                log.write(json.dumps(lines[-1]) + "\n")
            print(json.dumps(lines[-1])[:300], flush=True)
    table(lines)
    agreement(lines)


if __name__ == "__main__":
    main()
