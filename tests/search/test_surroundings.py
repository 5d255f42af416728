"""A sweep is not to blame for what is around it: full disks, lost processes, a damaged journal, children of a trial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlrun.folders.run import take
from dlrun.search import patience
from dlrun.search.launchers import choose, job
from dlrun.search.launchers.job import Job, work
from dlrun.search.launchers.protocol import Ended
from dlrun.vocabulary import Exit, Status
from support.commands import TINY, Outcome
from support.moods import MOODS, MOODY, QUICK, rows, start, wait_for, workers

SLOW = (*QUICK, "trainer.epochs=4", "trainer.batch_size=4", "sweep.dir=s")


class Scripted:
    """A launcher whose attempts of each trial end as a script says."""

    slots = threads = 1

    def __init__(self, script: list[Any]) -> None:
        self.script, self.jobs = script, list[Job]()

    def submit(self, one: Job) -> None:
        self.jobs.append(one)

    def waiting(self) -> str:
        return ""

    def wait(self, seconds: float) -> list[Ended]:
        end = self.script.pop(0)
        run, _ = take(Path(self.jobs[-1].folder))
        run.write_config({"seed": 1})
        done = {"status": Status.COMPLETED, "val_acc": 0.5} if end == "done" else {"status": Status.RUNNING}
        run.update_result(**done)
        run.release()
        number = self.jobs[-1].number
        return [Ended(number, 0) if end == "done" else Ended(number, *end)]

    def close(self) -> None:
        pass


LOST, FULL, OWN = (Exit.FAILED, "killed", True), (Exit.SURROUNDINGS, "disk full"), (Exit.FAILED, "its own")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("retries", "script", "code", "attempts"),
    [
        (0, [LOST, LOST, "done"], 0, "3"),
        (0, [FULL, FULL, "done"], 0, "3"),
        (1, [LOST, OWN, FULL, "done"], 0, "4"),
        (0, [LOST, LOST, LOST], 5, "3"),
        (0, [FULL, FULL, FULL], 5, "3"),
        (0, [OWN], 5, "1"),
    ],
)
def test_what_costs_a_retry(
    here: Path,
    dlrun: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    retries: int,
    script: list[Any],
    code: int,
    attempts: str,
) -> None:
    monkeypatch.setattr(choose, "launcher", lambda *_: Scripted([*script, "done"]))
    monkeypatch.setattr(patience, "PAUSE", 0.0)
    done = dlrun("train", "-m", "seed=1,2", *TINY, f"search.retries={retries}", "sweep.dir=s")
    assert done.code == code, done.err
    assert rows(here / "s")["0"]["attempts"] == attempts
    # a full disk is left to `resume`, which starts with fresh attempts; the rest is over
    again = Scripted(["done"])
    monkeypatch.setattr(choose, "launcher", lambda *_: again)
    assert dlrun("resume", "s").code == (0 if code == 0 or script[-1] == FULL else 5)
    assert len(again.jobs) == (script[-1] == FULL)


def test_a_damaged_journal_is_made_again_from_the_trials(here: Path, dlrun: Callable[..., Outcome]) -> None:
    words = ("train", "-m", "optimizer.lr=0.001,0.01", "seed=1,2", *TINY, "sweep.dir=s")

    def done(*_: object) -> Scripted:
        return Scripted(["done"] * 4)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(choose, "launcher", done)
        assert dlrun(*words).code == 0
        for number in range(4):  # as the run itself records it
            run, _ = take(here / f"s/{number:04d}")
            lr, seed = ("0.001", "0.01")[number // 2], number % 2 + 1
            run.update_result(typed=[*TINY, f"optimizer.lr={lr}", f"seed={seed}"])
            run.release()
        before, journal = rows(here / "s"), here / "s/study.journal"
        for damage in (
            b"\0" * 500,
            b'{"op_code": 99}\n',
            journal.read_bytes().replace(b'"trial"', b'"trail"'),
            b"[1\n",
        ):
            journal.write_bytes(damage)
            nobody = Scripted([])
            patched.setattr(choose, "launcher", lambda *_: nobody)  # noqa: B023
            again = dlrun("resume", "s")
            assert again.code == 0, again.err
            assert nobody.jobs == []
            assert rows(here / "s") == before
            assert "study.journal" in again.out
        journal.unlink()
        assert dlrun("resume", "s").code == 0
        assert rows(here / "s") == before


def test_a_trial_that_calls_exit_has_not_run_out_of_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.run import execute

    def ends(cfg: Any, run: Any, **more: Any) -> int:
        run.write_config({"seed": 1})
        run.release()
        sys.exit(3)

    monkeypatch.setattr(execute, "execute", ends)
    settings = SimpleNamespace(trainer=SimpleNamespace(devices=1))
    monkeypatch.setattr("dlrun.config.settings.Settings.of", lambda plain: settings)
    code, why = work(Job(0, {}, str(here / "0000")), None)  # type: ignore[arg-type]
    assert code == Exit.FAILED
    assert "sys.exit(3)" in why
    assert "memory" not in why


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_what_a_trial_has_started_ends_with_it() -> None:
    first = sleeper()
    before = job._children()
    assert first.pid in before
    second = sleeper()
    try:
        job._end_children(before)
        assert second.wait(20) == -signal.SIGKILL
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


GUARDED = """
import os, subprocess, sys, time
from dlrun.search.launchers.job import _guard
_guard(int(sys.argv[1]))
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])
print(child.pid, flush=True)
time.sleep(100)
"""


def test_what_a_trial_has_started_ends_with_the_sweep() -> None:
    reading, lifeline = os.pipe()
    words = [sys.executable, "-c", GUARDED, str(reading)]
    worker = subprocess.Popen(words, pass_fds=[reading], start_new_session=True, stdout=subprocess.PIPE, text=True)
    os.close(reading)
    assert worker.stdout is not None
    child = int(worker.stdout.readline())
    os.kill(child, 0)
    os.close(lifeline)  # as the death of the parent does
    assert worker.wait(20) == -signal.SIGKILL
    worker.stdout.close()
    until = time.monotonic() + 20
    while os.path.exists(f"/proc/{child}/stat") and time.monotonic() < until:
        if ") Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{child}") or ") Z " in Path(f"/proc/{child}/stat").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_terminated_leaves_rows_and_a_hint(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    process = start(tmp_path, *MOODS, "+model.mood=slow", "seed=1,2,3", *SLOW)
    wait_for(lambda: (tmp_path / "s/0000/checkpoints/last.pt").exists(), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "dlrun resume s" in out
    assert "Traceback" not in out + err
    assert "interrupted" in {row["status"] for row in rows(tmp_path / "s").values()}
    assert workers(tmp_path) == []


def test_a_clock_that_is_set_ends_no_trial_and_lets_none_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    steady, wall = iter([0.0, 9.0, 11.0]), iter([1e9, 2e9, 0.0])
    monkeypatch.setattr(patience.time, "monotonic", lambda: next(steady))
    monkeypatch.setattr(patience.time, "time", lambda: next(wall))
    clocks = patience.Patience()
    assert [clocks.late(0, "lock", "", 10.0) for _ in range(3)] == [False, False, True]
