"""What one run leaves behind, whatever happens to it: status, reason, exit code, files (real folders, real signals)."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.run import claim
from dlrun.run import execute
from dlrun.training import checkpoint
from support import warm
from support.commands import TINY, Outcome
from support.composed import SMALL, composed

# logits of thousands before the first step
UNSOUND = (
    "check=default",
    "check.only=[initial_loss]",
    "model.init=glorot_sigmoid",
    "model.norm=none",
    "model.depth=12",
)


TIMED = {"train_seconds", "eval_seconds", "samples_per_second", "memory_mb"}


def ran(folder: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    cfg = composed(*SMALL, *overrides)
    code = execute.execute(cfg, claim(str(folder), "test"))
    return code, reading.result(folder)


def test_a_run_folder_holds_what_the_design_promises(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, result = ran(folder, "check=default", "check.only=[initial_loss]")
    assert code == 0
    assert result["status"] == "completed"
    assert result["epochs"] == 2
    for key in (
        "best_epoch",
        "val_loss",
        "val_acc",
        "test_loss",
        "test_acc",
        "seconds",
        "seed",
        "versions",
        "host",
    ):
        assert key in result, key
    assert result["config"]["trainer"]["epochs"] == 2
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["epoch"] for r in rows] == ["1", "2"]
    assert all(v != "" for r in rows for v in r.values())
    with open(folder / "checks.csv", newline="") as file:
        checks = list(csv.DictReader(file))
    assert list(checks[0]) == ["check", "status", "value", "expected", "message", "seconds"]
    assert [c["check"] for c in checks] == ["initial_loss"]
    stored = np.load(folder / "predictions.npz")
    for split, count in (("val", result["data"]["val"]), ("test", result["test_samples"])):
        assert stored[f"{split}_logits"].shape == (count, 10)
        accuracy = (stored[f"{split}_logits"].argmax(1) == stored[f"{split}_labels"]).mean()
        assert accuracy == pytest.approx(result[f"{split}_acc"])
        assert len(set(stored[f"{split}_ids"])) == count
    assert "test accuracy" in (folder / "log.txt").read_text()


def test_scores_come_from_the_best_epoch_not_from_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _, result = ran(folder, "trainer.epochs=8", "optimizer=sgd", "optimizer.lr=0.5", "scheduler=constant")
    best = checkpoint.load(folder / "checkpoints" / "best.pt")
    assert result["best_epoch"] == best["epoch"]
    rows = {int(r["epoch"]): r for r in reading.metrics(folder)}
    assert result["val_acc"] == pytest.approx(float(rows[result["best_epoch"]]["val_acc"]))
    assert result["val_loss"] == pytest.approx(float(rows[result["best_epoch"]]["val_loss"]), rel=1e-4)


def test_the_test_split_is_not_read_before_training_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.data import Data
    from dlrun.training import loop

    order: list[str] = []
    monkeypatch.setattr(loop, "train_epoch", _recorded(loop.train_epoch, "train", order))
    real = Data.__getattribute__

    def watched(self: Data, name: str) -> Any:
        if name == "test":
            order.append("test")
        return real(self, name)

    monkeypatch.setattr(Data, "__getattribute__", watched)
    ran(tmp_path / "run")
    assert order[:3] == ["train", "train", "test"]


def _recorded(function: Any, word: str, order: list[str]) -> Any:
    def call(*args: Any) -> Any:
        order.append(word)
        return function(*args)

    return call


def test_divergence_is_exit_4_with_where_rate_and_what_to_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = ran(tmp_path / "run", "optimizer=sgd", "optimizer.lr=1e30", "model.norm=none")
    assert (code, result["status"]) == (4, "diverged")
    for word in ("epoch 1, step", "lr ", "optimizer.lr="):
        assert word in result["reason"]
    assert "Traceback" not in capsys.readouterr().out
    for path in (tmp_path / "run" / "checkpoints").glob("*.pt"):
        weights = checkpoint.load(path)["model"].values()
        assert all(w.isfinite().all() for w in weights if w.is_floating_point())


def test_a_failed_check_is_exit_3_and_nothing_is_trained(tmp_path: Path) -> None:
    code, result = ran(tmp_path / "run", *UNSOUND)
    assert (code, result["status"]) == (3, "check_failed")
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_warn_only_trains_on_and_marks_the_run(tmp_path: Path) -> None:
    code, result = ran(tmp_path / "run", *UNSOUND, "check.warn_only=true")
    assert result["checks"] == "fail"
    assert code in (0, 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_exit_130_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    words = [*SMALL, "trainer.epochs=5000", "run.dir=my run"]
    child = warm.popen([sys.executable, "-m", "dlrun", "train", *words], cwd=tmp_path, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "my run" / "checkpoints" / "last.pt").exists():
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(number)
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "`dlrun resume 'my run'`" in out
    assert "Traceback" not in out
    assert reading.result(tmp_path / "my run")["status"] == "interrupted"
    assert checkpoint.load(tmp_path / "my run" / "checkpoints" / "last.pt")["epoch"] >= 1


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 14:  # after the first epoch
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=os.strerror(errno.ENOSPC)) as caught:
        ran(tmp_path / "run", "trainer.epochs=50")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["epoch"] >= 1
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_an_error_of_the_users_model_is_a_line_and_the_log_has_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "brittle.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.layer = nn.Linear(1, 1)\n"
        "    def forward(self, x):\n"
        "        raise RuntimeError('shapes do not fit')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = composed("dataset.limit=100", "check=none", "model=custom", "model._target_=brittle.Net", "trust=[brittle]")
    code = execute.execute(cfg, claim(str(tmp_path / "my run"), "test"))
    assert code == 1
    said = capsys.readouterr().out
    assert "not fit" in said
    assert f"`dlrun resume '{tmp_path / 'my run'}'`" in said
    assert "Traceback" not in said
    assert "Traceback" in (tmp_path / "my run" / "log.txt").read_text()
    assert json.loads((tmp_path / "my run" / "result.json").read_text())["status"] == "failed"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ran(tmp_path / name, f"seed={seed}", "regularizer=dropout", "augment=crop_flip")
        found.append(checkpoint.load(tmp_path / name / "checkpoints" / "last.pt")["model"])
    a, b, c = found
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not all(np.array_equal(a[k], c[k]) for k in a)


@pytest.mark.slow
def test_checks_leave_no_trace_in_a_run(tmp_path: Path) -> None:
    found = []
    for name, check in (("with", "check=default"), ("without", "check=none")):
        ran(tmp_path / name, check, "regularizer=dropout", *(["check.fresh=true"] if name == "with" else []))
        content = checkpoint.load(tmp_path / name / "checkpoints" / "last.pt")
        rows = [{k: v for k, v in row.items() if k not in TIMED} for row in reading.metrics(tmp_path / name)]
        state = {f"{i}.{k}": v for i, one in content["optimizer"]["state"].items() for k, v in one.items()}
        found.append({**content["model"], **state, "rng": content["rng"]["torch"], "rows": rows})
    assert "0.exp_avg_sq" in found[0]
    assert all(np.array_equal(found[0][k], found[1][k]) for k in {**found[0], **found[1]})


def test_a_run_that_stops_early_says_what_was_not_beaten(here: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("train", *TINY, "trainer.epochs=9", "trainer.patience=1", "optimizer.lr=0", "run.dir=r")
    assert done.code == 0, done.err
    stored = json.loads(Path("r/result.json").read_text())
    best, right = stored["best_epoch"], round(10 * stored["val_acc"])
    assert stored["epochs"] == best + 1
    assert f" ({right} of 10) of epoch {best} for 1 epoch" in stored["reason"]
    assert stored["reason"] in done.out
