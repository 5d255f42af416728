"""The claims of the essays with what was seen, as Markdown for README.md: claims_page.py LOG ...

    python tests/benchmarks/claims_page.py studies.jsonl claims.jsonl pseudo_label.jsonl pretraining.jsonl

LOGs are those of bench_studies.py, bench_claims.py, bench_pseudo_label.py and bench_pretraining.py; of each what it has
so far is used. A study is judged again by the rules that it recorded if its sweep is still beside its log.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from dlrun.analysis.claims import AGREES, DOES_NOT, UNDECIDED
from dlrun.analysis.spread import margin

CONTROLS = ("labelled alone", "scratch")  # of the logs with a score per setting and seed
ONE, SHOWN = "setting", ("labels", "images", "test", "size", "epochs", "tune")


def of_study(line: dict[str, Any], log: Path) -> list[tuple[str, str, str, str]]:
    """One row per rule of a study: where, what was seen, the outcome."""
    from bench_studies import judged

    out = log.resolve().parent / line.get("sweep", "")
    found = judged(out) if "sweep" in line and out.is_dir() else line
    sweep = f"`dlrun study {line['study']}`, {line['data']}, {line['seconds'] / 60:.0f} min"
    made = []
    for rule in found["rules"]:
        seen, _, rest = rule["said"].partition("; claimed: ")
        claimed, bracket, noise = rest.partition(" (")
        made.append((sweep, seen + bracket + noise, claimed or rule["kind"], rule["outcome"]))
    return made


def of_settings(lines: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """One row per setting that should gain over its control: whether it does beyond the noise of the seeds."""
    scores: dict[str, list[float]] = {}
    for line in lines:
        scores.setdefault(line[ONE], []).append(line["test_acc"])
    control = next((name for name in CONTROLS if name in scores), None)
    if control is None:
        return []
    sizes = ", ".join(f"{key} {lines[0][key]}" for key in SHOWN if lines[0].get(key))
    made = []
    for name in [name for name in scores if name != control]:
        gain = fmean(scores[name]) - fmean(scores[control])
        noise = margin((scores[name], scores[control]), len(scores[name]), len(scores[control]))
        outcome = UNDECIDED if not abs(gain) > noise else AGREES if gain > 0 else DOES_NOT
        seen = f"test_acc of {name} is {fmean(scores[name]):.4f}, of {control} {fmean(scores[control]):.4f}"
        made.append((sizes, f"{seen} (noise {noise:.2g}, {len(scores[name])} seeds)", "better", outcome))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+")
    rows: list[tuple[str, str, str, str]] = []
    for log in parser.parse_args().logs:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        rows += [row for line in lines if "study" in line for row in of_study(line, log)]
        for line in [line for line in lines if "piece" in line]:
            about = f"`bench_claims.py {line['piece']}`, {line['data']}, {line['seconds'] / 60:.0f} min"
            rows += [(about, one["seen"], one["claimed"], one["outcome"]) for one in line["claims"]]
        groups: dict[str, list[dict[str, Any]]] = {}
        for line in [line for line in lines if ONE in line]:
            groups.setdefault(str([line.get(key) for key in SHOWN]), []).append(line)
        rows += [row for group in groups.values() for row in of_settings(group)]
    print("| measured by | seen | claimed | outcome |", "|---|---|---|---|", sep="\n")
    for row in rows:
        print("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in row) + " |")
    counts = [f"{sum(row[3] == outcome for row in rows)} {outcome}" for outcome in (AGREES, DOES_NOT, UNDECIDED)]
    print(f"\n{len(rows)} claims: {', '.join(counts)}.")


if __name__ == "__main__":
    main()
