"""What only accompanies a run never fails it: a log, a screen that is closed or ASCII, a title, a page."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun import cli
from dlrun.errors import Surroundings
from dlrun.folders import reading
from dlrun.folders.run import Run, reopen
from dlrun.reports import figures
from dlrun.run.stopping import politely
from dlrun.vocabulary import Status
from support import warm
from support.commands import TINY, Outcome

FULL = os.strerror(errno.ENOSPC)


def test_a_log_that_cannot_be_written_is_said_once(here: Path, dlrun: Callable[..., Outcome]) -> None:
    (here / "run/log.txt").mkdir(parents=True)
    (here / "run/.owner").touch()
    done = dlrun("train", *TINY, "run.dir=run")
    assert done.code == 0, done.err
    assert (done.out + done.err).count("log.txt") == 1
    assert reading.stored(here / "run")["status"] == Status.COMPLETED


def refused(monkeypatch: pytest.MonkeyPatch, name: str, when: Callable[..., bool]) -> None:
    """Let a method of Run fail as on a full disk."""
    real = getattr(Run, name)

    def method(run: Run, *words: Any, **more: Any) -> Any:
        if when(*words, **more):
            raise Surroundings(f"{run.path}: {FULL}")
        return real(run, *words, **more)

    monkeypatch.setattr(Run, name, method)


def test_the_exit_code_is_no_success_if_the_result_is_not_on_disk(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        refused(full, "update_result", lambda **more: more.get("status") == Status.COMPLETED)
        done = dlrun("train", *TINY, "run.dir=run")
    assert done.code == 1
    assert FULL in done.err
    assert "`dlrun resume run`" in done.err
    assert dlrun("resume", "run").code == 0
    assert reading.stored(here / "run")["status"] == Status.COMPLETED


def test_a_disk_that_may_only_be_read_is_one_line(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be recorded or deleted then, and neither is a message."""
    real = Path.unlink

    def read_only(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "run":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        real(path, missing_ok)

    with monkeypatch.context() as full:
        for name in ("write_config", "update_result"):
            refused(full, name, lambda *_, **__: True)
        full.setattr(Path, "unlink", read_only)
        done = dlrun("train", *TINY, "run.dir=run")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert FULL in done.err
    assert "resume" not in done.err


def test_a_folder_whose_config_could_not_be_written_starts_again(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        refused(full, "write_config", lambda *_: True)
        assert dlrun("train", *TINY, "run.dir=run").code == 1
    (here / "run").mkdir(exist_ok=True)
    (here / "run/.owner").touch()
    (here / "run/result.json").write_text('{"version": 1, "status": "failed"}')  # as a trial leaves it
    assert dlrun("train", *TINY, "run.dir=run").code == 0


@pytest.mark.parametrize("title", ["$\\frac{$", "a$b$c", "$x$ \\undefined{"])
def test_a_title_is_drawn_as_it_is_written(title: str) -> None:
    figure = figures.canvas(2.0)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=title, yscale="log", ylim=(1e-3, 1e3), xticks=[0, 1])
    axes.set_xticklabels([title, title])
    assert figures.figure_bytes(figure).startswith(b"\x89PNG")
    assert not axes.title.get_parse_math()
    assert axes.yaxis.get_ticklabels()[0].get_parse_math()  # powers of ten stay formulas


def test_no_letter_is_an_error_of_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, text in (("ascii", "café …"), ("utf-8", os.fsdecode(b"\xff.png"))):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        cli._open_streams()
        print(text, flush=True)
        assert written.getvalue().endswith(b"\n")
        monkeypatch.undo()


CLOSED = "import os, sys\nfor n in (0, 1): os.close(n)\nsys.stdin = sys.stdout = None\nsys.argv[0] = 'dlrun'\n"


def test_a_closed_screen_ends_no_run(tmp_path: Path) -> None:
    code = f"{CLOSED}from dlrun.cli import main\nmain()"
    done = warm.call(tmp_path, "train", *TINY, "run.dir=run", code=code)
    assert (done.code, done.err) == (0, "")
    assert reading.stored(tmp_path / "run")["status"] == Status.COMPLETED
    assert all(b"test accuracy" not in file.read_bytes() for file in (tmp_path / "run/checkpoints").iterdir())


def test_a_screen_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "dlrun", "train", *TINY, "run.dir=run"]
        done = warm.popen(command, cwd=tmp_path, stdout=full.fileno(), stderr=full.fileno())
        assert done.wait(60) == 0
    assert reading.stored(tmp_path / "run")["status"] == Status.COMPLETED


def test_resume_draws_the_page_that_a_kill_prevented(here: Path, dlrun: Callable[..., Outcome]) -> None:
    words = [word for word in TINY if not word.startswith("trainer.report")]
    assert dlrun("train", *words, "trainer.report=false", "run.dir=run").code == 0
    assert "report" not in dlrun("resume", "run").out  # none was asked for
    run = reopen("run")
    config = reading.config(run.path)
    config["trainer"]["report"] = True
    run.write_config(config)
    run.release()
    done = dlrun("resume", "run")
    assert (done.code, "report.html" in done.out) == (0, True)
    assert (here / "run/report.html").is_file()
    assert "report.html" not in dlrun("resume", "run").out


def test_a_pruned_run_says_so_when_it_continues(here: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *TINY, "trainer.epochs=2", "trainer.stop_after=1", "run.dir=run").code == 0
    run = reopen("run")
    run.update_result(status=Status.PRUNED, reason="pruned after epoch 1")
    run.release()
    done = dlrun("resume", "run")
    assert done.code == 0
    assert "pruned after epoch 1" in done.out


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_of_the_surroundings_interrupts_once(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # a script in the background may ignore it
    recorded = []
    try:
        with politely():
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt:
                signal.raise_signal(number)  # while the end is being recorded
                recorded.append(number)
        assert recorded == [number]
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with politely():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_interrupts_at_once_end_a_run_without_a_traceback(tmp_path: Path) -> None:
    words = [word for word in TINY if not word.startswith("trainer.epochs")]
    command = [sys.executable, "-m", "dlrun", "train", *words, "trainer.epochs=500", "run.dir=run"]
    process = warm.popen(command, cwd=tmp_path, stdout=-1, stderr=-1)
    until = time.monotonic() + 60
    while not (tmp_path / "run/checkpoints/last.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert reading.stored(tmp_path / "run")["status"] == Status.INTERRUPTED
