"""`dlrun init`: what it writes composes, and it overwrites nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dlrun.commands.init import FILES
from dlrun.config.compose import compose
from support.commands import Outcome
from support.stored import write


def test_what_it_writes_composes(here: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("init")
    assert (outcome.code, outcome.err) == (0, "")
    files = sorted(file.relative_to(here / "conf").as_posix() for file in here.rglob("*.*"))
    assert files == sorted(FILES)
    cfg = compose("experiment=mine")
    assert (cfg.choices["model"], cfg.trainer.epochs, cfg.optimizer["lr"]) == ("mine", 20, 0.05)
    write(here / "photos/cat/1.png", "")
    data = compose("dataset=mine").dataset
    assert (data["root"], data["image_size"], data["channels"]) == ("photos", 64, 3)
    for name in FILES:
        option = name.removesuffix(".yaml").split("/")
        assert dlrun("explain", option[0], "=".join(option)).code == 0


def test_nothing_is_overwritten(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "conf/model/mine.yaml", "width: 8\n")
    outcome = dlrun("init")
    assert (outcome.code, "conf/model/mine.yaml exists" in outcome.out) == (0, True)
    assert (here / "conf/model/mine.yaml").read_text() == "width: 8\n"
    assert (here / "conf/experiment/mine.yaml").is_file()
    before = {file: file.read_text() for file in here.rglob("*.yaml")}
    assert dlrun("init").code == 0
    assert {file: file.read_text() for file in here.rglob("*.yaml")} == before


def test_a_folder_that_cannot_be_written_is_one_line(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "conf", "a file")
    outcome = dlrun("init")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "conf/" in outcome.err
