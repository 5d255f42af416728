"""`dlrun suspects PATH…`: list images whose labels may be wrong (D2, D11).

Needs predictions for images that the run was not trained on. The runs of all folds cover every training image:
`dlrun train -m dataset.folds=5 dataset.fold=range:0:5 sweep.dir=folds`, then `dlrun suspects folds`. One run covers
its validation split. Nothing is changed: look at the images, and correct the labels that are wrong.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.commands.arguments import Parser, trusted
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

if TYPE_CHECKING:
    from dlrun.ensembles.members import Member

__all__ = ["main"]

SHOWN, SIDE = 96, 480  # images on the page, and pixels of their longer side
FILES = ("suspects.csv", "report.html")


def main(argv: list[str]) -> int:
    """Print how many labels are suspicious, write suspects.csv and a page with the images; returns 0."""
    argv, trust = trusted(argv)
    parser = Parser(prog="dlrun suspects", description=__doc__)
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="runs of a cross-validation, their sweep or ensemble; or a run"
    )
    parser.add_argument("--out", metavar="DIR", help="the folder to write (default: outputs/suspects/<date>-…)")
    args = parser.parse_args(argv)
    if find_spec("cleanlab") is None:
        raise UserError("dlrun suspects: the package cleanlab is not installed; type pip install 'dlrun[suspects]'")
    from dlrun.analysis import scores
    from dlrun.analysis.suspects import COLUMNS, suspects
    from dlrun.ensembles.votes import softmax
    from dlrun.folders import outputs
    from dlrun.folders.disk import write_atomic
    from dlrun.folders.formats import as_csv
    from dlrun.reports import suspects_report

    first, said = _covered(args.paths)
    arrays, classes = first.arrays, [str(name) for name in first.data["classes"]]
    p, labels, ids = softmax(arrays["val_logits"]), arrays["val_labels"], arrays["val_ids"].tolist()
    if len(set(labels.tolist())) < 2:
        raise UserError(f"{first.name}: expected validation images of two or more classes, found one class")
    rows = suspects(p, labels, ids, classes)
    said.append(f"{len(rows):,} of {len(labels):,} images may have a wrong label{_pairs(rows)}")
    print("\n".join(said))
    folder = outputs.study_folder("suspects", args.out, scores.short(first.path), FILES, "--out")
    text = as_csv(list(rows)) if rows else ",".join(COLUMNS) + "\n"
    write_atomic(folder / FILES[0], text.encode("utf-8", "surrogateescape"))
    images = _images(first.path, [str(row["id"]) for row in rows[:SHOWN]], trust) if rows else {}
    page = suspects_report.write(folder, rows, images, said)
    print(f"list: {folder / FILES[0]}, images: {page}")
    return Exit.FINE


def _covered(paths: Sequence[str]) -> tuple[Member, list[str]]:
    """A member whose validation arrays are those of all images covered, and what they cover in words."""
    from dlrun.ensembles.folds import across, joined, missing
    from dlrun.ensembles.members import agree, read

    found, skipped = read([run for path in paths for run in _runs(path)])
    said = [f"skipped: {line}" for line in skipped]
    if across(found):
        absent = missing(found)
        for fold in absent:
            said.append(f"fold {fold} has no run: its images are not covered")
        folds = found[0].data["folds"]
        said.append(f"{len(found)} runs of {folds} folds: each image by the runs that did not see it")
        members = joined(found)
        agree(members)
        return members[0], said
    agree(found)
    whole = shlex.join(["dlrun", "train", "-m", "--from", str(found[0].path)])
    words = "dataset.folds=5 dataset.fold=range:0:5 sweep.dir=folds"
    said.append(f"only the validation split is covered; to cover all training images: {whole} {words}")
    return _together(found), said


def _runs(path: str) -> list[str]:
    """The members of an ensemble; any other path alone."""
    from dlrun.folders import ensemble

    folder = Path(path).expanduser()
    if not ensemble.is_ensemble(folder):
        return [path]
    return [str(folder / str(member["run"])) for member in ensemble.read(folder)["members"]]


def _together(found: list[Member]) -> Member:
    """The mean probability of runs with one validation split, as one member."""
    from dataclasses import replace

    import numpy as np

    from dlrun.ensembles.votes import softmax

    p = np.mean([softmax(m.arrays["val_logits"]) for m in found], axis=0)
    logits = np.log(np.maximum(p, np.finfo(p.dtype).tiny))
    return replace(found[0], arrays={**found[0].arrays, "val_logits": logits})


def _pairs(rows: Sequence[Mapping[str, Any]]) -> str:
    """The most frequent pairs of given and suggested class."""
    found = Counter((row["label"], row["suggested"]) for row in rows).most_common(3)
    named = [f"{given}, perhaps {other} ({count})" for (given, other), count in found]
    return f"; most: {'; '.join(named)}" if named else ""


def _images(run: Path, ids: Sequence[str], trust: list[str]) -> dict[str, bytes]:
    """The images by id as encoded files; none, with a line on the screen, if the data of the run cannot be read."""
    from dlrun.config.targets import check_targets
    from dlrun.folders import reading
    from dlrun.run.gallery import by_id
    from dlrun.training.same_data import continued
    from dlrun.training.shared_data import read_data

    try:
        node = reading.config(run).get("dataset")
        check_targets({"dataset": node}, trust)
        data, _ = continued(run, read_data(dict(node or {}), trust), None)
    except UserError as error:
        print(f"no images on the page: {error}")
        return {}
    return by_id(data, ids, SIDE)
