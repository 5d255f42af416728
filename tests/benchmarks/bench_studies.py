"""What the studies find on images, and how long each takes: bench_studies.py FOLDER LOG [NAME ...] [--limit N].

    python tests/benchmarks/bench_studies.py data/cifar10 studies.jsonl      FOLDER has train/<class>/ and test/<class>/

Every study of conf/study on 4,000 images of 32 pixels, a quarter of them for validation, sized for less than 20 minutes
each on two cores. LOG gets one line of JSON per study: its outcome, each rule with its sentence, and seconds. A study
that is in LOG already is skipped, so that a benchmark that was interrupted continues. Its sweeps stay in LOG's folder,
in studies-<images>-<limit>/, and are resumed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from dlrun.analysis import claims, study, sweeps
from dlrun.config import studies

SIZE = ("dataset=image_folder", "dataset.image_size=32", "dataset.val_fraction=0.25", "trainer.diagnostics=false")
# a study that sets the number of images itself, and one whose networks take longer
OWN, SLOW = ("subset_size",), ("depth_skips",)


def known(log: Path, folder: str) -> set[str]:
    """The studies of this folder that a log has."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return {found["study"] for line in lines if (found := json.loads(line))["data"] == folder}


def measure(name: str, folder: Path, limit: int, out: Path) -> dict[str, object]:
    """Run or resume a study; returns its line of the log."""
    images = () if name in OWN else (f"dataset.limit={limit // 2 if name in SLOW else limit}",)
    words = ["study", name, f"dataset.root={folder}", *SIZE, *images, f"sweep.dir={out}"]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "dlrun", *words], capture_output=True, text=True)
    if done.returncode not in (0, 5):  # a rate that is too high may diverge: that is a row
        sys.exit(done.stdout + done.stderr)
    found = study.read(out, sweeps.read(out))
    assert found is not None, out
    rules = [{"kind": j.rule["kind"], "outcome": j.outcome, "said": j.said} for j in found.judged]
    seconds = round(time.monotonic() - began, 1)
    table = study.rows(found)
    return {"study": name, "data": folder.name, "outcome": claims.overall(found.judged), "rules": rules,
            "rows": table, "limit": limit, "seconds": seconds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--limit", type=int, default=4000)
    args = parser.parse_args()
    folder = args.folder.resolve()
    done = known(args.log, folder.name)
    for name in args.names or sorted(studies.listed()):
        if name in done:
            continue
        out = args.log.parent / f"studies-{folder.name}-{args.limit}" / name
        line = measure(name, folder, args.limit, out)
        with args.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: {line['outcome']}, {line['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
