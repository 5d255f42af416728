"""`hydra/launcher=joblib|ray|submitit_slurm`: the same rows, reasons, resuming and endings as with dlrun's own pool."""

from __future__ import annotations

import importlib
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.folders import reading
from dlrun.search.launchers.joblib import Joblib
from dlrun.search.launchers.slurm import cancel_waiting, job_name
from support import machines, slurm
from support.commands import TINY, Outcome
from support.moods import MOODS, MOODY, QUICK, rows, start, starts, wait_for
from support.moods import workers as alive
from support.stored import write

WORDS = {
    "joblib": ("hydra/launcher=joblib",),
    "ray": ("hydra/launcher=ray",),
    "submitit": ("hydra/launcher=submitit_slurm", "hydra.launcher.cluster=local"),
}
SLOW = (*(w for w in QUICK if w != "trainer.epochs=1"), "trainer.epochs=4", "trainer.batch_size=4", "sweep.dir=s")
# two trials, one after the other, whose surroundings alone may fail
ALONE = (*(w for w in MOODS if "workers" not in w), "hydra.launcher.workers=1", "+model.mood=slow", "seed=1,2")
ALONE += ("search.retries=0",)


@pytest.fixture(autouse=True)
def _equals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers step back behind all other programs, and a trial would be late on a busy machine."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


def there(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the extra is absent: pip install 'dlrun[{package}]'")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) for name in WORDS])
def words(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    """What picks each launcher; the tempers of a model lie in the folder of the test."""
    there(request.param)
    (tmp_path / "moody.py").write_text(MOODY)
    return (*MOODS, *WORDS[request.param])


def test_a_missing_extra_is_one_line(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlrun.config.extras.find_spec", lambda name: None)
    for option, package in {"joblib": "joblib", "ray": "ray", "submitit_slurm": "submitit"}.items():
        outcome = dlrun("train", "-m", f"hydra/launcher={option}", "seed=1,2", *TINY)
        assert (outcome.code, outcome.out) == (2, "")
        pattern = rf"dlrun: hydra/launcher={option}: .*\b{package}\b.*`?pip install 'dlrun\[{package}\]'`?\n"
        assert re.fullmatch(pattern, outcome.err)
    assert list(here.iterdir()) == []


def test_a_launcher_or_key_that_is_none_is_one_line(here: Path, dlrun: Callable[..., Outcome]) -> None:
    said = dlrun("train", "-m", "hydra/launcher=rai", "seed=1,2").err
    assert "hydra/launcher=ray? " in said
    assert said.endswith("joblib, pool, ray, submitit_slurm\n")
    said = dlrun("train", "-m", "hydra.launcher.worker=2", "seed=1,2").err
    assert said.startswith("dlrun: hydra.launcher.worker: ")
    assert said.endswith(" hydra.launcher.workers=2?\n")
    assert "workers=all: expected" in dlrun("train", "-m", "hydra.launcher.workers=all", "seed=1,2").err


SCANCEL = """#!{python}
import sys
from pathlib import Path
asked = dict(word.lstrip("-").split("=") for word in sys.argv[1:])
queue = Path(__file__).with_name("queue")
rows = [line.split() for line in queue.read_text().splitlines()]
kept = [r for r in rows if (r[1], r[2], r[3]) != (asked["name"], asked["user"], asked["state"])]
queue.write_text("".join(" ".join(r) + "\\n" for r in kept))
"""


def test_only_jobs_of_this_sweep_are_taken_out_of_the_queue(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me, sweep, stranger = pwd.getpwuid(os.getuid()).pw_name, here / "mine/jobs/today", here / "theirs/jobs/other"
    name = job_name(sweep)
    for folder in (sweep, stranger):
        write(folder / "77_submitted.pkl", "the number of another job of ours that waits")
    scancel = write(here / "bin/scancel", SCANCEL.format(python=sys.executable))
    scancel.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scancel.parent}:{os.environ['PATH']}")
    others = [f"77 thesis {me} PENDING", f"78 {name} {me} RUNNING", f"79 {name} somebody PENDING"]
    queue = write(scancel.parent / "queue", "\n".join([*others, f"80 {name} {me} PENDING"]) + "\n")
    cancel_waiting(stranger.parent)
    assert len(queue.read_text().splitlines()) == 4
    cancel_waiting(sweep.parent)
    assert queue.read_text().splitlines() == others
    shutil.copytree(here / "mine", here / "copy")  # of a sweep that waits elsewhere
    queue.write_text(f"80 {name} {me} PENDING\n")
    cancel_waiting(here / "copy/jobs")
    assert queue.read_text() == f"80 {name} {me} PENDING\n"


def test_joblib_runs_a_sweep(here: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun(
        "train", "-m", "hydra/launcher=joblib", "hydra.launcher.workers=1", "seed=1,2", *TINY, "sweep.dir=s"
    )
    assert outcome.code == 0, outcome.err
    assert [(r["seed"], r["status"]) for r in rows(here / "s").values()] == [(s, "completed") for s in "12"]
    assert "epoch 1/1" in (here / "s/0001/log.txt").read_text()
    assert "epoch 1/1" not in outcome.out


@pytest.mark.slow
def test_joblib_keeps_the_process_of_a_large_trial(here: Path) -> None:
    pytest.importorskip("psutil", reason="loky looks at memory with psutil")
    launcher = Joblib(1, here)
    executor, process, _ = launcher._start()
    try:
        process.result(60)
        executor.submit(exec, "global held; held = bytearray(b'1') * (400 << 20)").result(60)  # larger than its start
        time.sleep(1.1)  # loky looks once per second
        executor.submit(os.getpid).result(60)
        time.sleep(0.5)
        assert executor.submit(os.getpid).result(60) == process.result(60)
    finally:
        executor.shutdown(kill_workers=True)


def test_every_end_of_a_trial_is_a_row(words: tuple[str, ...], tmp_path: Path) -> None:
    process = start(tmp_path, *words, "+model.mood=ok,raise,die,explode", *QUICK, "sweep.dir=s")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 5, out + err
    table = rows(tmp_path / "s")
    assert [table[str(n)]["status"] for n in range(4)] == ["completed", "failed", "failed", "diverged"]
    reasons = ("all epochs done", "this one raises", "", "the loss is nan")
    assert all(words in table[str(n)]["reason"] for n, words in enumerate(reasons)), table
    assert any(word in table["2"]["reason"].lower() for word in ("kill", "died", "crash")), table["2"]
    # search.retries=1; a process that is lost costs no retry until the third time
    assert [table[str(n)]["attempts"] for n in range(4)] == ["1", "2", "3", "1"]
    assert "made with" not in out + err
    wait_for(lambda: not alive(tmp_path))


def test_a_hanging_trial_is_killed(words: tuple[str, ...], tmp_path: Path) -> None:
    more = ("search.timeout=30", "search.retries=0", *QUICK, "sweep.dir=s")
    process = start(tmp_path, *words, "+model.mood=hang,ok", *more)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 5, out + err
    table = rows(tmp_path / "s")
    assert [r["status"] for r in table.values()] == ["failed", "completed"]
    assert "30 seconds (search.timeout)" in table["0"]["reason"]
    wait_for(lambda: not alive(tmp_path))


def test_a_killed_sweep_finishes_what_is_missing(words: tuple[str, ...], tmp_path: Path) -> None:
    more = ("+model.mood=slow", "seed=1,2,3", *SLOW)
    process = start(tmp_path, *words, *more)
    wait_for(lambda: (tmp_path / "s/0000/checkpoints/last.pt").exists(), process)
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(tmp_path))  # no orphans
    before = starts(tmp_path / "s")
    process = start(tmp_path, *words, *more)
    wait_for(lambda: starts(tmp_path / "s") > before, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "dlrun resume s" in out
    assert "Traceback" not in out + err
    wait_for(lambda: not alive(tmp_path))
    assert "interrupted" in {row["status"] for row in rows(tmp_path / "s").values()}
    last = start(tmp_path, "resume", "s", "trust=[moody]")
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, out + err
    table = rows(tmp_path / "s")
    assert [(r["status"], r["epochs"], r["attempts"]) for r in table.values()] == [("completed", "4", "1")] * 3
    assert "resuming after epoch" in (tmp_path / "s/0000/log.txt").read_text()
    wait_for(lambda: not alive(tmp_path))


@pytest.mark.slow
def test_a_job_whose_time_is_over_goes_on_where_it_was(tmp_path: Path) -> None:
    there("submitit")
    (tmp_path / "moody.py").write_text(MOODY)
    process = start(tmp_path, *ALONE, *WORDS["submitit"], *SLOW)
    wait_for(lambda: (tmp_path / "s/0000/checkpoints/last.pt").exists(), process)
    for line in alive(tmp_path):
        if "submitit.core._submit" in line:
            os.kill(int(line.split()[0]), signal.SIGUSR2)  # as Slurm does before it takes a job's nodes away
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert rows(tmp_path / "s")["0"]["attempts"] == "1"
    assert starts(tmp_path / "s") == 3
    assert "resuming after epoch" in (tmp_path / "s/0000/log.txt").read_text()


@pytest.mark.slow
def test_a_queue_of_slurm_is_left_as_it_is_but_for_what_waits_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there("submitit")
    (tmp_path / "moody.py").write_text(MOODY)
    queue = slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{queue}:{os.environ['PATH']}")
    words = (*MOODS, "hydra/launcher=submitit_slurm", "hydra.launcher.workers=3", "+model.mood=slow", "seed=1,2,3")
    process = start(tmp_path, *words, *SLOW)
    wait_for(lambda: (tmp_path / "s/0000/checkpoints/last.pt").exists() and len(slurm.states(queue)) == 3, process)
    process.kill()
    process.communicate()
    thesis = write(tmp_path / "thesis.sh", "#!/bin/bash\n#SBATCH --job-name=thesis\ntrue\n")
    subprocess.run(["sbatch", str(thesis)], check=True, stdout=subprocess.DEVNULL)
    last = start(tmp_path, "resume", "s", "trust=[moody]")
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, out + err
    assert [(r["status"], r["epochs"], r["attempts"]) for r in rows(tmp_path / "s").values()] == [
        ("completed", "4", "1")
    ] * 3
    assert starts(tmp_path / "s") == 3  # the job that ran went on; the two that waited were queued anew
    wait_for(lambda: all(state not in ("PENDING", "RUNNING") for _, state in slurm.states(queue)))
    found = [state for _, state in slurm.states(queue)]
    assert [number.partition("_")[2] for number, _ in slurm.states(queue)] == [
        "0",
        "1",
        "2",
        "",
        "0",
        "1",
    ]  # two arrays
    assert found == ["COMPLETED", "CANCELLED", "CANCELLED", "COMPLETED", "COMPLETED", "COMPLETED"]


@pytest.mark.slow
def test_a_job_that_is_preempted_goes_on_and_costs_no_retry(tmp_path: Path) -> None:
    there("submitit")
    (tmp_path / "moody.py").write_text(MOODY)
    slow = [word for word in SLOW if word != "trainer.epochs=4"]
    process = start(tmp_path, *ALONE, *WORDS["submitit"], *slow, "trainer.epochs=6")
    for times in range(1, 5):  # more often than a process may be lost without getting further
        wait_for(lambda times=times: len(reading.metrics(tmp_path / "s/0000")) >= times, process)
        (job,) = [line for line in alive(tmp_path) if "submitit.core._submit" in line]
        os.kill(int(job.split()[0]), signal.SIGTERM)  # as Slurm does before it takes a job's node away
        wait_for(lambda job=job: job not in alive(tmp_path), process)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    row = rows(tmp_path / "s")["0"]
    assert (row["status"], row["epochs"], row["attempts"]) == ("completed", "6", "5")


@pytest.mark.slow
def test_a_trial_without_a_sign_of_life_is_started_elsewhere(tmp_path: Path) -> None:
    there("submitit")
    (tmp_path / "moody.py").write_text(MOODY)
    process = start(tmp_path, *ALONE, *WORDS["submitit"], *SLOW, "hydra.launcher.heartbeat=12")
    wait_for(lambda: (tmp_path / "s/0000/checkpoints/last.pt").exists(), process)
    (job,) = [line for line in alive(tmp_path) if "submitit.core._submit" in line]
    os.kill(int(job.split()[0]), signal.SIGSTOP)  # as a node that hangs: its queue still believes in it
    stopped = time.monotonic()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert time.monotonic() - stopped > 12
    assert "12 seconds (hydra.launcher.heartbeat); retrying" in out
    row = rows(tmp_path / "s")["0"]
    assert (row["status"], row["epochs"], row["attempts"]) == ("completed", "4", "2")
    assert job not in alive(tmp_path)


@pytest.mark.slow
def test_a_trial_whose_node_dies_goes_on_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there("submitit")
    machines.required()
    (tmp_path / "moody.py").write_text(MOODY)
    queue = slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{queue}:{os.environ['PATH']}")
    write(queue / "nodes", "".join(shlex.join(machines.on(name)) + "\n" for name in ("nodea", "nodeb")))
    alone = [word for word in ALONE if word != "seed=1,2"]
    words = ("hydra/launcher=submitit_slurm", "seed=1", "optimizer.lr=0.01,0.02", "hydra.launcher.heartbeat=12")
    process = start(tmp_path, *alone, *words, *SLOW)
    run = tmp_path / "s/0000"
    wait_for(lambda: (run / "checkpoints/last.pt").exists(), process)
    assert json.loads((run / ".owner").read_bytes())["host"] == "nodea"
    os.killpg(int(next(iter(queue.glob("*.pid"))).read_text()), signal.SIGKILL)
    died = time.monotonic()
    wait_for(lambda: "nodeb" in (run / ".owner").read_text(), process)
    assert time.monotonic() - died > 12
    assert slurm.states(queue)[0][1] == "CANCELLED"  # which until then was said to run
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "0000  failed  " in out
    table = rows(tmp_path / "s")
    assert [(row["status"], row["epochs"], row["attempts"]) for row in table.values()] == [
        ("completed", "4", "2"),
        ("completed", "4", "1"),
    ]
    assert "resuming after epoch" in (run / "log.txt").read_text()
    assert reading.result(run)["host"] == "nodeb"


@pytest.mark.slow
def test_a_trial_on_several_devices_is_a_row_like_any_other_and_leaves_no_process(tmp_path: Path) -> None:
    more = ("trainer.devices=2", "trainer.device=cpu", "hydra.launcher.workers=1", "search.retries=0", "sweep.dir=s")
    words = ("train", "-m", "seed=1,2", "optimizer.lr=0.01,1e30", "model=mlp", "optimizer=sgd", *QUICK, *more)
    process = start(tmp_path, *words, real=True)
    out, err = process.communicate(timeout=300)
    assert process.returncode in (0, 5), out + err
    table = rows(tmp_path / "s")
    assert [row["status"] for row in table.values()] == ["completed", "diverged"] * 2
    assert all(reading.result(tmp_path / f"s/000{n}")["processes"] == 2 for n in range(4))
    assert (tmp_path / "s/0000/log.txt").read_text().count("epoch 1/1") == 1
    wait_for(lambda: not alive(tmp_path))
    refused = start(tmp_path, *words[:3], "trainer.devices=2", "trainer.device=cpu", "search=staged")
    assert "search.stages" in refused.communicate(timeout=120)[1]
