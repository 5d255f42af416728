"""Run folders: one process at a time holds one, and one line for everything that can be in the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlrun.errors import UserError
from dlrun.folders import disk, reading
from dlrun.folders.opener import Unreadable
from dlrun.folders.run import claim, reopen, settle
from dlrun.vocabulary import FORMAT
from support.commands import Outcome
from support.stored import write, write_run

# a process that imports, says so, waits for the word, claims, says what came of it, and keeps it to the end
CLAIM = """
import json, os, sys
from dlrun.folders import run
from dlrun.errors import UserError
assert "torch" not in sys.modules
print("ready", flush=True)
sys.stdin.readline()
try:
    run = {action}
    run.path.joinpath("config.yaml").write_text("seed: 1")
    print(json.dumps(["mine", str(run.path), os.getpid()]), flush=True)
except UserError as error:
    print(json.dumps(["refused", str(error), os.getpid()]), flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def processes(action: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    script = CLAIM.format(action=action)
    made = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for process in made:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield made
    finally:
        for process in made:
            process.kill()
            process.communicate()


def go(made: list[subprocess.Popen[str]]) -> list[list[Any]]:
    """Release all at once and collect what each says."""
    for process in made:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = []
    for process in made:
        assert process.stdout is not None
        answers.append(json.loads(process.stdout.readline()))
    return answers


def test_twenty_at_once_get_twenty_folders(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with processes("run.claim(None, 'digits-cnn')", 20) as made:
        answers = go(made)
    assert [a[0] for a in answers] == ["mine"] * 20
    assert len({a[1] for a in answers}) == 20
    assert len(list((here / "outputs/runs").iterdir())) == 20
    assert (here / "outputs/latest").resolve() in [Path(a[1]).resolve() for a in answers]


def test_the_same_digits_in_the_same_second_make_two_folders(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter(["aaaa", "aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(draws))
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    runs = [claim(None, "x"), claim(None, "x")]
    assert [run.path.name for run in runs] == ["now-x-aaaa", "now-x-bbbb"]
    for run in runs:
        run.release()


def test_same_folder_starts_one_and_the_others_name_it(here: Path) -> None:
    with processes("run.claim('same', '')", 8) as made:
        answers = go(made)
        owners = [a for a in answers if a[0] == "mine"]
        assert len(owners) == 1
        for kind, text, _ in answers:
            if kind == "refused":
                assert f"process {owners[0][2]} on {socket.gethostname()}" in text
                assert "choose another run.dir=" in text


def test_a_dead_owners_folder_can_be_resumed(here: Path) -> None:
    with processes("run.claim('run', '')", 1) as made:
        [[_, _, pid]] = go(made)
        (here / "run/checkpoints/.last.pt.7.tmp").touch()
        with pytest.raises(UserError, match=f"^run .* process {pid} on "):
            reopen("run")
        assert disk.owned(here / "run")
        assert reading.result(here / "run")["status"] == "running"
        os.kill(made[0].pid, signal.SIGKILL)
        made[0].wait()
        assert not disk.owned(here / "run")
        assert reading.result(here / "run")["status"] == "interrupted"
        run = reopen("run")
        assert json.loads((here / "run/.owner").read_bytes())["pid"] == os.getpid()
        assert list(run.checkpoints.iterdir()) == []  # what a kill left half-written
        run.release()


@pytest.mark.parametrize("marked", [True, False])
def test_a_run_that_died_before_its_config_leaves_nothing_unfinished(here: Path, marked: bool) -> None:
    if marked:
        write(here / "run/.owner", "{}")
    for name in (".config.yaml.7.tmp", ".notes.tmp", "checkpoints/.last.pt.7.tmp"):
        write(here / "run" / name, "")
    claim("run", "").release()
    left = {file.relative_to(here / "run").as_posix() for file in (here / "run").rglob("*.tmp")}
    assert left == {".notes.tmp", *(() if marked else (".config.yaml.7.tmp", "checkpoints/.last.pt.7.tmp"))}


def test_of_many_that_resume_one_does(here: Path) -> None:
    write_run(here / "run", status="running")
    with processes("run.reopen('run')", 6) as made:
        answers = go(made)
    [owner] = [a for a in answers if a[0] == "mine"]
    assert all(f"process {owner[2]} on" in a[1] for a in answers if a[0] == "refused")


def test_a_forked_child_does_not_hold_the_folder(here: Path) -> None:
    run = claim("run", "")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # a worker that outlives its parent's claim
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    run.release()
    again = claim("run", "")
    assert disk.owned(here / "run")
    again.release()
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)


def test_release_twice_is_harmless(here: Path) -> None:
    run = claim("a", "")
    run.release()
    other = claim("b", "")  # may get the same file descriptor
    run.release()
    assert disk.owned(here / "b")
    other.release()


def test_claim_refuses_what_is_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(here / "done", status="completed")
    write_run(here / "dead", status="running")
    write(here / "thesis" / "chapter.tex", "")
    write(here / "file", "")
    for folder, *named in (
        ("done", "(completed)", "`dlrun resume done`"),
        ("dead", "(interrupted)", "`dlrun resume dead`"),
        ("thesis", "thesis", "chapter.tex"),
        ("file", "file ", "expected a folder"),
        ("file/run", "file/run: "),
        ("x" * 300, os.strerror(errno.ENAMETOOLONG)),
    ):
        with pytest.raises(UserError) as refusal:
            claim(folder, "")
        assert [word for word in named if word not in str(refusal.value)] == []
    assert not disk.owned(here / "done")


def test_a_run_that_died_before_its_config_is_claimed_anew(here: Path) -> None:
    run = claim("run", "")
    (run.path / "log.txt").touch()
    run.release()
    again = claim("run", "")
    assert disk.owned(here / "run")
    again.release()


@pytest.mark.parametrize("measured", ["", "checks.csv", "metrics.csv", "checkpoints/last.pt"])
def test_a_refused_run_leaves_no_folder_unless_it_measured_something(here: Path, measured: str) -> None:
    run = claim("r", "")
    run.write_config({"seed": 1})
    run.update_result(status="failed")
    for name in filter(None, ("code/mynet.py", "log.txt", measured)):
        write(run.path / name, "x")
    run.discard()
    run.release()
    assert (here / "r/config.yaml").exists() == (here / "r/code").exists() == (here / "r").exists() == bool(measured)


def test_what_a_refused_run_did_not_write_stays(here: Path) -> None:
    write(here / "r/.mine", "x")
    run = claim("r", "")
    run.discard()
    run.release()
    assert [path.name for path in (here / "r").iterdir()] == [".mine"]


def test_a_mistyped_run_is_not_looked_for_all_over_the_disk(here: Path) -> None:
    for name in ("runs/a", "deep/down/b"):
        (here / name).mkdir(parents=True)
        (here / name / "config.yaml").touch()
    with pytest.raises(UserError, match=r"runs nearby: .*runs/a") as caught:
        reopen(str(here / "runs" / "typo"))
    with pytest.raises(UserError, match="runs nearby: none"):
        reopen(str(here / "typo"))
    assert "deep" not in str(caught.value)


def test_names_of_options_in_subfolders_make_no_subfolders(here: Path) -> None:
    run = claim(None, "digits-mine/net")
    assert run.path.parent == Path("outputs/runs")
    run.release()


def test_latest_points_at_the_newest_and_is_only_a_courtesy(here: Path) -> None:
    first, second = claim(None, "a"), claim("elsewhere/b", "")
    assert (here / "outputs/latest").resolve() == (here / "elsewhere/b").resolve()
    (here / "outputs/latest").unlink()
    write(here / "outputs/latest/in_the_way", "")
    third = claim(None, "c")
    assert sorted(p.name for p in (here / "outputs").iterdir()) == ["latest", "runs"]
    for run in (first, second, third):
        run.release()


def test_metrics_lose_only_what_will_be_written_again(here: Path) -> None:
    run = claim("run", "")
    for epoch in (1, 2, 3):
        run.append_metrics({"epoch": epoch, "lr": 0.1 / epoch})
    path = run.path / "metrics.csv"
    whole = path.read_text()
    assert whole == f"epoch,lr\n1,0.1\n2,0.05\n3,{0.1 / 3}\n"
    with open(path, "a") as file:
        file.write("4,0.02")  # a kill cut this row short
    run.trim_metrics(3)
    assert path.read_text() == whole
    run.trim_metrics(2)
    assert path.read_text() == "epoch,lr\n1,0.1\n2,0.05\n"
    assert [row["epoch"] for row in reading.metrics(run.path)] == ["1", "2"]
    run.trim_metrics(0)
    assert not path.exists()
    path.write_text("epo")
    run.trim_metrics(0)
    run.append_metrics({"epoch": 1, "lr": 0.1})
    assert path.read_text() == "epoch,lr\n1,0.1\n"
    run.release()


def test_config_and_result_come_back_as_written(here: Path) -> None:
    run = claim("run", "")
    config = {"name": "ünïcode: #", "lr": 1e-4, "none": None, "list": [1, 2.0], "group": {"key": "value"}}
    run.write_config(config)
    assert reading.config(run.path) == config
    run.update_result(status="running", val_acc=0.5)
    run.update_result(val_acc=0.75)
    assert reading.result(run.path) == {"version": FORMAT, "status": "running", "val_acc": 0.75}
    run.release()
    assert reading.result(run.path)["status"] == "interrupted"
    assert reading.stored(run.path)["status"] == "running"
    (run.path / "result.json").write_text("{")
    with pytest.raises(Unreadable, match=r"result\.json"):
        reading.result(run.path)
    reopened = reopen("run")  # what training needs is in the checkpoint
    reopened.update_result(status="completed")
    reopened.release()
    assert reading.result(run.path)["status"] == "completed"


def test_resume_of_what_is_no_run_or_complete(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write_run(here / "outputs/runs/a", status="completed")
    write(here / "outputs/runs/b/notes.txt", "")
    done = dlrun("resume", "outputs/runs/a")
    assert (done.code, done.out.count("\n")) == (0, 1)
    assert re.match(r"outputs/runs/a\b.*\bcomplete\b", done.out)
    assert not disk.owned(here / "outputs/runs/a")
    lost = dlrun("resume", "outputs/runs/b")
    assert lost.code == 2
    assert re.match(r"dlrun: outputs/runs/b: .*\bconfig\.yaml\b.*: outputs/", lost.err)


def test_resume_of_a_running_one_names_its_owner(here: Path, dlrun: Callable[..., Outcome]) -> None:
    run = claim("run", "")
    write_run(here / "run", status="running")
    outcome = dlrun("resume", "run")
    assert outcome.code == 2
    assert f"process {os.getpid()} on {socket.gethostname()}; " in outcome.err
    run.release()


def test_progress_is_written_seldom_and_never_lost_at_the_end(here: Path) -> None:
    run = claim("r", "x")
    (here / "r/config.yaml").write_text("seed: 1")
    run.update_result(status="running")
    for epoch in range(1, 4):
        run.append_metrics({"epoch": epoch, "val_acc": 0.5})
        run.progress(epochs=epoch, val_acc=0.5)
    assert reading.result(here / "r")["epochs"] == 1
    run.release()  # as a kill does
    settle(here / "r", status="failed", reason="killed")
    assert reading.result(here / "r")["epochs"] == 3
    run._written = 0.0
    run.progress(epochs=4)
    assert reading.result(here / "r")["epochs"] == 4
    run.progress(epochs=5)
    run.update_result(status="completed")
    assert {k: reading.result(here / "r")[k] for k in ("epochs", "status")} == {"epochs": 5, "status": "completed"}
