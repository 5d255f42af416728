"""`dlrun list`, `dlrun rm` and `dlrun diff` on real folders, without torch."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import terminal, warm
from support.commands import TINY, without_torch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with their reports, a sweep of three, an ensemble of it, a student of a run."""
    folder = tmp_path_factory.mktemp("made")
    tiny = [word for word in TINY if word != "trainer.report=false"]
    commands = [
        ["train", *tiny, "run.name=first", "trainer.keep=all"],
        ["train", *TINY, "run.dir=second", "seed=2", "optimizer=sgd", "trainer.epochs=2"],
        ["train", "-m", "seed=1,2,3", *tiny, "sweep.dir=outputs/sweeps/three"],
        ["ensemble", "outputs/sweeps/three", "--out", "votes"],
        ["train", *TINY, "objective=distill", "objective.teacher=second", "run.dir=student"],
    ]
    for words in commands:
        done = warm.call(folder, *words)
        assert done.code == 0, done.err
    return folder


@pytest.fixture
def there(made: Path, here: Path) -> Path:
    """A copy of it to be in."""
    shutil.copytree(made, here, symlinks=True, dirs_exist_ok=True)
    return here


def status(folder: str, word: str) -> None:
    """Write another status into the result.json of a run."""
    file = Path(folder) / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": word}))


def copies(count: int) -> list[Path]:
    """Completed runs below outputs/runs with val_acc 0.5, 0.51 …"""
    made = []
    for number in range(count):
        path = Path(shutil.copytree("second", f"outputs/runs/copy{number}"))
        result = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps({**result, "val_acc": 0.5 + number / 100}))
        made.append(path)
    return made


def test_list_shows_status_score_and_size_of_each_newest_first(there: Path) -> None:
    for folder, day in (("second", "03"), ("student", "05"), ("outputs/runs/old", "04")):
        if not Path(folder).exists():
            shutil.copytree("second", folder)
        file = Path(folder) / "result.json"
        started = {"started": f"2025-01-{day}T10:00:00+0000"}
        file.write_text(json.dumps({**json.loads(file.read_text()), **started, "val_acc": 0.75}))
    status("second", "failed")
    every, sweep, empty = without_torch(
        [("list", "second", "student", "outputs", "votes"), ("list", "outputs/sweeps/three"), ("list", "other")],
        there,
    )
    assert every.code == 0
    rows = {line.split()[0]: line for line in every.out.splitlines()[1:-1]}
    assert [name for name in rows if name in ("second", "student", "outputs/runs/old")] == [
        "student",
        "outputs/runs/old",
        "second",
    ]
    assert re.search(r"^second +failed +0\.750 \(8 of 10\) +\d+ d +\d+(\.\d)? [kM]B$", rows["second"])
    assert re.search(r"3 of 3 +[01]\.\d{3} \(\d+ of \d+\)", rows["outputs/sweeps/three"])
    assert "ensemble of 3" in rows["votes"]
    assert len(rows) == 6
    assert [line.split()[0][-4:] for line in sorted(sweep.out.splitlines()[1:-1])] == ["0000", "0001", "0002"]
    assert (empty.code, empty.err.count("\n")) == (2, 1)


@pytest.mark.parametrize(("columns", "shared"), [(70, True), (200, False)])
def test_list_fits_a_terminal_without_cutting_a_name(there: Path, columns: int, shared: bool) -> None:
    seen = terminal.run(columns, there, "list")
    assert seen.code == 0
    (single,) = Path("outputs/runs").iterdir()
    assert max(len(line) for line in seen.lines if "`" not in line) <= columns
    assert any(line.split()[:1] == [str(single.relative_to("outputs") if shared else single)] for line in seen.lines)
    assert ("in outputs" in seen.lines) is shared
    assert any(re.search(r" \d+ of \d+ ", line) for line in seen.lines)


def test_the_size_is_that_of_the_disk_and_a_linked_file_counts_once(there: Path) -> None:
    from dlrun.folders import contents

    before = contents.size([Path("second")])
    (Path("second") / "more").write_bytes(os.urandom(1_000_000))
    os.link("second/more", "second/again")
    assert 1_000_000 <= contents.size([Path("second")]) - before < 1_010_000


def test_rm_without_a_terminal_says_what_to_type_and_deletes_nothing(there: Path) -> None:
    (done,) = without_torch([("rm", "student", "outputs/sweeps/three", "votes")], there)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "`dlrun rm student outputs/sweeps/three votes --yes`" in done.err
    assert re.search(r"^ *\d\S* [kM]B  student$", done.out, re.M)
    assert Path("student/result.json").exists()
    (done,) = without_torch([("rm", "student", "outputs/sweeps/three", "votes", "--yes")], there)
    assert done.code == 0, done.err
    assert not [name for name in ("student", "outputs/sweeps/three", "votes") if Path(name).exists()]
    assert Path("second/checkpoints/best.pt").exists()


@pytest.mark.parametrize(("answer", "left"), [("n", True), ("", True), ("y", False)])
def test_rm_asks_on_a_terminal(there: Path, answer: str, left: bool) -> None:
    main, end = pty.openpty()
    script = "import sys; from dlrun import cli; sys.argv = ['dlrun', 'rm', 'student']; cli.main()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=end, stdout=end, stderr=end)
    os.close(end)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(main, 1000)
    assert re.search(rb"frees \d+ kB|frees \d\.\d MB", said)
    os.write(main, f"{answer}\n".encode())
    assert child.wait(60) == 0
    os.close(main)
    assert Path("student/config.yaml").exists() is left


def test_what_an_ensemble_or_a_student_names_is_kept(there: Path) -> None:
    commands: list[tuple[str, ...]] = [
        ("rm", "second", "--yes"),
        ("rm", "outputs/sweeps/three", "--yes"),
        ("rm", "outputs/sweeps/three/0001", "--yes"),
    ]
    teacher, sweep, member = without_torch(commands, there)
    assert [done.code for done in (teacher, sweep, member)] == [2, 2, 2]
    assert re.search(r"second\b.*\bstudent\b.*--force", teacher.err)
    assert re.search(r"three\b.*\bvotes\b.*--force", sweep.err)
    assert "votes" in member.err
    assert Path("second/result.json").exists()
    both, forced = without_torch(
        [("rm", "student", "second", "--yes"), ("rm", "outputs/sweeps/three/0001", "--yes", "--force")], there
    )
    assert (both.code, forced.code) == (0, 0), both.err + forced.err
    assert not Path("second").exists()
    assert not Path("outputs/sweeps/three/0001").exists()
    assert Path("outputs/sweeps/three/0000").exists()


def test_a_trial_is_deleted_with_its_sweep_only(there: Path) -> None:
    shutil.rmtree("votes")
    (done,) = without_torch([("rm", "outputs/sweeps/three/0002", "--yes")], there)
    assert done.code == 2
    assert re.search(r"three/0002\b.*\bthree\b.*--force", done.err)


@contextmanager
def running(*words: str) -> Iterator[warm.Process]:
    """A training that goes on until the block ends."""
    child = warm.popen([sys.executable, "-m", "dlrun", *words], stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.terminate()
        child.wait(60)


def until(reached: Callable[[], bool]) -> None:
    """Wait for something, a minute at most."""
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_running_run_is_never_deleted(there: Path) -> None:
    words = [word for word in TINY if not word.startswith("trainer.epochs")]
    with running("train", *words, "trainer.epochs=100000", "run.dir=going") as child:
        until(lambda: Path("going/metrics.csv").exists())
        for flags in ((), ("--yes",), ("--yes", "--force")):
            (done,) = without_torch([("rm", "going", *flags)], there)
            assert done.code == 2
            assert re.search(r"^dlrun: going\b.*\brunning\b", done.err)
        (listed,) = without_torch([("list", "going")], there)
        assert re.search(r"^going +running\b", listed.out, re.M)
        assert child.poll() is None
        assert Path("going/config.yaml").exists()
    (done,) = without_torch([("rm", "going", "--yes")], there)
    assert done.code == 0, done.err
    assert not Path("going").exists()


def test_a_sweep_with_a_running_trial_is_not_deleted(there: Path) -> None:
    shutil.rmtree("votes")
    trial = Path("outputs/sweeps/three/0001")
    with open(trial / ".owner", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (done,) = without_torch([("rm", "outputs/sweeps/three", "--yes")], there)
    assert (done.code, str(trial) in done.err) == (2, True)
    assert Path("outputs/sweeps/three/0000/result.json").exists()


def test_failed_runs_and_all_but_the_best(there: Path) -> None:
    runs = copies(6)
    for run, word in zip(runs, ("failed", "check_failed", "diverged", "interrupted"), strict=False):
        status(str(run), word)
    (done,) = without_torch([("rm", "--failed", "--yes")], there)
    assert done.code == 0, done.err
    assert [run.exists() for run in runs] == [False, False, False, True, True, True]

    (done,) = without_torch([("rm", "--keep-best", "1", "outputs/runs", "--yes")], there)
    assert done.code == 0, done.err
    scores = {path: json.loads((path / "result.json").read_text()) for path in Path("outputs/runs").iterdir()}
    assert runs[3] in scores  # it can be resumed
    assert len([r for r in scores.values() if r["status"] == "completed"]) == 1
    assert max(r["val_acc"] for r in scores.values() if r["status"] == "completed") >= 0.55
    assert Path("outputs/sweeps/three/0002/result.json").exists()
    again, wrong = without_torch([("rm", "--failed"), ("rm", "--keep-best", "0")], there)
    assert (again.code, wrong.code) == (0, 2)


def test_of_each_dataset_the_best_are_kept(there: Path) -> None:
    runs = copies(4)
    for run in runs[:2]:
        text = (run / "result.json").read_text()
        (run / "result.json").write_text(text.replace('"dataset": "digits"', '"dataset": "mnist"'))
    (done,) = without_torch([("rm", "--keep-best", "1", "outputs/runs", "--yes")], there)
    assert done.code == 0, done.err
    assert runs[1].exists()
    assert not runs[0].exists()


def test_failed_runs_that_others_need_are_named_and_kept(there: Path) -> None:
    status("second", "failed")
    (done,) = without_torch([("rm", "--failed", "second", "student", "--yes")], there)
    assert done.code == 0
    assert re.search(r"second\b.*\bstudent\b", done.out)
    assert Path("second").exists()


def test_nothing_but_folders_of_dlrun_is_deleted_and_no_link_followed(there: Path) -> None:
    mine = there / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    project = there / "project"
    project.mkdir()
    (project / "config.yaml").write_text("name: my website\n")
    os.symlink("second", "link")
    os.symlink(mine, "student/plots")
    shutil.copytree("second", "noted")
    Path("noted/notes.txt").write_text("keep")
    names = ("mine", "project", "link", "noted", "nowhere", "outputs", ".")
    found = without_torch([("rm", name, "--yes", "--force") for name in names], there)
    for name, done in zip(names, found, strict=True):
        assert (done.code, done.err.count("\n")) == (2, 1), name
        assert name in done.err
    assert "notes.txt" in found[3].err
    assert Path("second/result.json").exists()
    (done,) = without_torch([("rm", "student", "--yes")], there)
    assert done.code == 0, done.err
    assert not Path("student").exists()
    assert (mine / "thesis.txt").read_text() == "years"


def test_the_link_to_the_newest_run_follows(there: Path) -> None:
    latest = Path("outputs/latest")
    shutil.rmtree("votes")
    (single,) = Path("outputs/runs").iterdir()
    latest.unlink()
    latest.symlink_to(os.path.relpath(single, "outputs"))
    found = without_torch([("rm", str(single), "--yes"), ("rm", "outputs/sweeps/three", "--yes")], there)
    assert [done.code for done in found] == [0, 0], found
    assert not latest.is_symlink()
    copies(2)
    latest.symlink_to("runs/copy0")
    (done,) = without_torch([("rm", "outputs/runs/copy0", "--yes")], there)
    assert done.code == 0, done.err
    assert latest.resolve() == Path("outputs/runs/copy1").resolve()


def test_a_deletion_that_is_cut_short_can_be_done_again(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun.errors import UserError
    from dlrun.folders import contents

    with monkeypatch.context() as patched:
        patched.setattr(contents.shutil, "rmtree", lambda path: (_ for _ in ()).throw(OSError(5, "no", str(path))))
        with pytest.raises(UserError, match="student/"):
            contents.delete(contents.Found(Path("student"), "run"))
    assert not Path("student/result.json").exists()  # it never looks complete without its checkpoints
    assert Path("student/config.yaml").exists()
    (done,) = without_torch([("rm", "student", "--yes")], there)
    assert done.code == 0, done.err
    assert not Path("student").exists()


def test_diff_shows_what_differs_and_nothing_else(there: Path) -> None:
    (first,) = Path("outputs/runs").iterdir()
    file = Path("second/result.json")
    result = json.loads(file.read_text())
    torch, result["versions"]["torch"] = result["versions"]["torch"], "0.1"
    file.write_text(json.dumps(result))
    done, same, missing = without_torch(
        [("diff", str(first), "second"), ("diff", "second", "second"), ("diff", "second", "mine")], there
    )
    assert done.code == 0
    sections: dict[str, dict[str, list[str]]] = {}
    for line in done.out.splitlines()[1:]:
        words = line.split()
        if line.startswith(" "):
            sections[list(sections)[-1]][words[0]] = words[1:]
        else:
            sections[line] = {}
    config, typed = sections["config"], sections["typed"]
    assert config["optimizer"] == ["adam", "sgd"]
    assert config["trainer.epochs"] == typed["trainer.epochs"] == ["1", "2"]
    assert typed["seed"] == ["–", "2"]
    assert sections["versions"] == {"torch": [torch, "0.1"]}
    assert sections["scores"]["epochs"] == ["1", "2"]
    assert not {"dataset", "trainer.batch_size", "scheduler.epochs", "run.dir", "status"} & set(
        {**config, **sections["scores"]}
    )
    assert (same.code, len(same.out.splitlines())) == (0, 1)
    assert (missing.code, missing.err.count("\n")) == (2, 1)
