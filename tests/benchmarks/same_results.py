"""The same commands by two checkouts of dlrun: are weights, tables and predictions the same to the last bit?

python tests/benchmarks/same_results.py OLD [NEW]: OLD and NEW are checkouts; NEW is the one that this file is in. Each
trains, resumes, sweeps, lets the sweep vote, distils, predicts and reports on digits, in a folder of its own. Compared
are all tensors of checkpoints, all arrays, and every column of the tables except times, memory and texts.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

SMALL = ("dataset.limit=400", "trainer.threads=1", "trainer.epochs=3", "trainer.device=cpu", "trainer.report=false")
PLAIN = (*SMALL, "check=none")
COMMANDS = (
    ("train", *SMALL, "run.dir=cnn", "augment=crop_flip", "augment.pad=1", "trainer.ema=0.9"),
    ("train", *PLAIN, "run.dir=mlp", "model=mlp", "optimizer=lbfgs", "trainer.batch_size=400"),
    ("train", *PLAIN, "run.dir=paused", "trainer.stop_after=1", "trainer.keep=top3", "regularizer=elastic"),
    ("resume", "paused"),
    ("train", *PLAIN, "run.dir=accumulated", "model=resnet20", "model.width=4", "trainer.accumulate=2", "loss=hinge"),
    ("train", *PLAIN, "run.dir=muon", "optimizer=muon", "regularizer.dropout=0.2", "trainer.clip_norm=1"),
    (
        "train",
        "-m",
        *PLAIN,
        "model=mlp",
        "optimizer.lr=loguniform:1e-4:1",
        "search.trials=4",
        "seed=1,2",
        "sweep.dir=s",
    ),
    ("train", "-m", *PLAIN, "model=mlp", "model.width=8,16", "sweep.dir=grid"),
    ("ensemble", "s", "--out", "votes"),
    ("train", *PLAIN, "run.dir=weak", "model=mlp", "optimizer.lr=1e-4"),
    ("ensemble", "weak", "--out", "heated", "--temperature"),  # needs errors on validation
    ("ensemble", "grid", "--out", "greedy", "--greedy"),
    ("train", *PLAIN, "run.dir=student", "objective=distill", "objective.teacher=votes", "model=mlp"),
    ("predict", "cnn", "digits.npy", "--out", "predictions.csv"),
    ("predict", "votes", "digits.npy", "--out", "votes.csv"),
    ("compare", "cnn", "mlp", "s", "votes", "--csv", "compare.csv"),
    ("report", "cnn"),
    ("report", "s"),
)
# these differ between two runs of one commit
UNSTEADY = (
    "seconds",
    "per_second",
    "memory_mb",
    "ms_per_image",
    "attempts",
    "reason",
    "message",
    "expected",
)
# numbers of result.json that count; what else it holds is times, versions and texts
RESULTS = (
    "status",
    "epochs",
    "best_epoch",
    "tested_epoch",
    "val_acc",
    "val_loss",
    "test_acc",
    "test_loss",
    "parameters",
    "checks",
    "weights",
)


def produce(checkout: Path, folder: Path) -> list[int]:
    """Run all commands with the package of a checkout; returns their exit codes."""
    from sklearn.datasets import load_digits

    np.save(folder / "digits.npy", (load_digits().images[:100] * 15).astype(np.uint8))
    env = {**os.environ, "PYTHONPATH": str(checkout), "DLRUN_CACHE": str(folder / "cache")}
    codes = []
    for words in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "dlrun", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=600
        )
        codes.append(done.returncode)
        if done.returncode:
            print(f"{checkout.name}: dlrun {' '.join(words)}: exit {done.returncode}\n{done.stderr[-500:]}")
    return codes


def tensors(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a checkpoint under its path; a tensor as its bytes."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from tensors(value, f"{name}/{key}")
    elif isinstance(node, (list, tuple)):
        for place, value in enumerate(node):
            yield from tensors(value, f"{name}/{place}")
    else:
        yield name, node.numpy().tobytes() if isinstance(node, torch.Tensor) else node


def content(file: Path) -> dict[str, Any]:
    """What is compared of a file, by name; empty for kinds that hold only texts, times or pictures."""
    if file.suffix == ".pt":
        found = torch.load(file, map_location="cpu", weights_only=True)
        return {k: v for k, v in tensors(found) if k not in ("/seconds", "/version")}
    if file.suffix == ".npz":
        arrays = np.load(file, allow_pickle=False)
        return {k: (arrays[k].dtype.str, arrays[k].shape, arrays[k].tobytes()) for k in arrays}
    if file.suffix == ".csv":
        with open(file, newline="") as lines:
            rows = list(csv.DictReader(lines))
        steady = [{k: v for k, v in row.items() if not k.endswith(UNSTEADY)} for row in rows]
        return {f"row {n} {k}": v for n, row in enumerate(steady) for k, v in row.items()}
    if file.name == "result.json":
        result = json.loads(file.read_text())
        found = {k: v for k, v in result.items() if k in RESULTS or k.startswith(("raw_", "ema_", "plain_"))}
        found["verdicts"] = [one["name"] for one in result.get("verdicts", [])]
        return found | {f"data {k}": v for k, v in result.get("data", {}).items()}
    return {}


def main(old: Path, new: Path) -> int:
    """Compare two checkouts; prints one line per kind of file and every difference; returns 1 if there is any."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("old", "new")]
        codes = []
        for checkout, folder in zip((old, new), folders, strict=True):
            folder.mkdir()
            codes.append(produce(checkout, folder))
        differences = [f"exit codes {codes[0]} and {codes[1]}"] if codes[0] != codes[1] else []
        names = [{p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()} for f in folders]
        names = [{n for n in found if not n.startswith(("cache/", "outputs/"))} for found in names]
        differences += [f"{name}: only in one of them" for name in sorted(names[0] ^ names[1])]
        counts: dict[str, list[int]] = {}
        for name in sorted(names[0] & names[1]):
            before, after = (content(folder / name) for folder in folders)
            differences += [
                f"{name}: {key} differs" for key in before.keys() | after.keys() if before.get(key) != after.get(key)
            ]
            if before:
                total = counts.setdefault(
                    Path(name).suffix if name.endswith((".pt", ".npz")) else Path(name).name, [0, 0]
                )
                total[0] += 1
                total[1] += len(before)
        for kind, (files, values) in sorted(counts.items()):
            print(f"{kind}: {files} files, {values} values compared")
        print("\n".join(sorted(differences)) or "no difference")
        return bool(differences)


if __name__ == "__main__":
    here = Path(__file__).resolve().parents[2]
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else here))
