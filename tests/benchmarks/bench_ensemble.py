"""Value of an ensemble, its distillation and averaged weights.

    python tests/benchmarks/bench_ensemble.py data/cifar10
    python tests/benchmarks/bench_ensemble.py data/scenes model.depth=6 dataset.limit=2000      with other settings

The folder has train/<class>/ and test/<class>/ images. Compared are five seeds of the cnn, the ensemble of the five by
mean probability with their mean, raw with averaged weights of the same epoch (three seeds), and three students
distilled from the ensemble, which train three times as long, since students profit from long training (Beyer et al.,
"Knowledge distillation: a good teacher is patient and consistent", 2022). To separate the effect of the longer
training, as many models train as long on the labels. All results are mean ± std over seeds. About forty minutes on two
idle cores.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

EPOCHS, PATIENT = 40, 120  # of a model, and of a student
COMMON = (
    *("model=cnn", "augment=crop_flip", "augment.pad=0", "optimizer.lr=0.003", "dataset.limit=5000"),
    *("trainer.keep=last", "check=none", "trainer.report=false", "trainer.diagnostics=false"),
)
SEEDS, STUDENTS = 5, 3


def dlrun(*words: str) -> None:
    print("$ dlrun", *words, flush=True)
    subprocess.run([sys.executable, "-m", "dlrun", *words], check=True, stdout=subprocess.DEVNULL)


def results(sweep: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(sweep.glob("*/result.json"))]


def told(values: list[float]) -> str:
    return f"{100 * mean(values):.2f} ± {100 * stdev(values):.2f} %"


def measure(folder: Path, out: Path, words: list[str]) -> None:
    own = [*(w for w in COMMON if w.split("=")[0] not in {x.split("=")[0] for x in words}), *words]
    data = ("dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=32", *own)

    def train(name: str, seeds: range, epochs: int, *more: str) -> list[dict[str, Any]]:
        axis = f"seed=range({seeds.start},{seeds.stop})"
        dlrun("train", "-m", axis, *data, f"trainer.epochs={epochs}", *more, f"sweep.dir={out / name}")
        return results(out / name)

    single = [r["test_acc"] for r in train("plain", range(SEEDS), EPOCHS)]
    dlrun("ensemble", str(out / "plain"), "--out", str(out / "ensemble"))
    with open(out / "ensemble" / "table.csv", newline="") as file:
        table = {row["vote"]: float(row["test_acc"]) for row in csv.DictReader(file)}
    gain = table["mean_probability"] - mean(single)
    say = partial(print, f"{folder.name}:", flush=True)
    say(f"single models            {told(single)} ({SEEDS} seeds, {EPOCHS} epochs)")
    for vote in ("majority", "confidence", "mean_probability", "mean_logit"):
        say(f"ensemble, {vote:<16} {100 * table[vote]:.2f} %")
    say(f"gain of mean probability {100 * gain:+.2f} points")
    # a rate that stays: what averaging is for; with one that falls to 0 the raw weights settle by themselves
    pairs = [
        (r["raw_test_acc"], r["ema_test_acc"])
        for r in train("ema", range(3), 10, "trainer.ema=0.999", "scheduler=constant")
    ]
    raw, averaged = ([p[k] for p in pairs] for k in (0, 1))
    wins = sum(b > a for a, b in pairs)
    say(f"raw weights {told(raw)}, averaged {told(averaged)}; better in {wins} of {len(pairs)} seeds")
    seeds = range(SEEDS, SEEDS + STUDENTS)
    teacher = ("objective=distill", f"objective.teacher={out / 'ensemble'}", "objective.temperature=4")
    students = {
        "distilled single model": teacher,
        "consistently distilled": (*teacher, "objective.consistent=true"),
        "trained as long on labels": (),
    }
    for name, more in students.items():
        found = [r["test_acc"] for r in train(name.split()[0], seeds, PATIENT, *more)]
        kept = (mean(found) - mean(single)) / gain if gain > 0 else float("nan")
        say(f"{name:<25}{told(found)} ({STUDENTS} seeds, {PATIENT} epochs), {100 * kept:.0f} % of the gain")


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        measure(Path(sys.argv[1]).resolve(), Path(scratch), sys.argv[2:])


if __name__ == "__main__":
    main()
