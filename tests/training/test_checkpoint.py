"""Checkpoints are written while training goes on, and no way out of a run leaves before the last one is there."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.console import Screen
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.folders.disk import write_atomic
from dlrun.folders.run import Run, ask_to_stop, claim, reopen
from dlrun.run import execute
from dlrun.training import checkpoint, loop
from dlrun.training.checkpoint import State, Writer
from dlrun.training.experiment import Experiment, build
from dlrun.training.random_state import rng_state
from support.composed import SMALL, composed
from support.tensors import tensors

SLOW = 0.3  # seconds a checkpoint takes: longer than an epoch here


def fit(folder: Path, *overrides: str) -> tuple[Run, State]:
    run, state = claim(str(folder), "test"), State()
    loop.fit(build(composed(*SMALL, *overrides)), run, state, Screen())
    return run, state


def saved(folder: Path) -> int:
    """The epoch of last.pt."""
    return int(checkpoint.load(folder / "checkpoints" / "last.pt")["epoch"])


def writing() -> bool:
    """Whether a thread that writes is alive."""
    return any(thread.name.startswith("dlrun-write") for thread in threading.enumerate())


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let each checkpoint take its time; the seconds since the start at which one was there."""
    done: list[float] = []

    def late(path: Path, data: bytes, also: Sequence[Path] = (), **more: Any) -> None:
        time.sleep(SLOW)
        write_atomic(path, data, also, **more)
        done.append(time.perf_counter())

    monkeypatch.setattr(checkpoint, "write_atomic", late)
    return done


# --- the snapshot


def test_no_two_snapshots_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: list[float]) -> None:
    real, held = checkpoint.snapshot, []

    def watched(exp: Experiment, state: State) -> dict[str, Any]:
        deadline = time.monotonic() + 0.2  # the thread may be about to let go of it
        while any(one() is not None for one in held) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not any(one() is not None for one in held)
        content = real(exp, state)
        held.extend(weakref.ref(tensor) for tensor in tensors(content["model"]))
        return content

    monkeypatch.setattr(checkpoint, "snapshot", watched)
    fit(tmp_path / "run", "trainer.epochs=4")
    assert len(held) > 4


# --- order


def test_the_next_epoch_trains_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, order = [threading.Event() for _ in range(5)], list[str]()
    train_epoch, write = loop.train_epoch, checkpoint.write

    def train(exp: Experiment, epoch: int, *more: Any) -> Any:
        row = train_epoch(exp, epoch, *more)
        trained[epoch].set()
        return row

    def late(run: Run, content: dict[str, Any], **more: Any) -> None:
        epoch = content["epoch"]
        order.append(f"begun {epoch}")
        assert epoch == 4 or trained[epoch + 1].wait(20), "training waits for the checkpoint"
        write(run, content, **more)
        order.append(f"written {saved(run.path)}")

    monkeypatch.setattr(loop, "train_epoch", train)
    monkeypatch.setattr(checkpoint, "write", late)
    fit(tmp_path / "run", "trainer.epochs=4")
    assert order == [f"{word} {epoch}" for epoch in range(1, 5) for word in ("begun", "written")]


def test_a_row_is_there_before_its_checkpoint_and_result_json_says_so_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "run", []

    def write(path: Path, data: bytes, also: Sequence[Path] = (), **more: Any) -> None:
        told = reading.stored(folder).get("epochs", 0)
        rows = [{row["epoch"] for row in table(folder)} for table in (reading.metrics, reading.layers)]
        write_atomic(path, data, also, **more)
        seen.append((told, len(rows[0]), len(rows[1])))

    monkeypatch.setattr(checkpoint, "write_atomic", write)
    monkeypatch.setattr(Run, "progress", Run.update_result)  # each time, not twice a second
    fit(folder, "trainer.epochs=3")
    assert seen == [(0, 1, 1), (1, 2, 2), (2, 3, 3)]
    assert reading.stored(folder)["epochs"] == 3


def test_a_logger_hears_of_no_epoch_that_a_kill_may_undo(tmp_path: Path, slow: list[float]) -> None:
    folder, heard = tmp_path / "run", []

    class Follower:
        listens = True

        def follow(self, rows: Sequence[Any]) -> None:
            heard.append((len(rows), saved(folder)))

    run = claim(str(folder), "test")
    loop.fit(build(composed(*SMALL, "trainer.epochs=3")), run, State(), Screen(), Follower())  # type: ignore[arg-type]
    assert heard == [(1, 1), (2, 2), (3, 3)]


# --- every way out waits


def stop(folder: Path) -> None:
    ask_to_stop(folder, "not among the best")


def interrupt(_: Path) -> None:
    signal.raise_signal(signal.SIGINT)


def terminate(_: Path) -> None:
    signal.raise_signal(signal.SIGTERM)


def fail(_: Path) -> None:
    raise RuntimeError("shapes do not fit")


def diverge(_: Path) -> None:
    raise loop.Diverged("the loss is nan")


def leave(_: Path) -> None:
    raise SystemExit


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "way", "status", "epoch"),
    [
        (("trainer.epochs=3",), None, "completed", 3),
        (("trainer.epochs=9", "trainer.stop_after=3"), None, "paused", 3),
        (("trainer.epochs=9", "trainer.patience=2", "optimizer=sgd", "optimizer.lr=0.0"), None, "completed", 3),
        (("trainer.epochs=9",), stop, "pruned", 3),
        (("trainer.epochs=9",), interrupt, "interrupted", 2),
        (("trainer.epochs=9",), terminate, "interrupted", 2),
        (("trainer.epochs=9",), fail, "failed", 2),
        (("trainer.epochs=9",), diverge, "diverged", 2),
        (("trainer.epochs=9",), leave, "running", 2),
    ],
)
def test_a_run_that_ends_has_waited_for_its_last_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    slow: list[float],
    words: tuple[str, ...],
    way: Callable[[Path], None] | None,
    status: str,
    epoch: int,
) -> None:
    folder, real, record = tmp_path / "run", loop.train_epoch, execute._record
    settled: list[tuple[int, bool]] = []

    def train(exp: Experiment, number: int, *more: Any) -> Any:
        if number == 3 and way is not None:
            way(folder)
        return real(exp, number, *more)

    def recorded(run: Run, ending: dict[str, Any]) -> None:
        settled.append((saved(folder), writing()))
        record(run, ending)

    monkeypatch.setattr(loop, "train_epoch", train)
    monkeypatch.setattr(execute, "_record", recorded)
    cfg = composed(*SMALL, "model.norm=none", *words)
    if way is leave:
        with pytest.raises(SystemExit):
            execute.execute(cfg, claim(str(folder), "test"))
    else:
        execute.execute(cfg, claim(str(folder), "test"))
        assert settled == [(epoch, False)]
    assert reading.stored(folder)["status"] == status
    assert (saved(folder), len(slow), writing()) == (epoch, epoch, False)
    assert len(reading.metrics(folder)) == epoch


def test_the_impatient_wait_too() -> None:
    done = []

    def work() -> None:
        for _ in range(3):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        done.append(True)

    with pytest.raises(KeyboardInterrupt), Writer() as writer:
        writer.begin(work)
    assert done
    assert not writing()


def test_a_process_that_ends_without_a_word_still_writes(tmp_path: Path) -> None:
    text = (
        "import sys, time\nfrom pathlib import Path\nfrom dlrun.training.checkpoint import Writer\n"
        "def work():\n    time.sleep(0.5)\n    Path(sys.argv[1]).write_text('all of it')\n"
        "Writer().begin(work)\n"
    )
    subprocess.run([sys.executable, "-c", text, str(tmp_path / "file")], check=True, timeout=60)
    assert (tmp_path / "file").read_text() == "all of it"


# --- errors


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_a_full_disk_is_told_at_the_next_epoch_or_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    folder, real = tmp_path / "run", os.fsync

    def full(handle: int) -> None:
        if len(reading.metrics(folder)) >= bad and writing():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    cfg = composed(*SMALL, "trainer.epochs=3", "trainer.keep=all")
    with pytest.raises(UserError, match=os.strerror(errno.ENOSPC)) as caught:
        execute.execute(cfg, claim(str(folder), "test"))
    assert caught.value.code == 1
    assert "\n" not in str(caught.value)
    assert reading.stored(folder)["status"] == "failed"
    assert len(reading.metrics(folder)) == bad  # what came after a lost checkpoint is not told
    names = [path.name[:10] for path in (folder / "checkpoints").glob("epoch_*.pt")]
    assert sorted(names) == [f"epoch_{epoch:04d}" for epoch in range(1, bad)]
    assert not writing()
    assert not list(folder.rglob("*.tmp"))

    monkeypatch.undo()
    assert execute.execute(cfg, reopen(str(folder)), resuming=True) == 0
    assert [row["epoch"] for row in reading.metrics(folder)] == ["1", "2", "3"]
    assert saved(folder) == 3


def test_an_error_of_the_disk_is_told_rather_than_what_came_after_it() -> None:
    def work() -> None:
        raise UserError("disk full", 1)

    writer = Writer()

    def interrupted() -> None:
        with writer:
            writer.begin(work)
            raise KeyboardInterrupt

    with pytest.raises(UserError, match="disk full"):
        interrupted()
    writer.wait()  # and it is told once


# --- the same bits


def test_what_is_written_beside_training_changes_no_bit_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("rich.style")  # draws a number; a command imports it before it seeds
    words = ("trainer.epochs=3", "regularizer=dropout", "trainer.keep=all", "optimizer=sgd")
    beside, _ = fit(tmp_path / "beside", *words)
    monkeypatch.setattr(Writer, "begin", lambda self, work: work())
    before, _ = fit(tmp_path / "before", *words)
    names = sorted(path.name for path in beside.checkpoints.iterdir())
    assert names == sorted(path.name for path in before.checkpoints.iterdir())
    assert len(names) == 5
    for name in names:
        ours, theirs = (checkpoint.load(run.checkpoints / name) for run in (beside, before))
        assert ours.keys() == theirs.keys()
        assert [ours[k] for k in ("epoch", "step", "best")] == [theirs[k] for k in ("epoch", "step", "best")]
        assert ours["rng"]["python"][1].equal(theirs["rng"]["python"][1])
        pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_run_on_the_processor_leaves_cards_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def claimed() -> list[torch.Tensor]:
        raise AssertionError("asked for the random state of a card that nobody uses")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", claimed)
    assert rng_state()["cuda"] == []
