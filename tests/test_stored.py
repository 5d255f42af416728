"""Runs, a sweep and an ensemble stored by an older version resume, predict, compare and report.

tests/stored/before_packages.tar.xz was written by version 0.1.0 when its modules were flat files: on digits, 300
images, an mlp of width 8, fp32 on one thread. `run` is paused after epoch 3 of 6, `finished` is complete, `sweep` has
four trials, `killed` is a sweep of three trials that was killed during the second, `ensemble` has the votes of `sweep`.
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.commands import Outcome

# what the version that wrote the folders made of them when it resumed them itself: val_acc, test_acc and their losses
RESUMED = {
    "run": (4 / 30, 0.20891364902506965, 2.289482593536377, 2.2158408164978027),
    "killed/0000": (26 / 30, 0.8245125348189415, 0.6154348850250244, 0.7475966215133667),
    "killed/0001": (26 / 30, 0.8328690807799443, 0.6429039239883423, 0.7100580334663391),
    "killed/0002": (28 / 30, 0.8774373259052924, 0.6941803693771362, 0.7351025938987732),
}


@pytest.fixture
def stored(here: Path) -> Path:
    """The stored folders, unpacked where the commands run."""
    with tarfile.open(Path(__file__).parent / "stored" / "before_packages.tar.xz") as archive:
        archive.extractall(here, filter="data")
    return here


def scores(folder: Path) -> tuple[float, ...]:
    result = json.loads((folder / "result.json").read_text())
    return tuple(result[column] for column in ("val_acc", "test_acc", "val_loss", "test_loss"))


def assert_same(found: tuple[float, ...], expected: tuple[float, ...], rel: float) -> None:
    """Another processor rounds differently: one of the 359 test images may change, none of the 30 of validation."""
    assert found[0] == pytest.approx(expected[0])
    assert found[1] == pytest.approx(expected[1], abs=1.01 / 359)
    assert found[2:] == pytest.approx(expected[2:], rel=rel)


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_paused_run_resumes_to_what_it_would_have_come_to(stored: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("resume", "run")
    assert done.code == 0, done.err
    assert_same(scores(stored / "run"), RESUMED["run"], 1e-4)
    assert [row["epoch"] for row in rows(stored / "run/metrics.csv")] == list("123456")


@pytest.mark.slow
def test_a_killed_sweep_runs_what_is_missing(stored: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("resume", "killed")
    assert done.code == 0, done.err
    for name in ("killed/0000", "killed/0001", "killed/0002"):
        assert_same(scores(stored / name), RESUMED[name], 1e-3)
    assert [row["status"] for row in rows(stored / "killed/table.csv")] == ["completed"] * 3


def test_compare_shows_all_of_them(stored: Path, dlrun: Callable[..., Outcome]) -> None:
    found = {Path(row["run"]).as_posix(): row for row in json.loads(dlrun("compare", ".", "--json").out)}
    states = {name: row["status"] for name, row in found.items()}
    assert states.pop("run") == "paused"
    assert states.pop("killed/0001") == "interrupted"
    assert set(states.values()) == {"completed"}
    assert set(states) >= {
        "finished",
        "killed/0000",
        "sweep/0000",
        "sweep/0001",
        "sweep/0002",
        "sweep/0003",
        "ensemble",
    }
    best = max((row for row in found.values() if row["run"].startswith("sweep/")), key=lambda row: row["val_acc"])
    assert (best["run"], best["optimizer.lr"]) == ("sweep/0000", 0.01)


@pytest.mark.parametrize("name", ["finished", "sweep"])
def test_report_draws_a_page(stored: Path, dlrun: Callable[..., Outcome], name: str) -> None:
    done = dlrun("report", name)
    assert done.code == 0, done.err
    best = {"finished": "0.1253", "sweep": "0.400 ("}[name]  # test and validation accuracy
    assert best in (stored / name / "report.html").read_text()
    assert (stored / name / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["finished", "sweep/0002", "ensemble"])
def test_predict_gives_the_stored_classes(stored: Path, dlrun: Callable[..., Outcome], name: str) -> None:
    from sklearn.datasets import load_digits

    pixels = (load_digits().images * 15).astype(np.uint8)  # as dlrun.data.datasets.digits stores them
    with np.load(stored / name / "predictions.npz", allow_pickle=False) as found:
        arrays = dict(found)
    index = [int(str(one).rpartition("/")[2]) for one in arrays["test_ids"][:50]]
    np.save(stored / "digits.npy", pixels[index])
    done = dlrun("predict", name, "digits.npy", "--out", "out.csv")
    assert done.code == 0, done.err
    expected = arrays["test_logits"][:50].argmax(1).tolist()
    assert [int(row["class"]) for row in rows(stored / "out.csv")] == expected


def test_a_new_ensemble_of_the_old_sweep_has_its_old_scores(stored: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("ensemble", "sweep", "--out", "again")
    assert done.code == 0, done.err
    old, new = (
        {row["vote"]: (row["val_acc"], row["test_acc"]) for row in rows(stored / name / "table.csv")}
        for name in ("ensemble", "again")
    )
    assert old == new
