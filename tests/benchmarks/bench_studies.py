"""What the studies find on images, and how long each takes: bench_studies.py FOLDER [NAME ...] --log LOG [--limit N].

    python tests/benchmarks/bench_studies.py data/cifar10 --log studies.jsonl
    python tests/benchmarks/bench_studies.py data/cifar10 --log tiny.jsonl --limit 200

FOLDER has train/<class>/ and test/<class>/ images. Every study of conf/study on 2,000 images of 32 pixels, a quarter of
them for validation, sized for less than 20 minutes each on two cores. LOG gets one line of JSON per study: its outcome,
each rule with its sentence, and seconds. A study that is in LOG already is skipped, and one that was interrupted is
resumed: its sweep is beside LOG, in studies-<folder>-<limit>/. `claims_page.py LOG` prints what was seen as a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dlrun.analysis import claims, study, sweeps
from dlrun.config import studies

SIZE = ("dataset=image_folder", "dataset.image_size=32", "dataset.val_fraction=0.25", "trainer.diagnostics=false")
# a study that sets the number of images itself, and those of which a run takes longer
OWN, SLOW = ("subset_size",), ("depth_skips", "kernel_width")


def known(log: Path, folder: str, limit: int) -> set[str]:
    """The studies of this folder and size that a log has."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return {line["study"] for line in lines if (line["data"], line["limit"]) == (folder, limit)}


def judged(out: Path) -> dict[str, Any]:
    """What the study of a sweep found: its outcome, its rules with their sentences, its table."""
    found = study.read(out, sweeps.read(out))
    if not isinstance(found, study.Found):
        sys.exit(found or f"{out} has no study")
    rules = [{"kind": j.rule["kind"], "outcome": j.outcome, "said": j.said} for j in found.judged]
    return {"outcome": claims.overall(found.judged), "rules": rules, "rows": study.rows(found)}


def measure(name: str, folder: Path, limit: int, out: Path) -> float:
    """Run a study, or continue it; returns the seconds of this call."""
    images = () if name in OWN else (f"dataset.limit={limit // 2 if name in SLOW else limit}",)
    if name in OWN and limit < 1600:  # a trial of the benchmark itself
        images = (f"dataset.limit={','.join(str(limit * part // 8) for part in (1, 2, 4, 8))}",)
    words = ["study", name, f"dataset.root={folder}", *SIZE, *images, f"sweep.dir={out}"]
    command = ["resume", str(out)] if (out / "sweep.yaml").exists() else words
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "dlrun", *command], capture_output=True, text=True)
    if done.returncode not in (0, 4, 5):  # a rate that is too high may diverge: that is a row
        sys.exit(done.stdout + done.stderr)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--log", type=Path, default=Path("studies.jsonl"))
    parser.add_argument("--limit", type=int, default=2000)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if unknown := set(args.names) - set(studies.listed()):
        parser.error(
            f"no study is called {', '.join(sorted(unknown))}; there are {', '.join(sorted(studies.listed()))}"
        )
    done = known(args.log, folder.name, args.limit)
    for name in [n for n in args.names or sorted(studies.listed()) if n not in done]:
        place = Path(f"studies-{folder.name}-{args.limit}") / name
        out = args.log.resolve().parent / place
        seconds = round(measure(name, folder, args.limit, out), 1)
        about = {"study": name, "data": folder.name, "limit": args.limit, "seconds": seconds, "sweep": str(place)}
        line = about | judged(out)
        with args.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: {line['outcome']}, {seconds} s", flush=True)


if __name__ == "__main__":
    main()
