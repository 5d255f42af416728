"""What each ingredient of experiment=scratch is worth: test accuracy on a folder of images, with and without it.

    python tests/benchmarks/bench_scratch.py data/scenes --log scratch.jsonl --seeds 3
    python tests/benchmarks/bench_scratch.py data/scenes --log scratch.jsonl --only all --seeds 5    and the ensemble
    python tests/benchmarks/bench_scratch.py data/scenes --log scratch.jsonl --minutes 0             only the table

The folder has train/<class>/ and test/<class>/ images; the network sees 64 pixels. Each run is a folder beside the log.
A call continues where the last one stopped: runs in the log are not repeated, and a run that was killed is resumed.
With five seeds of `all` they are made an ensemble. Words after `--` are passed to every run: -- trainer.epochs=10.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VARIANTS: dict[str, tuple[str, ...]] = {
    "all": (),
    "shifts for resized crops": ("augment=crop_flip", "augment.pad=6"),
    "no trivialaugment": ("augment.trivialaugment=false",),
    "no cutmix": ("objective.cutmix=0",),
    "no mixed images": ("objective.cutmix=0", "objective.mixup=0"),
    "no label smoothing": ("regularizer.label_smoothing=0",),
    "binary cross-entropy": ("loss=bce",),
    "no stochastic depth": ("model.stochastic_depth=0",),
    "squeeze-and-excitation": ("model.se_ratio=0.25",),
    "projection shortcut": ("model.shortcut=projection",),
    "last norms at one": ("model.zero_init_residual=false",),
    "anti-aliased": ("model.antialias=true",),
    "small stem": ("model.stem=small",),
    "small stem, width 24": ("model.stem=small", "model.width=24"),
    "no average of weights": ("trainer.ema=0",),
    "average of the last quarter": ("trainer.ema=0", "trainer.swa=0.25"),
    "sharpness-aware": ("optimizer.sam=0.05",),
    "lookahead": ("optimizer.lookahead=5",),
    "adamw": ("optimizer=adamw", "optimizer.lr=0.002", "optimizer.weight_decay=0.05"),
    "nesterov": ("optimizer=nesterov", "optimizer.lr=0.1", "optimizer.weight_decay=5e-4"),
    "flat, then cosine": ("scheduler=flat_cosine",),
    "25 epochs": ("trainer.epochs=25",),
    "width 64": ("model.width=64",),
    "test a quarter larger alone": ("trainer.multi_crop=mirror_larger",),
    "images of the test as they are": ("trainer.multi_crop=mirror",),
}
KEPT = ("test_acc", "plain_test_acc", "test_loss", "val_acc", "weights", "epochs", "seconds")


def dlrun(*words: str) -> None:
    print("$ dlrun", *words, flush=True)
    subprocess.run([sys.executable, "-m", "dlrun", *words], check=True)


def trained(data: Path, folder: Path, words: list[str]) -> dict[str, Any]:
    """Train a run to its end, or continue it; return the scores of its result."""
    if (folder / "config.yaml").exists():
        dlrun("resume", str(folder))
    else:
        dlrun("train", "experiment=scratch", f"dataset.root={data}", f"run.dir={folder}", *words)
    result = json.loads((folder / "result.json").read_text())
    return {key: result.get(key) for key in KEPT}


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def add(log: Path, row: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")


def table(rows: list[dict[str, Any]]) -> None:
    """Print mean, deviation and number of seeds of each variant, and its difference to `all` on the same seeds."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["variant"], {})[row["seed"]] = row["test_acc"]
    whole = found.get("all", {})
    for variant, scores in found.items():
        values, pairs = [*scores.values()], [100 * (scores[s] - whole[s]) for s in scores if s in whole]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        more = f"{statistics.mean(pairs):+.2f} points" if pairs and variant != "all" else ""
        print(f"{variant:28} {statistics.mean(values):.4f} ± {spread:.4f} ({len(values)})  {more}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--log", type=Path, default=Path("scratch.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--minutes", type=float, default=1e9)
    typed = [*sys.argv[1:], "--"]
    words = [word for word in typed[typed.index("--") + 1 :] if word != "--"]
    args = parser.parse_args(typed[: typed.index("--")])
    began, runs = time.monotonic(), args.log.with_suffix("")
    # every variant with one seed before any with two
    for seed, variant in ((seed, variant) for seed in range(1, args.seeds + 1) for variant in args.only):
        if any((row["variant"], row["seed"]) == (variant, seed) for row in read(args.log)):
            continue
        if time.monotonic() - began > 60 * args.minutes:
            break
        folder = runs / f"{variant.replace(' ', '-').replace(',', '')}-{seed}"
        scores = trained(args.data, folder, [*VARIANTS[variant], f"seed={seed}", *words])
        add(args.log, {"variant": variant, "seed": seed, **scores, "cores": os.cpu_count(), "words": words})
    table(read(args.log))
    members = [runs / f"all-{seed}" for seed in range(1, 6)]
    if all((member / "result.json").exists() for member in members) and args.minutes > 0:
        dlrun("ensemble", *map(str, members), "--out", str(runs / f"votes-{int(time.time())}"))


if __name__ == "__main__":
    main()
