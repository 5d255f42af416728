"""`dlrun trust`: what a folder asks for, what is allowed there, and when that ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.config.trust import digest
from support.commands import Outcome
from support.hostile import watched
from support.stored import write

NET = "import torch\nopen('ran', 'w')\nclass Net(torch.nn.Module): ...\n"


@pytest.fixture
def project(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "settings"))
    write(here / "mynet.py", NET)
    write(here / "conf/model/mine.yaml", "_target_: mynet.Net\n")
    write(here / "conf/loss/plain.yaml", "_target_: dlrun.losses.CrossEntropy\n")
    return here


def test_a_folder_is_shown_and_nothing_runs(project: Path, dlrun: Callable[..., Outcome]) -> None:
    with watched(project) as seen:
        done = dlrun("trust", ".")
    assert (done.code, seen.bad) == (0, [])
    assert "conf/model/mine.yaml: mynet.Net" in done.out
    assert "plain.yaml" not in done.out
    assert "`dlrun trust . mynet`" in done.out
    assert not (project / "settings").exists()


def test_a_file_whose_aliases_grow_is_left_out_at_once(project: Path, dlrun: Callable[..., Outcome]) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 24))]
    write(project / "conf/model/bomb.yaml", "\n".join(lines) + "\n")
    done = dlrun("trust", ".")
    assert done.code == 0
    assert "bomb.yaml" in done.out
    assert "conf/model/mine.yaml: mynet.Net" in done.out


def test_what_is_allowed_ends_with_a_change_of_the_code(project: Path, dlrun: Callable[..., Outcome]) -> None:
    words = ("predict", "nowhere", "x.npy")  # other commands read it as well, and are not disturbed
    compose = ("train", "model=mine", "--cfg", "job")
    assert "trust=[mynet]" in dlrun("train", "model=mine", "check=none").err
    assert dlrun("trust", ".", "mynet").code == 0
    assert dlrun(*words).code == 2
    assert dlrun(*compose).code == 0
    assert str(project) in dlrun("trust").out
    from dlrun.config.compose import compose as composed

    assert composed("model=mine").trust == ("mynet",)
    for change in ("mynet.py", "beside.py", "package/sub.py"):
        before = (project / change).read_text() if (project / change).exists() else None
        write(project / change, NET.replace("ran", "run"))  # as long as before
        refused = dlrun("train", "model=mine", "check=none")
        assert "trust=[mynet]" in refused.err
        assert f"dlrun trust {project} mynet" in refused.err
        if before is None:
            (project / change).unlink()
        else:
            write(project / change, before)
    assert composed("model=mine").trust == ("mynet",)
    for quiet in ("conf/model/other.yaml", ".hidden/x.py", "outputs/runs/a/code/mynet.py", "__pycache__/mynet.pyc"):
        write(project / quiet, "")
        assert composed("model=mine").trust == ("mynet",)
    assert dlrun("trust", ".", "--forget").code == 0
    assert "trust=[mynet]" in dlrun("train", "model=mine", "check=none").err
    assert not (project / "ran").exists()


@pytest.mark.parametrize("place", ["elsewhere/sub.py", "package/sub.py", "env/extra.py"])
def test_links_and_environments_hide_no_code(here: Path, place: str) -> None:
    write(here / "elsewhere/sub.py", "x = 1\n")
    write(here / "project/mynet.py", NET)
    for name in ("package", "env"):
        write(here / name / "pyvenv.cfg", "")
        write(here / name / "lib/python3.11/site-packages/torch.py", "")
        (here / "project" / name).symlink_to(here / name)
    (here / "project/linked").symlink_to(here / "elsewhere")
    (here / "project/back").symlink_to(here / "project")
    before = digest(here / "project")
    write(here / "package/lib/python3.11/site-packages/torch.py", "x = 1\n")
    assert digest(here / "project") == before
    write(here / place, "x = 2\n")
    assert digest(here / "project") != before


def test_code_that_has_no_end_is_not_read(project: Path, dlrun: Callable[..., Outcome]) -> None:
    (project / "more.py").symlink_to("/dev/zero")
    done = dlrun("trust", ".", "mynet")
    assert (done.code, "more.py" in done.err) == (2, True)


def test_names_count_as_much_as_contents(tmp_path: Path) -> None:
    folders = [{"a.py": "x"}, {"b.py": "x"}, {"a/b.py": "x"}, {"a.py": "y"}, {"a.py": "xy"}, {"a.py": "x", "b.py": ""}]
    for number, files in enumerate(folders):
        for name, text in files.items():
            write(tmp_path / str(number) / name, text)
    assert len({digest(tmp_path / str(number)) for number in range(len(folders))}) == len(folders)


def test_another_folder_is_not_allowed(
    project: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dlrun("trust", ".", "mynet").code == 0
    write(project / "copy/mynet.py", NET)
    write(project / "copy/conf/model/mine.yaml", "_target_: mynet.Net\n")
    monkeypatch.chdir(project / "copy")
    assert "trust=[mynet]" in dlrun("train", "model=mine", "check=none").err


@pytest.mark.parametrize(
    "words", [(".", "gone"), (".", "my-net"), (".", "${x}"), ("nowhere",), (".", "linked")], ids=" ".join
)
def test_mistakes(words: tuple[str, ...], project: Path, dlrun: Callable[..., Outcome]) -> None:
    (project / "linked").symlink_to("settings")
    done = dlrun("trust", *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words[-1] in done.err


def test_a_damaged_record_allows_nothing(project: Path, dlrun: Callable[..., Outcome]) -> None:
    good = {"packages": ["mynet"], "sha256": "0"}
    for text in ("", "[1]", "{", '{"folders": [1]}', json.dumps({"folders": {str(project): [1]}}), "\x00" * 9):
        write(project / "settings/dlrun/trust.json", text)
        assert dlrun("trust").code == 0
        assert "trust=[mynet]" in dlrun("train", "model=mine", "check=none").err
    write(project / "settings/dlrun/trust.json", json.dumps({"folders": {str(project): good}}))
    assert "code changed" in dlrun("train", "model=mine", "check=none").err
