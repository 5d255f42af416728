"""Run folders are found and read without their lock."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dlrun.errors import UserError
from dlrun.folders import ensemble, reading
from dlrun.folders.opener import Unreadable
from dlrun.folders.plain import json_of
from dlrun.folders.run import claim
from support.stored import write, write_run


def test_find_goes_through_mixed_trees(here: Path) -> None:
    for name in ("runs/b", "runs/a", "sweeps/s/0001", "sweeps/s/0000"):
        write_run(here / "outputs" / name)
    write_run(here / "outputs/runs/a/checkpoints/not_a_run_of_its_own")
    write_run(here / "outputs/.receipts/x")
    write(here / "outputs/sweeps/s/table.csv", "")
    (here / "outputs/latest").symlink_to("runs/b")
    (here / "outputs/loop").symlink_to("..")
    names = ["runs/a", "runs/b", "sweeps/s/0000", "sweeps/s/0001"]
    assert reading.find(["outputs"]) == [Path("outputs") / n for n in names]
    assert reading.find(["outputs/latest"]) == [Path("outputs/runs/b")]
    assert reading.find(["outputs/latest", "outputs/runs", "outputs/runs/a"]) == [
        Path("outputs/runs/b"), Path("outputs/runs/a")
    ]  # fmt: skip
    with pytest.raises(UserError, match="nowhere: no such folder"):
        reading.find(["outputs", "nowhere"])


def test_a_folder_that_cannot_be_read_is_an_error_or_a_reason(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b/c", "d"):
        write_run(here / "outputs" / name, status="completed")
    scan = os.scandir

    def locked(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match="outputs/b"):
        reading.find(["outputs"])
    reasons: dict[str, str] = {}
    assert reading.find(["outputs"], reasons) == [Path("outputs/a"), Path("outputs/d")]
    assert list(reasons) == ["outputs/b"]


def test_ensembles_are_found_once_and_not_inside_of_runs(here: Path) -> None:
    for name in ("x/e", "x/run/e"):
        (here / name).mkdir(parents=True)
        ensemble.write(here / name, {"members": [{"run": "r"}]}, {}, {}, {})
    write_run(here / "x/run", status="completed")
    assert ensemble.find(["x", "x/e"]) == [Path("x/e")]


def test_predictions_hold_no_pickles(here: Path) -> None:
    import numpy as np

    run = claim("run", "")
    run.write_predictions({"val_ids": np.array(["a", "b"]), "val_logits": np.eye(2)})
    with np.load(run.path / "predictions.npz", allow_pickle=False) as found:
        assert sorted(found) == ["val_ids", "val_logits"]
    run.release()


def test_json_of_millions_of_digits_is_read_in_seconds(here: Path) -> None:
    numbers = b",".join([b"0." + b"1" * 25] * 200_000)  # 5.6 MB; looking back from each one would take a minute
    started = time.perf_counter()
    assert len(json_of(b"[%s]" % numbers, here)) == 200_000
    assert time.perf_counter() - started < 10
    for long in (b"1" * 20, b"0.%s,%s" % (b"1" * 25, b"1" * 20)):
        with pytest.raises(Unreadable, match="an integer of 20 digits"):
            json_of(b"[%s]" % long, here)
