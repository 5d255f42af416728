"""What stands on a terminal of some width, and in a pipe: real processes, the terminal a pseudo-terminal."""

from __future__ import annotations

import ast
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import dlrun
from dlrun.commands.arguments import Parser
from dlrun.console import fitted
from support import warm
from support.commands import Outcome
from support.terminal import Seen, left, run

PACKAGE = Path(dlrun.__file__).parent
WORDS = ("dataset.limit=120", "model.width=4", "trainer.epochs=2", "trainer.threads=1", "trainer.report=false")
FEW = "check.only=[outputs,loss,penalty]"
IDS = re.compile(r"\([A-Z]\d{1,2}\b")


@pytest.fixture(scope="module", params=[80, 120])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Seen, Path]:
    """A short training in a terminal: its width, what was seen, the run."""
    folder = tmp_path_factory.mktemp("terminal")
    env = {"NO_COLOR": "1"} if request.param == 120 else {}
    seen = run(request.param, folder, "train", *WORDS, FEW, "run.dir=run", real=request.param == 80, **env)
    assert seen.code == 0, seen.raw
    return request.param, seen, folder / "run"


@pytest.mark.sampled(2)
def test_something_is_shown_before_anything_heavy_is_loaded(trained: tuple[int, Seen, Path]) -> None:
    _, seen, _ = trained
    assert "torch" in seen.first
    assert seen.seconds < 0.3
    assert not any("loading" in line or "checking" in line for line in seen.lines), "replaced by what follows"


def test_no_line_is_wider_than_the_terminal(trained: tuple[int, Seen, Path]) -> None:
    width, seen, _ = trained
    assert max(map(len, seen.lines)) <= width
    epochs = [line for line in seen.lines if line.startswith("epoch ")]
    assert len(epochs) == 2
    assert all("train loss" in line and "val loss" in line for line in epochs)
    assert all((" lr " in line) == (width == 120) for line in epochs)


def test_the_checks_are_one_line_and_the_log_has_each(trained: tuple[int, Seen, Path]) -> None:
    _, seen, folder = trained
    assert [line for line in seen.lines if "checks" in line] == ["3 checks: 2 passed, 1 off"]
    assert not any(line.startswith(("outputs", "check outputs")) for line in seen.lines)
    log = (folder / "log.txt").read_text()
    assert re.findall(r"^check (\w+) +(\w+)", log, re.M) == [("outputs", "pass"), ("loss", "pass"), ("penalty", "skip")]
    assert re.search(r"^epoch 1/2  lr .*/s  best$", log, re.M)
    assert "\x1b" not in log


def test_no_color_is_respected(trained: tuple[int, Seen, Path]) -> None:
    width, seen, _ = trained
    assert bool(seen.colours) == (width == 80), "only the run at 120 columns had NO_COLOR"


@pytest.mark.parametrize("columns", [80, 120])
def test_what_fails_is_shown_in_full_and_fits(columns: int, tmp_path: Path) -> None:
    words = ("check.only=[optimizer,outputs]", "optimizer.lr=0")
    seen = run(columns, tmp_path, "train", *WORDS, *words)
    assert seen.code == 3
    assert max(map(len, seen.lines)) <= columns
    shown = " ".join(" ".join(seen.lines).split())
    assert "optimizer fail" in shown
    assert "optimizer.lr=1e-3" in shown
    assert "2 checks: 1 passed, 1 failed" in seen.lines
    assert "outputs pass" not in shown


def test_check_shows_every_check_and_v_does_so_for_train(tmp_path: Path) -> None:
    for words in (("check",), ("train", "-v")):
        seen = run(80, tmp_path, *words, *WORDS, FEW)
        assert seen.code == 0, seen.raw
        assert [line.split()[:2] for line in seen.lines if line.startswith(("outputs", "loss ", "penalty"))] == [
            ["outputs", "pass"],
            ["loss", "pass"],
            ["penalty", "skip"],
        ]
        assert max(map(len, seen.lines)) <= 80


def test_a_pipe_gets_plain_whole_lines(tmp_path: Path) -> None:
    done = warm.call(tmp_path, "train", *WORDS, FEW, COLUMNS="40")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    assert "\r" not in done.out + done.err
    assert done.err == ""
    first, *rest = done.out.splitlines()
    assert first.startswith("digits: ")
    assert len(first) > 80
    assert "3 checks: 2 passed, 1 off" in rest
    assert [bool(re.search(r" lr .*/s", line)) for line in rest if line.startswith("epoch ")] == [True, True]


def test_an_error_replaces_the_line_before_it(tmp_path: Path) -> None:
    seen = run(80, tmp_path, "train", "optimizer.l=0.1")
    assert seen.code == 2
    assert "torch" in seen.first
    (line,) = filter(None, seen.lines)
    assert line.startswith("dlrun: optimizer.l: ")


def test_a_dumb_terminal_gets_no_codes(tmp_path: Path) -> None:
    seen = run(80, tmp_path, "train", *WORDS, "check=none", TERM="dumb")
    assert seen.code == 0
    assert "\x1b" not in seen.raw


def test_v_is_refused_for_a_sweep(tmp_path: Path) -> None:
    seen = run(80, tmp_path, "train", "-m", "-v", "seed=1,2")
    assert seen.code == 2
    assert next(filter(None, seen.lines)).startswith("dlrun: -v: ")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("width", [20, 40, 80])
def test_lines_are_broken_between_words_and_commands_stay_whole(width: int) -> None:
    command = "`dlrun resume outputs/runs/a`;"
    text = f"1 22 333  4444 {command} 55555 6 77\nnext"
    lines = fitted(text, width).split("\n")
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert any(command in line for line in lines)
    assert all(len(line) <= width or line.strip() == command for line in lines)
    assert fitted(text, 200) == text


def test_the_screen_of_these_tests_erases_and_moves() -> None:
    assert left("ab\r\x1b[2Kc\r\nd\r\n\x1b[1A\x1b[2Ke\r\n") == ["c", "e", ""]


def test_messages_name_no_practice_ids() -> None:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.name == "practices.py":  # the list of practices, for `dlrun explain`
            continue
        tree = ast.parse(file.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                found += [f"{file.name}:{node.lineno}"] * bool(IDS.search(node.value))
    assert found == []


@pytest.mark.slow
def test_the_help_of_a_verb_names_none_either(dlrun: Callable[..., Outcome]) -> None:
    for verb in ("lr_range", "batch_time", "show", "ensemble", "report", "compare"):
        outcome = dlrun(verb, "--help")
        assert outcome.code == 0
        assert f"dlrun {verb}" in outcome.out
        assert not IDS.search(outcome.out), verb
    shown = Parser(prog="dlrun x", description="Do this (E1, E2, B3–B6, C1-C10) and that (E7).").format_help()
    assert "Do this and that." in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "folder", "done"),
    [((), "run", "result.json"), (("-m", "seed=1,2,3", "hydra.launcher.workers=1"), "s", "table.csv")],
)
def test_what_runs_in_a_terminal_that_is_closed_is_interrupted(
    words: tuple[str, ...], folder: str, done: str, tmp_path: Path
) -> None:
    place = "sweep.dir=s" if words else "run.dir=run"
    long = ("dataset=digits", "trainer.epochs=5000", "trainer.device=cpu", "check=none", "trainer.report=false", place)
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "dlrun", "train", "model=mlp", *long, *words]
    env = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdin=end, stdout=end, stderr=end)
    os.close(end)
    try:
        until, shown = time.monotonic() + 60, b""
        while not ([*tmp_path.rglob("last.pt")] and "━".encode() in shown):
            assert time.monotonic() < until
            if select.select([terminal], [], [], 0.1)[0]:
                shown = os.read(terminal, 65536)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert "interrupted" in (tmp_path / folder / done).read_text()
