"""Run folders: one owner, atomic files, and sentences for everything that can be in the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlrun.errors import UserError
from dlrun.folders import disk, reading
from dlrun.folders import sweep as sweep_folder
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


def test_a_mistyped_run_is_not_looked_for_all_over_the_disk(here: Path) -> None:
    for name in ("runs/a", "deep/down/b"):
        (here / name).mkdir(parents=True)
        (here / name / "config.yaml").touch()
    with pytest.raises(UserError, match=r"runs nearby: .*runs/a") as caught:
        reopen(str(here / "runs" / "typo"))
    with pytest.raises(UserError, match="runs nearby: none"):
        reopen(str(here / "typo"))
    assert "deep" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as root every folder can be written, so the system is made to refuse
    (here / "run").mkdir()
    refuse(monkeypatch, "open", errno.EROFS)
    with pytest.raises(UserError, match="run: cannot write here: Read-only file system"):
        claim("run", "")
    refuse(monkeypatch, "mkdir", errno.EROFS)
    with pytest.raises(UserError, match=os.strerror(errno.EROFS)):
        claim("other", "")


def test_names_of_options_in_subfolders_make_no_subfolders(here: Path) -> None:
    run = claim(None, "digits-mine/net")
    assert run.path.parent == Path("outputs/runs")
    run.release()


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(
    here: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = write(here / "result.json", "old")
    with monkeypatch.context() as patched:
        refuse(patched, call, errno.ENOSPC)
        with pytest.raises(UserError, match=rf"result.json: .*{os.strerror(errno.ENOSPC)}") as told:
            disk.write_atomic(path, b"new")
    assert told.value.code == 1
    assert path.read_text() == "old"
    assert [p.name for p in here.iterdir()] == ["result.json"]
    disk.write_atomic(path, b"new")
    assert path.read_text() == "new"


def test_what_is_written_is_on_the_disk_before_it_counts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def replaced(old: Path, new: Path) -> None:
        steps.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    disk.write_atomic(here / "a", b"x")
    disk.append(here / "b", b"x")
    assert steps == ["file", "replace", "folder", "file"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
from dlrun.folders import disk
from dlrun.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for write, name, size in ((disk.write_atomic, "big", 1000), (disk.append, "rows", 60)):
    try:
        write(Path(name), b"x" * size)
    except UserError as error:
        print(error)
"""


def test_a_full_disk_leaves_what_was_there(here: Path) -> None:
    write(here / "big", "old")
    write(here / "rows", "r" * 70)  # 30 bytes of 60 fit
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    big, rows = done.stdout.splitlines()
    assert (big.startswith("big: "), os.strerror(errno.EFBIG) in big) == (True, True)
    assert (rows.startswith("rows: "), os.strerror(errno.ENOSPC) in rows) == (True, True)
    assert (here / "big").read_text() == "old"
    assert (here / "rows").read_text() == "r" * 70
    assert sorted(p.name for p in here.iterdir()) == ["big", "rows"]


def test_an_interrupt_in_a_write_leaves_no_litter(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        disk.write_atomic(here / "x", b"new")
    assert list(here.iterdir()) == []


def test_latest_points_at_the_newest_and_is_only_a_courtesy(here: Path) -> None:
    first, second = claim(None, "a"), claim("elsewhere/b", "")
    assert (here / "outputs/latest").resolve() == (here / "elsewhere/b").resolve()
    (here / "outputs/latest").unlink()
    write(here / "outputs/latest/in_the_way", "")
    third = claim(None, "c")
    assert sorted(p.name for p in (here / "outputs").iterdir()) == ["latest", "runs"]
    for run in (first, second, third):
        run.release()


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
    assert reading.result(run.path)["status"] == "interrupted"


def test_resume_of_what_is_no_run_or_complete(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write_run(here / "outputs/runs/a", status="completed")
    write(here / "outputs/runs/b/notes.txt", "")
    done = dlrun("resume", "outputs/runs/a")
    assert (done.code, done.out) == (0, "outputs/runs/a is complete; nothing to do\n")
    assert not disk.owned(here / "outputs/runs/a")
    lost = dlrun("resume", "outputs/runs/b")
    assert lost.code == 2
    assert lost.err.startswith("dlrun: outputs/runs/b: no run here (config.yaml is missing); runs nearby: outputs/")


def test_resume_of_a_running_one_names_its_owner(here: Path, dlrun: Callable[..., Outcome]) -> None:
    run = claim("run", "")
    write_run(here / "run", status="running")
    outcome = dlrun("resume", "run")
    assert outcome.code == 2
    assert f"process {os.getpid()} on {socket.gethostname()}; " in outcome.err
    run.release()


def test_sweep_folders_belong_to_one(here: Path) -> None:
    with sweep_folder.open_sweep(None) as first:
        assert first.parent == Path("outputs/sweeps")
    taken = r"mine is in use by process .*choose another sweep.dir="
    with (
        sweep_folder.open_sweep("mine") as named,
        pytest.raises(UserError, match=taken),
        sweep_folder.open_sweep("mine"),
    ):
        pass
    with sweep_folder.open_sweep("mine"):
        assert named == Path("mine")
    write(here / "full" / "0000" / "config.yaml", "")
    with pytest.raises(UserError, match=r"^full .* 0000"), sweep_folder.open_sweep("full"):
        pass


def test_a_half_written_journal_is_mended(here: Path) -> None:
    write(here / "s/sweep.yaml", "version: 1\n")
    file = write(sweep_folder.journal(here / "s"), '{"op_code":0}\n{"op_co')
    with sweep_folder.open_sweep("s"):
        assert file.read_text() == '{"op_code":0}\n'


def test_predictions_hold_no_pickles(here: Path) -> None:
    import numpy as np

    run = claim("run", "")
    run.write_predictions({"val_ids": np.array(["a", "b"]), "val_logits": np.eye(2)})
    with np.load(run.path / "predictions.npz", allow_pickle=False) as found:
        assert sorted(found) == ["val_ids", "val_logits"]
    run.release()


@pytest.mark.parametrize("links", [True, False])
def test_other_names_get_the_same_data_before_the_file_itself(
    here: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    last, best = here / "last.pt", here / "best.pt"
    flushed = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (flushed.append(stat.S_ISREG(os.fstat(handle).st_mode)), real(handle))
    )
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    disk.write_atomic(last, b"one", also=[best])
    assert (last.read_bytes(), best.read_bytes()) == (b"one", b"one")
    assert sum(flushed) == (1 if links else 2)  # the data is flushed once where one file can have two names
    disk.write_atomic(last, b"two")
    assert (last.read_bytes(), best.read_bytes()) == (b"two", b"one")  # what is replaced is the name
    disk.write_atomic(last, b"three", also=[best])
    assert (last.read_bytes(), best.read_bytes()) == (b"three", b"three")
    assert sorted(os.listdir(here)) == ["best.pt", "last.pt"]


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
