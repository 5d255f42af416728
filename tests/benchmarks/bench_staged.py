"""Whether a staged search finds as good a result as a random one in half the epochs (S4): bench_staged.py FOLDER.

    python tests/benchmarks/bench_staged.py data/cifar10      FOLDER has train/<class>/ and test/<class>/ images

On 4,000 training images (and 2,000 for validation: with few, one of many trials looks best by chance) the default cnn,
rate and dropout from the same wide ranges, three seeds of the search, each with its own defaults: random trains 20
trials to the end; staged draws 30 and gives most of them one epoch. Printed are the best validation accuracies of an
epoch's raw weights, not of the averaged ones that staged ranks by and random lacks, and the total number of epochs of
each search, as counted in its table. Target: as good or better in at most half of the epochs.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

EPOCHS, SEEDS = 12, (1, 2, 3)
AXES = ("optimizer.lr=loguniform:1e-5:1", "regularizer.dropout=uniform:0:0.5")


def search(folder: Path, how: str, seed: int, out: Path) -> tuple[float, int]:
    """Return the best validation accuracy of a search by raw weights, and the epochs it trained."""
    data = ("dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=32", "dataset.limit=6000")
    data += ("dataset.val_fraction=0.33333",)
    asked = (f"search={how}", f"search.seed={seed}", f"trainer.epochs={EPOCHS}")
    plain = ("check=none", "trainer.report=false", "trainer.diagnostics=false", f"sweep.dir={out}")
    words = ["train", "-m", *AXES, *data, *asked, *plain]
    done = subprocess.run([sys.executable, "-m", "dlrun", *words], capture_output=True, text=True)
    if done.returncode not in (0, 5):  # a rate near 1 may diverge: that is a row
        sys.exit(done.stdout + done.stderr)
    rows = read(out / "table.csv")
    best = max(float(epoch["val_acc"]) for r in rows for epoch in read(out / r["folder"] / "metrics.csv"))
    return best, sum(int(r["epochs"] or 0) for r in rows)


def read(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    found: dict[str, list[tuple[float, int]]] = {"random": [], "staged": []}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in SEEDS:
            for how, all_of_it in found.items():
                all_of_it.append(search(folder, how, seed, Path(scratch) / f"{how}-{seed}"))
                print(f"seed {seed}, {how}: best {all_of_it[-1][0]:.4f} in {all_of_it[-1][1]} epochs", flush=True)
    best = {how: mean(value for value, _ in all_of_it) for how, all_of_it in found.items()}
    epochs = {how: sum(count for _, count in all_of_it) for how, all_of_it in found.items()}
    reached = sum(s >= r for (s, _), (r, _) in zip(found["staged"], found["random"], strict=True))
    print(
        f"staged {best['staged']:.4f}, random {best['random']:.4f} (means of {len(SEEDS)}; as good or better in "
        f"{reached}), with {epochs['staged'] / epochs['random']:.0%} of the epochs"
    )


if __name__ == "__main__":
    main()
