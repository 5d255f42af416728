"""A finished run is trained for more epochs: the end of before is kept, and the schedule is explained (O8)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlrun.folders import reading
from dlrun.folders.run import claim
from dlrun.inference.predictor import load
from dlrun.run.execute import execute
from dlrun.training import checkpoint
from support.commands import Outcome
from support.composed import composed

SMALL = (
    "dataset.limit=60", "model.width=2", "trainer.batch_size=20", "trainer.threads=1", "check=none",
    "trainer.report=false", "trainer.diagnostics=false", "model.norm=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, words in {
        "constant": ("scheduler=constant", "trainer.epochs=2"),
        "longer": ("scheduler=constant", "trainer.epochs=3"),
        "cycle": ("scheduler=one_cycle", "trainer.epochs=2"),
        "early": ("scheduler=constant", "trainer.epochs=9", "trainer.patience=1", "optimizer.lr=1e-9"),
    }.items():
        assert execute(composed(*SMALL, *words), claim(str(folder / name), ""), quiet=True) == 0
    return folder


@pytest.fixture
def copied(runs: Path, here: Path) -> Path:
    shutil.copytree(runs, here / "runs")
    return here / "runs"


def test_with_a_constant_rate_it_is_the_longer_run_bit_for_bit(copied: Path, dlrun: Callable[..., Outcome]) -> None:
    before = {path.name: path.read_bytes() for path in (copied / "constant").iterdir() if path.is_file()}
    best = (copied / "constant/checkpoints/best.pt").read_bytes()
    done = dlrun("resume", "runs/constant", "trainer.epochs=3")
    assert done.code == 0, done.err
    assert "scheduler=constant" in done.out
    ours, theirs = (checkpoint.load(copied / name / "checkpoints/last.pt")["model"] for name in ("constant", "longer"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    result = reading.stored(copied / "constant")
    assert (result["status"], result["epochs"], result["config"]["trainer"]["epochs"]) == ("completed", 3, 3)
    assert result["extended"] == [{"epochs": 2, "folder": "earlier/epochs_0002"}]
    kept = copied / "constant/earlier/epochs_0002"
    for name, content in before.items():
        if not name.startswith("."):
            assert (kept / name).read_bytes() == content, name
    assert (kept / "checkpoints/best.pt").read_bytes() == best
    assert load(kept, [], "cpu").classes == result["data"]["classes"]  # a run of its own
    assert [row["epoch"] for row in reading.metrics(copied / "constant")] == ["1", "2", "3"]
    assert dlrun("rm", "--yes", str(copied / "constant")).code == 0
    assert not (copied / "constant").exists()


def test_a_schedule_that_follows_the_epochs_is_computed_anew(copied: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("resume", "runs/cycle", "trainer.epochs=8")
    assert done.code == 0, done.err
    stored = reading.config(copied / "cycle")
    assert stored["scheduler"]["epochs"] == stored["trainer"]["epochs"] == 8
    rates = [float(row["lr"]) for row in reading.metrics(copied / "cycle")]
    assert rates[2] > 5 * rates[1] > rates[1] > rates[-1]
    assert done.out.index("scheduler=one_cycle") < done.out.index("epoch 3/8")
    assert dlrun("resume", "runs/cycle").code == 0  # complete again
    assert dlrun("resume", "runs/cycle", "trainer.epochs=9").code == 0
    assert len(reading.stored(copied / "cycle")["extended"]) == 2


def test_an_extension_that_is_interrupted_continues(copied: Path, dlrun: Callable[..., Outcome]) -> None:
    from dlrun.folders.run import reopen
    from dlrun.run.extending import extended

    run = reopen(str(copied / "constant"))
    extended(run, reading.config(run.path), ["trainer.epochs=3"])
    run.release()  # killed before its first new epoch
    result = reading.stored(run.path)
    assert result["status"] == "interrupted"
    assert not any(key.startswith(("val_", "test_")) for key in result)
    assert dlrun("resume", "runs/constant").code == 0
    ours, theirs = (checkpoint.load(copied / name / "checkpoints/last.pt")["model"] for name in ("constant", "longer"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("run", "words", "named"),
    [
        ("constant", ("trainer.epochs=2",), "trainer.epochs"),
        ("constant", ("trainer.epochs=many",), "trainer.epochs=many"),
        ("constant", ("optimizer.lr=1",), "optimizer.lr=1"),
        ("early", ("trainer.epochs=20",), "trainer.patience=0"),
    ],
)
def test_what_cannot_be_extended_is_refused_and_unchanged(
    runs: Path, dlrun: Callable[..., Outcome], run: str, words: tuple[str, ...], named: str
) -> None:
    before = (runs / run / "result.json").read_bytes()
    done = dlrun("resume", str(runs / run), *words)
    assert (done.code, named in done.err) == (2, True), done.err
    assert (runs / run / "result.json").read_bytes() == before
    assert not (runs / run / "earlier").exists()


def test_a_run_that_stopped_early_needs_its_patience_changed(copied: Path, dlrun: Callable[..., Outcome]) -> None:
    done = reading.stored(copied / "early")["epochs"]
    assert done < 9
    assert dlrun("resume", "runs/early", f"trainer.epochs={done + 1}", "trainer.patience=0").code == 0
    assert reading.stored(copied / "early")["epochs"] == done + 1
