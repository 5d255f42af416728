"""Names, notes and settings with control characters, markup and formulas: harmless and legible wherever they stand."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlrun.errors import legible
from dlrun.folders.formats import as_csv, read_rows
from support.commands import TINY, Outcome
from support.stored import config, result, write_run

ESCAPE, C1, TURNED, HALF = "\x1b[2J\x1b]0;x\x07", "\x9b31m", "a\u202egpj.exe", "\udcff"
NAMES = [f"{ESCAPE}a", f"{C1}b", TURNED, f"{HALF}c", "<script>alert(1)</script>", "[bold]d[/bold]", "x" * 300]
NAMES += ["=cmd|' /C calc'!A0", "+1+2", "-2+3", "@SUM(A1)", "\t=1", "javascript:alert(1)", "\\input{x}"]
BAD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture
def named(here: Path) -> Path:
    """A run for each name: its name, note, tags, reason and a setting are that."""
    for number, name in enumerate(NAMES):
        about = {"name": name, "note": name, "tags": [name], "reason": name}
        status = "completed" if number % 2 else "failed"
        cfg = config(optimizer__lr=name, seed=number)
        write_run(here / f"outputs/runs/{number:02d}", **result(cfg, 0.5 + number / 100, status=status) | about)
    return here


COMMANDS = ("compare", "compare --all", "compare --latex", "compare --json", "list", "report outputs/runs/00")
COMMANDS += ("diff outputs/runs/00 outputs/runs/03", "compare no\x1b[2Jthing")


@pytest.mark.parametrize("words", COMMANDS)
def test_the_screen_gets_legible_text(named: Path, dlrun: Callable[..., Outcome], words: str) -> None:
    outcome = dlrun(*words.split())
    assert outcome.code in (0, 2)
    assert not BAD.search(outcome.out + outcome.err)


def test_what_is_replaced_is_still_told_apart() -> None:
    assert legible(f"{ESCAPE} {C1} {TURNED} {HALF}") == (r"\x1b[2J\x1b]0;x\x07 \x9b31m a\u202egpj.exe \udcff")
    assert legible("straße\tπ 東京\n") == "straße\tπ 東京\n"


def test_tables_compute_nothing_and_numbers_stay(named: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("compare").code == 0
    text = Path("outputs/compare.csv").read_text(encoding="utf-8")
    assert not BAD.search(text)
    for row in csv.reader(text.splitlines()):
        for value in row:
            if value[:1] in ("=", "+", "-", "@", "\t"):
                float(value)
    rows = [{"a": "=1+1", "b": -0.5, "c": "-1e-3", "d": "'quoted", "e": "-"}]
    assert as_csv(rows) == "a,b,c,d,e\n'=1+1,-0.5,-1e-3,'quoted,'-\n"
    Path("t.csv").write_text(as_csv(rows))
    assert read_rows(Path("t.csv")) == [{"a": "=1+1", "b": "-0.5", "c": "-1e-3", "d": "'quoted", "e": "-"}]


@pytest.mark.parametrize("words", [["report", "outputs/runs/04", "outputs/runs/05"], ["board"], ["report", "outputs"]])
def test_pages_run_nothing_and_reorder_nothing(named: Path, dlrun: Callable[..., Outcome], words: list[str]) -> None:
    assert dlrun(*words).code == 0
    pages = [p.read_text(encoding="utf-8") for p in Path("outputs").glob("*.html")]
    assert pages
    for page in pages:
        assert not BAD.search(page)
        assert "<script>alert(1)</script>" not in page
        assert not re.search(r"href='javascript:", page)


def test_latex_gets_no_commands(named: Path, dlrun: Callable[..., Outcome]) -> None:
    text = dlrun("compare", "--latex", "--columns", "name").out
    assert "\\input" not in text


def test_classes_and_photos_of_any_name_are_trained_on_and_predicted(here: Path, dlrun: Callable[..., Outcome]) -> None:
    """One photo whose name is not UTF-8 loses nothing."""
    rng = np.random.default_rng(0)
    for name in (b"\x1b[31mred", b"caf\xe9", "\u202eturned".encode(), b"=sum"):
        folder = os.path.join(b"data", name)
        os.makedirs(folder)
        for number in range(8):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(
                os.path.join(os.getcwdb(), folder, b"\xff%d.png" % number).decode(errors="surrogateescape")
            )
    few = [word for word in TINY if not word.startswith("dataset.limit")]
    trained = dlrun("train", *few, "dataset=image_folder", "dataset.root=data", "dataset.cache=none", "run.dir=run")
    assert trained.code == 0, trained.err
    assert not BAD.search(trained.out + trained.err)
    assert not BAD.search(Path("run/log.txt").read_text(encoding="utf-8"))
    outcome = dlrun("predict", "run", "data", "--out", "p.csv")
    assert outcome.code == 0
    rows = list(csv.DictReader(Path("p.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 32
    assert {r"\xff" in row["file"] for row in rows} == {True}
    assert not BAD.search(Path("p.csv").read_text(encoding="utf-8"))
    assert dlrun("report", "run").code == 0
    for name in ("errors.csv", "per_class.csv"):
        assert not BAD.search((Path("run") / name).read_text(encoding="utf-8"))


def test_control_sequences_of_dlrun_itself_reach_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich writes to the stream behind, so that colours stay."""
    import io

    from rich.console import Console

    from dlrun.streams import legible_streams

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with legible_streams():
        Console(force_terminal=True).print("red", style="red")
        print("\x1b[2J")
    assert "\x1b[31mred" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()
    assert sys.stdout is screen
