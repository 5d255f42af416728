"""Beneath a folder of dlrun no link is followed, nothing but files is opened, and nothing waits."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dlrun.errors import UserError
from dlrun.folders import disk, opener, reading, sweep
from dlrun.folders.opener import Unreadable
from dlrun.folders.run import claim, reopen, take
from support.stored import write, write_run


@pytest.fixture(params=[True, False], ids=["held", "looked at"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With open folders, and as on a system without them."""
    if not request.param:
        monkeypatch.setattr(opener, "HELD", False)


def theirs(here: Path) -> Path:
    """A file outside of every folder of dlrun."""
    return write(here / "home/bashrc", "export A=1\n")


def untouched(here: Path) -> bool:
    return {p.name: p.read_text() for p in (here / "home").iterdir()} == {"bashrc": "export A=1\n"}


@pytest.mark.usefixtures("either")
def test_a_link_is_never_read_written_or_appended_to(here: Path) -> None:
    outside, folder = theirs(here), here / "run"
    folder.mkdir()
    for name in ("log.txt", "result.json"):
        (folder / name).symlink_to(outside)
    (folder / "plots").symlink_to(outside.parent)
    for name in ("log.txt", "result.json", "plots/bashrc"):
        with pytest.raises(Unreadable):
            opener.read(folder, name)
        with pytest.raises(Unreadable):
            opener.appendable(folder, name)
    with pytest.raises(Unreadable, match="plots"):
        disk.write_atomic(folder / "plots/bashrc", b"x", within=folder)
    with pytest.raises(Unreadable):
        opener.remove(folder, "plots/bashrc")
    with pytest.raises(Unreadable):
        opener.real_folder(folder, "plots")
    disk.write_atomic(folder / "result.json", b"{}")  # the name is replaced, not what it leads to
    assert not (folder / "result.json").is_symlink()
    assert untouched(here)


@pytest.mark.usefixtures("either")
def test_names_stay_beneath_the_folder(here: Path) -> None:
    theirs(here)
    (here / "run").mkdir()
    for name in ("../home/bashrc", str(here / "home/bashrc"), "./x", "a//b", "", "a\0b"):
        with pytest.raises(Unreadable):
            opener.read(here / "run", name)


@pytest.mark.usefixtures("either")
def test_nothing_but_a_file_is_opened_and_nothing_waits(here: Path) -> None:
    os.mkfifo(here / "result.json")
    (here / "metrics.csv").mkdir()
    for name, kind in (("result.json", "pipe"), ("metrics.csv", "folder")):
        for call in (opener.read, opener.opened, opener.appendable):
            with pytest.raises(Unreadable, match=f"{name}: .*{kind}"):
                call(here, name)
    with pytest.raises(Unreadable, match="device"):
        opener.read("/dev", "zero")
    with pytest.raises(FileNotFoundError):
        opener.read(here, "nothing")


def test_a_file_larger_than_its_kind_is_refused_unread(here: Path) -> None:
    with open(here / "result.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Unreadable, match=r"result\.json: .*1,099,511,627,776"):
        opener.read(here, "result.json")
    write(here / "stop", "x" * 5000)
    with pytest.raises(Unreadable):
        opener.read_text(here, "stop")


def test_text_is_utf8(here: Path) -> None:
    (here / "metrics.csv").write_bytes(b"epoch\n\xff\n")
    with pytest.raises(Unreadable, match="0xff"):
        reading.metrics(here)


def test_a_folder_that_the_user_names_may_be_a_link(here: Path) -> None:
    (here / "big").mkdir()
    (here / "outputs").symlink_to("big")
    run = claim("outputs/run", "")
    run.append_metrics({"epoch": 1})
    run.release()
    (here / "short").symlink_to("big/run")
    assert reading.metrics(here / "short") == [{"epoch": "1"}]
    assert [str(p) for p in reading.find(["outputs"])] == [] or (here / "big/run/metrics.csv").is_file()


def test_what_is_appended_to_has_no_other_name(here: Path) -> None:
    outside = theirs(here)
    (here / "run").mkdir()
    os.link(outside, here / "run/metrics.csv")
    disk.append(here / "run/metrics.csv", b"1,2\n")
    assert (here / "run/metrics.csv").read_text() == "export A=1\n1,2\n"
    os.link(outside, here / "run/.owner")
    with pytest.raises(Unreadable, match=r"\.owner"):
        disk.lock(here / "run", "wait")
    assert untouched(here)


def test_a_planted_temporary_file_is_not_written_through(here: Path) -> None:
    outside = theirs(here)
    (here / f".result.json.{os.getpid()}.tmp").symlink_to(outside)
    disk.write_atomic(here / "result.json", b"{}")
    assert (here / "result.json").read_bytes() == b"{}"
    assert sorted(p.name for p in here.iterdir()) == ["home", "result.json"]
    assert untouched(here)


@pytest.mark.parametrize("name", [".owner", "metrics.csv", "layers.csv", "checkpoints", "plots"])
def test_a_run_with_a_link_in_it_is_not_continued_through_it(here: Path, name: str) -> None:
    outside = theirs(here)
    write_run(here / "run", status="interrupted")
    leads = outside.parent if "." not in name else outside
    (here / "run" / name).symlink_to(leads)
    write(here / "run/other" / f".notes.{os.getpid()}.tmp", "mine")

    def resumed() -> None:
        run = reopen("run")
        try:
            run.trim_metrics(1)
            run.append_metrics({"epoch": 2})
            run.append_layers([{"epoch": 2}])
        finally:
            run.release()

    with pytest.raises(UserError, match=name):
        resumed()
    assert untouched(here)
    assert (here / "run/other" / f".notes.{os.getpid()}.tmp").read_text() == "mine"


@pytest.mark.parametrize("name", [".owner", "0003", "jobs", "log.txt", "study.journal"])
def test_a_sweep_with_a_link_in_it_is_not_continued(here: Path, name: str) -> None:
    outside = theirs(here)
    write(here / "s/sweep.yaml", "axes: []\n")
    (here / "s" / name).symlink_to(outside if "." in name else outside.parent)

    def opened() -> None:
        with sweep.open_sweep("s"):
            pass

    with pytest.raises(UserError, match=name):
        opened()
    assert untouched(here)


def test_a_trial_that_is_a_link_is_not_trained_in(here: Path) -> None:
    write_run(here / "mine", status="interrupted")
    (here / "s").mkdir()
    (here / "s/0000").symlink_to(here / "mine")
    with pytest.raises(Unreadable, match="0000"):
        take(here / "s/0000")
    assert sorted(p.name for p in (here / "mine").iterdir()) == ["config.yaml", "result.json"]


def test_checkpoints_are_not_looked_for_behind_a_link(here: Path) -> None:
    write(here / "other/epoch_0001.pt", "mine")
    (here / "run").mkdir()
    (here / "run/checkpoints").symlink_to(here / "other")
    with pytest.raises(Unreadable, match="checkpoints"):
        reading.epoch_checkpoints(here / "run")


def test_a_new_file_has_the_permissions_of_any_other(here: Path) -> None:
    disk.write_atomic(here / "a", b"")
    (here / "b").touch()
    assert stat.S_IMODE((here / "a").stat().st_mode) == stat.S_IMODE((here / "b").stat().st_mode)


def test_one_that_cannot_be_opened_is_a_reason(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "result.json", "{}")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(Unreadable, match=r"result\.json: Permission denied"):
            opener.read(here, "result.json")
