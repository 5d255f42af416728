"""Run folders are found and read without their lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrun.errors import UserError
from dlrun.folders import reading
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


def test_predictions_hold_no_pickles(here: Path) -> None:
    import numpy as np

    run = claim("run", "")
    run.write_predictions({"val_ids": np.array(["a", "b"]), "val_logits": np.eye(2)})
    with np.load(run.path / "predictions.npz", allow_pickle=False) as found:
        assert sorted(found) == ["val_ids", "val_logits"]
    run.release()
