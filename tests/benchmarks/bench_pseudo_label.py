"""What images without labels are worth (D8): CIFAR images, 250 labels per class, the rest unlabelled.

    python tests/benchmarks/bench_pseudo_label.py data/cifar10 --log pseudo_label.jsonl
    python tests/benchmarks/bench_pseudo_label.py data/cifar10 --log tiny.jsonl --labels 20 --test 20 --epochs 2

FOLDER has train/<class>/ and test/<class>/ images. Of each class the first LABELS images of train, in an order drawn by
the seed, have a label; `objective.unlabelled` is the whole of train, of which dlrun omits them. Each setting is a run
per seed: the labelled images alone, pseudo-labels, FixMatch. Its scores and seconds are one line of JSON in the log;
settings that are in it are not run again, and a run that was killed is resumed (its folder is beside the log). Words
choose settings; without any all are run.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

SETTINGS = {
    "labelled alone": ("objective=supervised",),
    "pseudo_label": ("objective=pseudo_label", "objective.every=5", "objective.ratio=3"),
    "fixmatch": ("objective=fixmatch", "objective.ratio=3"),
}
MODEL = ("model=cnn", "model.width=32", "augment=crop_flip", "optimizer=adamw", "trainer.batch_size=64")


def table(folder: Path, labels: int, test: int, seed: int, out: Path) -> Path:
    """Write the table of the labelled images and of the test images, `test` per class (0: all)."""
    rows = ["image,label,split"]
    for split, count in (("train", labels), ("test", test)):
        for place in sorted((folder / split).iterdir()):
            names = sorted(file.name for file in place.iterdir())
            random.Random(f"{seed} {place.name}" if split == "train" else place.name).shuffle(names)
            rows += [f"{split}/{place.name}/{name},{place.name},{split}" for name in names[: count or None]]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(rows) + "\n")
    return out


def run(name: str, seed: int, args: argparse.Namespace, out: Path) -> dict[str, float]:
    """Train once, or continue; return the scores and the seconds of training."""
    folder = args.folder.resolve()
    csv = table(folder, args.labels, args.test, seed, out.parent / f"{args.labels}-{args.test}-{seed}.csv")
    data = ("dataset=table", f"dataset.csv={csv}", f"dataset.images={folder}")
    others = (
        (f"objective.unlabelled={args.unlabelled or folder / 'train'}",) if name in ("pseudo_label", "fixmatch") else ()
    )
    plain = (f"seed={seed}", "check=none", "trainer.report=false", "trainer.threads=1", f"run.dir={out}")
    words = (*SETTINGS[name], *others, *MODEL, f"trainer.epochs={args.epochs}", *data, *plain)
    command = ("resume", str(out)) if (out / "checkpoints/last.pt").exists() else ("train", *words)
    done = subprocess.run([sys.executable, "-m", "dlrun", *command])
    if done.returncode:
        sys.exit(done.returncode)
    result = json.loads((out / "result.json").read_text())
    made = result.get("pseudo_labels", {})
    found = {key: round(result[key], 4) for key in ("val_acc", "test_acc", "seconds")}
    accepted, precision = sum(made.get("accepted", {}).values()), made.get("precision", {})
    right = sum(made["accepted"][k] * (share or 0.0) for k, share in precision.items())
    seen = (
        {"accepted": round(accepted / made["seen"], 4), "precision": round(right / max(accepted, 1), 4)} if made else {}
    )
    return found | seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)}; parts of names choose too")
    parser.add_argument("--log", type=Path, default=Path("pseudo_label.jsonl"))
    parser.add_argument("--labels", type=int, default=250, help="labelled images per class")
    parser.add_argument("--test", type=int, default=0, help="test images per class; 0: all")
    parser.add_argument("--unlabelled", type=Path, help="another folder of unlabelled images")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="*", default=(1, 2, 3))
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    chosen = [n for n in SETTINGS if not args.settings or any(word in n for word in args.settings)]
    if not chosen:
        parser.error(f"no setting contains {', '.join(args.settings)}; there are {'; '.join(SETTINGS)}")
    key = {"labels": args.labels, "test": args.test, "epochs": args.epochs}
    for seed in args.seeds:
        for name in chosen:
            about = {"setting": name, "seed": seed, **key}
            if any(about.items() <= row.items() for row in rows):
                continue
            place = f"{name.replace(' ', '-')}-{args.labels}-{args.test}-{args.epochs}-{seed}"
            rows.append(about | run(name, seed, args, args.log.resolve().with_suffix("") / place))
            with open(args.log, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    for name in chosen:
        mine = [row for row in rows if row["setting"] == name and key.items() <= row.items()]
        scores = [row["test_acc"] for row in mine]
        if scores:
            spread = stdev(scores) if len(scores) > 1 else float("nan")
            seconds = mean(row["seconds"] for row in mine)
            print(f"{name}: test {mean(scores):.4f} ± {spread:.4f} ({len(scores)}), {seconds:.0f} s")


if __name__ == "__main__":
    main()
