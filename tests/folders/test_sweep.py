"""Sweep folders: one process at a time, and files that a kill cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_a_half_written_journal_is_mended(here: Path) -> None:
    write(here / "s/sweep.yaml", "version: 1\n")
    file = write(sweep_folder.journal(here / "s"), '{"op_code":0}\n{"op_co')
    with sweep_folder.open_sweep("s"):
        assert file.read_text() == '{"op_code":0}\n'
