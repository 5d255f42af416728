"""Sweep folders: one process at a time, and files that a kill cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrun.errors import UserError
from dlrun.folders import sweep as sweep_folder
from support.stored import write


def test_sweep_folders_belong_to_one(here: Path) -> None:
    with sweep_folder.open_sweep(None) as first:
        assert first.parent == Path("outputs/sweeps")
    taken = r"mine\b.*\bprocess \d+.*\bsweep\.dir="
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


LEFT = ".table.csv.7.tmp", "plots/.parallel.png.7.tmp"


@pytest.mark.parametrize("marked", [True, False])
def test_what_a_kill_left_unfinished_is_removed_and_no_file_of_the_user(here: Path, marked: bool) -> None:
    write(here / "s/sweep.yaml", "version: 1\n")
    if marked:
        write(here / "s/.owner", "{}")
    for name in (*LEFT, ".notes.tmp", "0000/.x.7.tmp"):
        write(here / "s" / name, "")
    with sweep_folder.open_sweep("s"):
        left = {file.relative_to(here / "s").as_posix() for file in (here / "s").rglob("*.tmp")}
    assert left == {".notes.tmp", "0000/.x.7.tmp", *(() if marked else LEFT)}


def test_a_half_written_journal_is_mended(here: Path) -> None:
    write(here / "s/sweep.yaml", "version: 1\n")
    file = write(sweep_folder.journal(here / "s"), '{"op_code":0}\n{"op_co')
    with sweep_folder.open_sweep("s"):
        assert file.read_text() == '{"op_code":0}\n'


@pytest.mark.parametrize(("keys", "count"), [({"split_seed": 2}, 2), ({"split_seed": 2, "split": "content"}, 0)])
def test_a_sweep_from_before_folds_by_content_keeps_its_rule(tmp_path: Path, keys: dict[str, Any], count: int) -> None:
    folder = tmp_path / "0000"
    folder.mkdir()
    assert sweep_folder.old_folds(tmp_path) == []  # nothing has run yet
    (folder / "config.yaml").write_text(yaml.safe_dump({"dataset": keys}))
    words = sweep_folder.old_folds(tmp_path)
    assert len(words) == count
    assert ("dataset.split=position" in words) == bool(count)
