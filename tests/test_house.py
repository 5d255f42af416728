"""The house stays as it is planned: imports run downward, families stand alone, options say what they are."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dlrun.checks import runner
from dlrun.config.compose import builtin_conf
from support.house import (
    borrowed,
    foreign,
    heavy,
    idle,
    modules,
    package,
    strange_groups,
    undocumented,
    unexplained,
    unlisted,
    unused,
    vague,
    violations,
)
from support.limits import FUNCTION, MODULE, TWICE, oversized, repeated
from support.prose import compared

ROOT = builtin_conf().parent
PACKAGE = ROOT / "dlrun"

# what every package may import; of itself errors may import vocabulary
GROUND = frozenset({"errors", "vocabulary", "console", "streams"})
# package by package, what it may import besides; a file without an entry here is a failure
TABLE = {
    "__init__": "python",
    "__main__": "cli",
    "analysis": "folders",
    "checks": "config data folders models training",
    "cli": "*",
    "commands": "*",
    "config": "cores folders",  # the bounds of files that may come from somebody else
    "console": "folders",
    "cores": "",
    "data": "cores",
    "ensembles": "analysis folders reports",
    "errors": "",
    "folders": "",
    "inference": "analysis config data ensembles folders models training",
    "losses": "",
    "models": "",
    "objectives": "data inference models",
    "optim": "",
    "python": "*",
    "probes": "data optim reports training",
    "regularizers": "",
    "reports": "analysis config folders",
    "run": "analysis checks config data folders reports training",
    "search": "analysis checks config cores folders reports run training",
    "spinning": "",
    "streams": "",
    "training": "analysis config data folders models optim regularizers",
    "vocabulary": "",
}
EVERYTHING = frozenset(TABLE)
LAW = {name: EVERYTHING if may == "*" else GROUND | frozenset(may.split()) for name, may in TABLE.items()}
# packages whose modules are imported by commands that must not wait for torch
FREE = frozenset(("folders", "config", "analysis", "reports", "ensembles", "search", "commands"))
FREE |= {"errors", "vocabulary", "console", "cores", "spinning", "streams", "cli"}
# what tells that a module needs torch and is no part of the quick ones, whatever its name
BLOCKED = """
import importlib, importlib.abc, sys
class Torchless(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, Torchless())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def needing_torch(root: Path, packages: frozenset[str] = FREE) -> str:
    """The error of the first module of these packages, found by walking the folders, that imports torch."""
    names = [name for name in modules(root) if package(name) in packages]
    assert {package(name) for name in names} == packages
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *names], cwd=root.parent, capture_output=True, text=True, timeout=60
    )
    return done.stderr


def test_the_imports_follow_the_law() -> None:
    assert violations(PACKAGE, LAW) == []


def test_the_law_allows_nothing_that_nobody_uses() -> None:
    assert unused(PACKAGE, LAW, GROUND) == {}
    assert unused(PACKAGE, {**LAW, "optim": GROUND | {"data"}}, GROUND) == {"optim": ["data"]}


def test_names_used_by_other_modules_are_listed() -> None:
    assert unlisted(PACKAGE) == []


def test_what_reads_configs_and_folders_needs_no_torch() -> None:
    assert needing_torch(PACKAGE) == ""


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A copy of the package, to plant something in."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "dlrun", ignore=shutil.ignore_patterns("__pycache__")))


def plant(file: Path, text: str) -> None:
    """Add lines to a file, which may be new."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{file.read_text() if file.exists() else ''}\n{text}\n")


@pytest.mark.parametrize(
    ("file", "text", "pattern"),
    [
        ("strange.py", "", "strange: "),
        ("odd/__init__.py", "", "odd: "),
        ("models/cnn.py", "import dlrun.cli", r"models/cnn\.py: .*\bcli\b"),
        ("data/cache.py", "def f(): from dlrun.models.cnn import CNN", r"data/cache\.py: .*\bmodels\b"),
    ],
)
def test_a_planted_file_or_import_breaks_the_law(planted: Path, file: str, text: str, pattern: str) -> None:
    plant(planted / file, text)
    assert any(re.match(pattern, line) for line in violations(planted, LAW))


def test_a_missing_package_breaks_the_law(planted: Path) -> None:
    (planted / "losses.py").unlink()
    assert any(line.startswith("losses: ") for line in violations(planted, LAW))


def test_a_planted_cycle_is_found_even_where_every_import_is_allowed(planted: Path) -> None:
    plant(planted / "models/cnn.py", "from dlrun.training.experiment import build")
    assert any(line.startswith("cycle: ") for line in violations(planted, dict.fromkeys(LAW, EVERYTHING)))


def test_a_planted_name_that_is_not_listed_is_found(planted: Path) -> None:
    plant(planted / "losses.py", "from dlrun.data import cache\nfrom dlrun.cli import VERBS\ncache._x")
    assert [line.split()[:2] for line in unlisted(planted)] == [
        ["losses.py:", "dlrun.cli.VERBS"],
        ["losses.py:", "dlrun.data.cache._x"],
    ]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", sorted(FREE))
def test_a_planted_import_of_torch_is_found(planted: Path, name: str) -> None:
    file = planted / f"{name}.py" if (planted / f"{name}.py").exists() else planted / name / "planted.py"
    plant(file, "import torch")
    assert "ImportError: torch " in needing_torch(planted, frozenset({name}))


def test_modules_and_functions_are_short() -> None:
    assert oversized(PACKAGE) == []


def test_no_code_stands_twice() -> None:
    assert repeated(PACKAGE) == []


def test_a_planted_long_module_or_function_is_found(planted: Path) -> None:
    plant(planted / "losses.py", "\n" * MODULE)
    plant(planted / "regularizers.py", "@property\ndef long():" + "\n    x = 1" * (FUNCTION - 2))
    assert [line.partition(":")[0] for line in oversized(planted)] == ["losses.py"]
    plant(planted / "regularizers.py", "    x = 1")
    assert oversized(planted)[1:] == [f"regularizers.py: long: {FUNCTION + 2} lines"]  # and a blank one


def test_planted_code_that_stands_twice_is_found(planted: Path) -> None:
    lines = [f"    total{k} = {k} + len('planted')" for k in range(TWICE)]
    plant(planted / "losses.py", "\n".join(["def one():", *lines]))
    plant(planted / "regularizers.py", "\n".join(["def other():", "    # why", *lines[:-1]]))
    assert repeated(planted) == []
    plant(planted / "regularizers.py", f"\n{lines[-1]}")
    (found,) = repeated(planted)
    assert found.startswith("regularizers.py:")
    assert " losses.py:" in found


GROUPS = (
    "dataset model optimizer scheduler regularizer loss objective augment check search trainer logger experiment study"
)
KNOWN = frozenset(GROUPS.split())  # singular


def test_every_option_opens_with_what_it_is_and_is_in_a_group(tmp_path: Path) -> None:
    assert (unexplained(builtin_conf()), strange_groups(builtin_conf(), KNOWN)) == ([], [])
    conf = Path(shutil.copytree(builtin_conf(), tmp_path / "conf"))
    plant(conf / "models/wide.yaml", "# short\nwidth: 3")
    (conf / "model/empty.yaml").write_text("")
    (conf / "model/bare.yaml").write_text("# @package _global_\nwidth: 3\n")
    assert unexplained(conf) == ["model/bare.yaml", "model/empty.yaml", "models/wide.yaml"]
    assert strange_groups(conf, KNOWN) == ["models"]


def test_modules_have_a_docstring_and_a_name_that_says_something(planted: Path) -> None:
    assert (undocumented(PACKAGE), vague(PACKAGE)) == ([], [])
    plant(planted / "data/helpers.py", "def public(): ...\ndef _private(): ...")
    plant(planted / "utils/__init__.py", "")
    assert undocumented(planted) == ["dlrun.data.helpers", "dlrun.data.helpers.public"]
    assert vague(planted) == ["dlrun.data.helpers", "dlrun.utils"]


def test_no_branch_for_a_system_that_the_imports_exclude(planted: Path) -> None:
    assert foreign(PACKAGE) == []
    plant(planted / "data/cache.py", 'import sys\nif sys.platform == "win32":\n    raise SystemExit')
    assert foreign(planted) == ["dlrun.data.cache"]


def test_every_dependency_is_imported_or_has_a_reason(planted: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    # for the command `pytest` after the only install line
    assert idle(text, PACKAGE) == {"pytest"}
    more = text.replace('    "scipy', '    "polars>=1",\n    "scipy')
    assert idle(more, PACKAGE) == {"polars", "pytest"}
    plant(planted / "losses.py", "def f():\n    import polars.io")
    assert idle(more, planted) == {"pytest"}


CHECKS = sorted({check.module for check in runner.CHECKS.values()})


def undescribed(text: str) -> bool:
    """Whether the docstring of a check lacks the practice that it keeps, or what it cannot detect."""
    return not (re.search(r"\b[CDM]\d", text) and re.search(r"annot\s+detect|[Nn]one\s+(of them\s+)?detects", text))


def test_every_check_names_its_practice_and_what_it_cannot_detect() -> None:
    assert [module for module in CHECKS if undescribed(importlib.import_module(module).__doc__ or "")] == []
    assert all(map(undescribed, ("", "C1: detects a wrong loss.", "Cannot detect a wrong label.")))


def test_nothing_heavy_on_the_way_to_help(planted: Path) -> None:
    assert heavy(PACKAGE) == []
    plant(planted / "cli.py", "import numpy\nfrom dlrun.config import compose")
    assert heavy(planted) == ["numpy", "dlrun.config"]


SENTENCE = "the sky is " + "blue"
COMPARES = [
    'def test_a() -> None:\n    assert "{}" in err',
    'def test_a() -> None:\n    assert err == f"dlrun: {} {{number}}"',
    'def test_a() -> None:\n    expected = "{}"\n    assert expected in err',
    'def test_a() -> None:\n    with raises(ValueError, match=r"^a\\.b=1: {}$"):\n        f()',
    'def test_a() -> None:\n    for word, text in {{"a": "{}"}}.items():\n        assert text in f(word)',
    'TEXTS = {{"a": "{}"}}\n\ndef test_a() -> None:\n    assert TEXTS["a"] in err',
    '@mark.parametrize("text", [1, "{}"])\ndef test_a(text: str) -> None:\n    assert text in err',
    '@mark.parametrize(("word", "text"), [("a", "{}")])\ndef test_a(word, text) -> None:\n    assert text in err',
]


def test_no_assertion_compares_a_sentence() -> None:
    tests = Path(__file__).parent
    files = [*tests.rglob("*.py")]
    assert len(files) > 50
    found = [
        f"{file.relative_to(tests)}:{line}: {words}" for file in files for line, words in compared(file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize("code", COMPARES)
def test_a_planted_sentence_in_an_assertion_is_found(code: str) -> None:
    assert [words for _, words in compared(code.format(SENTENCE))] == [SENTENCE]
    for fine in (
        "the sky is",
        "dlrun train trainer.epochs=3",
        "`dlrun show it all now`",
        "is .*a.* b",
        "adam, sgd, muon, nadam",
    ):
        assert compared(code.format(fine)) == []


def test_test_files_import_nothing_from_each_other(tmp_path: Path) -> None:
    assert borrowed(Path(__file__).parent) == []
    (tmp_path / "data").mkdir()
    plant(tmp_path / "data/test_a.py", "from data.test_b import x\nimport conftest")
    plant(tmp_path / "data/test_b.py", "x = 1")
    assert borrowed(tmp_path) == ["data/test_a.py: data.test_b", "data/test_a.py: conftest"]
