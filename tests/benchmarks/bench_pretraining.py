"""What learning without labels is worth (M10): scenes with 50 labels per class, pretrained on all training images.

    python tests/benchmarks/bench_pretraining.py data/scenes --log pretraining.jsonl
    python tests/benchmarks/bench_pretraining.py data/scenes --log tiny.jsonl --labels 5 --images 40 --epochs 1

FOLDER has train/<class>/ and test/<class>/ images. Of each class LABELS images of train, in an order drawn by the seed,
have a label. The trunk learns on all images of train, or on IMAGES per class, without labels; then a run that starts
from it learns the labelled ones, as does a run from scratch. Each setting is such a pair of runs per seed: its scores
and seconds are one line of JSON in the log; settings that are in it are not run again, and a run that was killed is
resumed (its folder is beside the log). Words choose settings; without any all are run.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

SETTINGS = ("scratch", "simclr", "rotation", "autoencode", "denoise")
MODEL = ("model=cnn", "model.depth=4", "model.width=32", "optimizer=adamw", "trainer.threads=1")
PLAIN = ("check=none", "trainer.report=false", "dataset=table")


def table(folder: Path, train: int, test: int, seed: int, out: Path) -> Path:
    """Write the table of `train` and `test` images per class (0: all)."""
    rows = ["image,label,split"]
    for split, count in (("train", train), ("test", test)):
        for place in sorted((folder / split).iterdir()):
            names = sorted(file.name for file in place.iterdir())
            random.Random(f"{seed} {place.name}" if split == "train" else place.name).shuffle(names)
            rows += [f"{split}/{place.name}/{name},{place.name},{split}" for name in names[: count or None]]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(rows) + "\n")
    return out


def run(out: Path, *words: str) -> dict[str, Any]:
    """Train once, or continue, unless it is done; return result.json."""
    result = out / "result.json"
    if not result.exists() or json.loads(result.read_text())["status"] != "completed":
        command = (
            ("resume", str(out)) if (out / "checkpoints/last.pt").exists() else ("train", *words, f"run.dir={out}")
        )
        if code := subprocess.run([sys.executable, "-m", "dlrun", *command]).returncode:
            sys.exit(code)
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def pair(name: str, seed: int, args: argparse.Namespace, place: Path) -> dict[str, float]:
    """Train the trunk, unless it is from scratch, and then with labels; return scores and seconds of both."""
    folder, about = args.folder.resolve(), f"{args.labels}-{args.images}-{args.test}-{seed}"
    few = table(folder, args.labels, args.test, seed, place / f"few-{about}.csv")
    many = table(folder, args.images, args.test, seed, place / f"many-{about}.csv")
    plain = (*PLAIN, f"dataset.images={folder}", f"dataset.image_size={args.size}", *MODEL, f"seed={seed}")
    start, found = (), {}
    if name != "scratch":
        words = (f"objective={name}", f"dataset.csv={many}", f"trainer.epochs={args.epochs}", "trainer.batch_size=128")
        first = run(place / f"{name}-{about}-{args.epochs}", *plain, *words)
        start = (f"trainer.start_from={place / f'{name}-{about}-{args.epochs}'}",)
        found = {"pretrain_seconds": first["seconds"], "pretrain_val_loss": round(first["val_loss"], 4)}
    words = (f"dataset.csv={few}", f"trainer.epochs={args.tune}", "augment=crop_flip", "trainer.batch_size=32", *start)
    last = run(place / f"{name}-{about}-{args.epochs}-{args.tune}-tuned", *plain, *words)
    return found | {key: round(last[key], 4) for key in ("val_acc", "test_acc", "seconds")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--log", type=Path, default=Path("pretraining.jsonl"))
    parser.add_argument("--labels", type=int, default=50, help="labelled images per class")
    parser.add_argument("--images", type=int, default=0, help="images per class without labels; 0: all")
    parser.add_argument("--test", type=int, default=0, help="test images per class; 0: all")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--epochs", type=int, default=30, help="without labels")
    parser.add_argument("--tune", type=int, default=40, help="epochs with labels")
    parser.add_argument("--seeds", type=int, nargs="*", default=(1, 2, 3))
    args = parser.parse_args()
    if unknown := set(args.settings) - set(SETTINGS):
        parser.error(f"no setting is called {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    rows = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    key = {name: getattr(args, name) for name in ("labels", "images", "test", "size", "epochs", "tune")}
    chosen = args.settings or SETTINGS
    for seed in args.seeds:
        for name in chosen:
            about = {"setting": name, "seed": seed, **key}
            if not any(about.items() <= row.items() for row in rows):
                rows.append(about | pair(name, seed, args, args.log.resolve().with_suffix("")))
                with open(args.log, "a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    for name in chosen:
        scores = [row["test_acc"] for row in rows if row["setting"] == name and key.items() <= row.items()]
        if scores:
            spread = stdev(scores) if len(scores) > 1 else float("nan")
            print(f"{name}: test {mean(scores):.4f} ± {spread:.4f} ({len(scores)})")


if __name__ == "__main__":
    main()
