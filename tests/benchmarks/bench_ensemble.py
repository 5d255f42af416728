"""What an ensemble, its distillation and averaged weights are worth: python tests/benchmarks/bench_ensemble.py FOLDER…

Each FOLDER holds train/<class>/ and test/<class>/ images. Per folder: five seeds of the cnn, the
ensemble of the five by mean probability against their mean, three students distilled from it, and raw against averaged
weights of the same epoch (the first three seeds). Everything is printed as mean ± std over seeds. About ten minutes a
folder on two quiet cores.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

COMMON = (
    *("model=cnn", "augment=none", "optimizer.lr=0.003", "trainer.epochs=20", "dataset.limit=5000"),
    *("check=none", "trainer.report=false", "trainer.diagnostics=false"),
)
SEEDS, STUDENTS = 5, 3


def dlrun(*words: str) -> None:
    print("$ dlrun", *words, flush=True)
    subprocess.run([sys.executable, "-m", "dlrun", *words], check=True, stdout=subprocess.DEVNULL)


def results(sweep: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(sweep.glob("*/result.json"))]


def told(values: list[float]) -> str:
    return f"{100 * mean(values):.2f} ± {100 * stdev(values):.2f} %"


def measure(folder: Path, out: Path) -> None:
    data = ("dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=32", *COMMON)
    dlrun("train", "-m", f"seed=range(0,{SEEDS})", *data, f"sweep.dir={out / 'plain'}")
    dlrun("ensemble", str(out / "plain"), "--out", str(out / "ensemble"))
    student = ("objective=distill", f"objective.teacher={out / 'ensemble'}", "objective.temperature=4")
    dlrun("train", "-m", f"seed=range({SEEDS},{SEEDS + STUDENTS})", *data, *student, f"sweep.dir={out / 'student'}")
    # a rate that stays: what averaging is for; with one that falls to 0 the raw weights settle by themselves
    ema = ("trainer.ema=0.999", "scheduler=constant", "trainer.keep=last", "trainer.epochs=10")
    words = [word for word in data if not word.startswith("trainer.epochs")]
    dlrun("train", "-m", "seed=range(0,3)", *words, *ema, f"sweep.dir={out / 'ema'}")
    with open(out / "ensemble" / "table.csv", newline="") as file:
        table = {row["vote"]: float(row["test_acc"]) for row in csv.DictReader(file)}
    single = [r["test_acc"] for r in results(out / "plain")]
    students = [r["test_acc"] for r in results(out / "student")]
    gain = table["mean_probability"] - mean(single)
    print(f"{folder.name}: single models            {told(single)} ({SEEDS} seeds)")
    for vote in ("majority", "confidence", "mean_probability", "mean_logit"):
        print(f"{folder.name}: ensemble, {vote:<16} {100 * table[vote]:.2f} %")
    print(f"{folder.name}: gain of mean probability {100 * gain:+.2f} points")
    kept = (mean(students) - mean(single)) / gain if gain > 0 else float("nan")
    print(
        f"{folder.name}: distilled single model   {told(students)} ({STUDENTS} seeds), {100 * kept:.0f} % of the gain"
    )
    pairs = [(r["raw_test_acc"], r["ema_test_acc"]) for r in results(out / "ema")]
    raw, averaged = ([p[k] for p in pairs] for k in (0, 1))
    wins = sum(b > a for a, b in pairs)
    print(f"{folder.name}: raw weights {told(raw)}, averaged {told(averaged)}; better in {wins} of {len(pairs)} seeds")


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        for name in sys.argv[1:]:
            measure(Path(name).resolve(), Path(scratch) / Path(name).name)


if __name__ == "__main__":
    main()
