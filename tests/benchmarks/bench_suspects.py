"""Swapped labels that `dlrun suspects` finds in a cross-validation.

    python tests/benchmarks/bench_suspects.py data/scenes
    python tests/benchmarks/bench_suspects.py data/scenes --keep kept hydra.launcher.workers=1       with other settings

The folder has train/<class>/ and test/<class>/ images. A copy gets 5 % of its training labels swapped at random, a
small cnn trains on five folds at 32 pixels, and the suspects are compared with the swaps. Wrong labels that the folder
had before count as no swaps, so the share that is right is a lower bound. With --keep the copy and the sweep stay in a
folder, and a second call continues there. Needs the extra `suspects`.
"""

from __future__ import annotations

import csv
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cleanlab.filter import find_label_issues

from dlrun.ensembles.folds import joined
from dlrun.ensembles.members import read
from dlrun.ensembles.votes import softmax

SHARE = 0.05
WORDS = (
    *("dataset=image_folder", "dataset.root=noisy", "dataset.image_size=32", "dataset.folds=5"),
    *("dataset.fold=range:0:5", "model=cnn", "model.depth=6", "augment=crop_flip", "augment.pad=2"),
    *("optimizer.lr=0.003", "trainer.epochs=30", "trainer.batch_size=64", "trainer.threads=1"),
    *("trainer.diagnostics=false", "trainer.report=false", "check=none", "sweep.dir=folds32"),
)
RULES = ("low_self_confidence", "low_normalized_margin", "confident_learning", "prune_by_noise_rate", "both")


def swapped(folder: Path, copy: Path) -> Iterator[str]:
    """Copy a folder with a share of its training labels swapped; yield the ids of the images that got another label."""
    draw = random.Random(0)
    files = sorted((folder / "train").glob("*/*"))
    classes = sorted({file.parent.name for file in files})
    chosen = set(draw.sample(range(len(files)), round(SHARE * len(files))))
    for k, file in enumerate(files):
        true = file.parent.name
        label = draw.choice([name for name in classes if name != true]) if k in chosen else true
        target = copy / "train" / label / f"{true[0]}{file.name}"  # no class has two images of one name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        if k in chosen:
            yield target.relative_to(copy).as_posix()
    if not (copy / "test").exists():
        shutil.copytree(folder / "test", copy / "test")


def dlrun(scratch: Path, *words: str) -> None:
    print("$ dlrun", *words, flush=True)
    subprocess.run([sys.executable, "-m", "dlrun", *words], check=True, cwd=scratch)


def said(name: str, found: set[str], swaps: set[str]) -> str:
    hits = len(found & swaps)
    return (
        f"{name:<22} {hits} of {len(swaps)} swaps found ({hits / len(swaps):.1%}); "
        f"{hits} of {len(found)} suspects right ({hits / max(1, len(found)):.1%})"
    )


def measure(folder: Path, scratch: Path, words: list[str]) -> None:
    swaps = set(swapped(folder, scratch / "noisy"))
    dlrun(scratch, "train", "-m", *WORDS, *words)
    dlrun(scratch, "suspects", "folds32", "--out", "suspects")
    with open(scratch / "suspects/suspects.csv", newline="") as file:
        print(said("dlrun suspects", {row["id"] for row in csv.DictReader(file)}, swaps))
    member = joined(read([str(scratch / "folds32")])[0])[0]
    p, labels, ids = softmax(member.arrays["val_logits"]), member.arrays["val_labels"], member.arrays["val_ids"]
    print(f"out-of-fold accuracy on the labels as given: {np.mean(p.argmax(1) == labels):.3f}")
    for rule in RULES:
        found = find_label_issues(labels, p, filter_by=rule, return_indices_ranked_by="self_confidence", n_jobs=1)
        print(said(rule, set(ids[found].tolist()), swaps))


def main() -> None:
    words = sys.argv[1:]
    kept = Path(words.pop(k + 1)) if (k := words.index("--keep") if "--keep" in words else -1) >= 0 else None
    if not words:
        sys.exit(__doc__)
    if kept is not None:
        words.remove("--keep")
        kept.mkdir(exist_ok=True)
        measure(Path(words[0]).resolve(), kept.resolve(), words[1:])
        return
    with tempfile.TemporaryDirectory() as scratch:
        measure(Path(words[0]).resolve(), Path(scratch), words[1:])


if __name__ == "__main__":
    main()
