"""The house stays as it is planned: imports run downward, families stand alone, options say what they are."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dlrun.checks import runner
from dlrun.composing import builtin_conf

ROOT = builtin_conf().parent
PACKAGE = ROOT / "dlrun"

# who may import whom inside dlrun, room by room; * = everything below in this list
ROOMS: dict[str, set[str]] = {
    "config": {"rules"},
    "rules": set(),
    "disk": {"config"},
    "arguments": {"config"},
    "sentences": {"config"},
    "targets": {"config"},
    "progress": {"config"},
    "composing": {"arguments", "config", "loggers", "sentences", "targets"},
    "loggers": {"config", "rundir", "verdicts"},
    "rundir": {"config", "disk", "formats"},
    "formats": {"disk"},
    "kept": {"config", "disk", "formats", "rundir"},
    "sweepdir": {"config", "disk", "formats", "rundir"},
    "ensembledir": {"config", "disk", "formats", "rundir"},
    "evidence": set(),
    "verdicts": {"evidence"},
    "compare": {"config", "ensembledir", "rundir", "verdicts"},
    "figures": {"config", "disk", "rundir"},
    "layer_plots": {"figures", "rundir"},
    "plots": {"figures", "layer_plots", "rundir"},
    "votes": set(),
    "multi_crop": {"config"},
    "trained": {"checkpoint", "config", "ensembledir", "experiment", "multi_crop", "rundir", "targets", "votes"},
    "fresh": {"checkpoint", "config", "engine", "ensembles", "experiment", "multi_crop", "rundir", "trained"},
    "exporting": {"config", "disk", "trained"},
    "teachers": {"config", "data", "ensembles", "kept", "progress", "trained"},
    "objectives": {"teachers"},
    "predicting": {"config", "data", "disk", "progress", "trained"},
    "ensembles": {"config", "figures", "rundir", "votes"},
    "seeds": {"compare", "rundir"},
    "trials": {"border", "compare", "config", "ensembledir", "evidence", "rundir", "sweepdir"},
    "importance": {"trials"},
    "space_plots": {"border", "figures", "trials"},
    "sweep_plots": {"config", "evidence", "figures", "importance", "rundir", "space_plots", "trials"},
    "tables": {"compare"},
    "border": set(),
    "page": {"disk", "rundir"},
    "report": {"rundir", "page", "plots", "composing", "verdicts"},
    "sweep_report": {
        "compare",
        "config",
        "importance",
        "page",
        "rundir",
        "seeds",
        "space_plots",
        "sweep_plots",
        "tables",
    },
    "cli": {"config", "commands"},
    "__main__": {"cli"},
}
ROOMS["sweep_report"] |= {"trials"}
ROOMS["trained"] |= {"trials"}
FAMILIES = ("data", "models", "optim", "losses", "regularizers")
OUTER = (
    "arguments",
    "compare",
    "composing",
    "config",
    "border",
    "disk",
    "ensembledir",
    "ensembles",
    "figures",
    "formats",
    "kept",
    "layer_plots",
    "loggers",
    "page",
    "plots",
    "report",
    "importance",
    "space_plots",
    "sweep_plots",
    "sweep_report",
    "rules",
    "rundir",
    "seeds",
    "sentences",
    "sweepdir",
    "tables",
    "trials",
    "votes",
)
OUTER += ("targets", "cli", "evidence", "verdicts")
# rooms that stand above the loop: nothing below them may look up
UPPER = {"cli", "commands", "running", "search", "composing", "arguments", "compare", "report", "sentences"}
LOWER = {"engine", "checkpoint", "experiment", "diagnostics", "checks", "objectives", *FAMILIES}


def room(file: Path) -> str:
    """The first part of a module's name below dlrun: models/cnn.py is in `models`."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """The rooms of dlrun that a file imports, at its top, in functions and for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if (
                parts[0] == "dlrun"
                and len(parts) > 1
                and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists())
            ):
                found.add(parts[1])
    return found - {room(file)}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_run_downward(file: Path) -> None:
    here, there = room(file), imported(file)
    if here in FAMILIES:
        assert there <= {"config"}, "a family knows UserError and nothing else of the house"
    if here in ROOMS:
        assert there <= ROOMS[here]
    if here in LOWER:
        assert not there & UPPER
    if here == "diagnostics":
        assert not there & {"engine", "checks"}
    if here in ("engine", "experiment", "checkpoint"):
        assert "checks" not in there


def test_no_cycles_between_rooms() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        graph.setdefault(room(file), set()).update(imported(file))
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join([*path, name])}"
        if name not in done:
            for below in sorted(graph.get(name, ())):
                visit(below, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_what_reads_configs_and_folders_needs_no_torch() -> None:
    there = [m for m in OUTER if (PACKAGE / f"{m}.py").exists()]
    names = [f"dlrun.{m}" for m in there] + [
        f"dlrun.commands.{f.stem}" for f in (PACKAGE / "commands").glob("[!_]*.py")
    ]
    script = "import importlib, sys\n"
    script += f"for n in {names}: importlib.import_module(n); assert 'torch' not in sys.modules, n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


OPTIONS = sorted(builtin_conf().rglob("*.yaml"))


@pytest.mark.parametrize("file", OPTIONS, ids=lambda f: str(f.relative_to(builtin_conf())))
def test_every_option_opens_with_what_it_is(file: Path) -> None:
    first = next(line for line in file.read_text().splitlines() if not line.startswith("# @package"))
    assert first.startswith("# ")
    assert len(first) > 20


def test_every_option_file_of_a_group_is_in_a_group() -> None:
    groups = {file.parent.name for file in builtin_conf().glob("*/*.yaml")}
    expected = (
        "dataset model optimizer scheduler regularizer loss objective augment check search trainer ensemble logger"
    )
    assert groups - {"experiment"} <= set(expected.split())
    assert not [g for g in groups if g.endswith("s") and g != "loss"]  # singular


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_modules_say_what_they_are(file: Path) -> None:
    if file.read_text().strip():
        assert ast.get_docstring(ast.parse(file.read_text()))


CHECKS = sorted({c.__module__ for c in runner.CHECKS.values()})


@pytest.mark.parametrize("module", CHECKS)
def test_every_check_says_what_it_cannot_see_and_which_practice_it_keeps(module: str) -> None:
    said = importlib.import_module(module).__doc__ or ""
    assert re.search(r"\b[CDM]\d", said)
    assert re.search(r"annot\s+see|[Nn]one\s+(of them\s+)?sees", said)


def test_nothing_heavy_on_the_way_to_help() -> None:
    tree = ast.parse((PACKAGE / "cli.py").read_text())
    top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert {a.name for n in top if isinstance(n, ast.Import) for a in n.names} <= {"importlib", "os", "sys", "time"}
    assert {n.module for n in top if isinstance(n, ast.ImportFrom)} <= {"__future__"}


def test_no_room_without_a_name() -> None:
    vague = {"utils", "util", "helpers", "helper", "base", "manager", "common", "misc"}
    assert not {file.stem for file in FILES} & vague
