"""README.md and the benchmarks' page name what exists: verbs, groups, options, flags, checks, files and numbers."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dlrun import cli
from dlrun.commands import init
from dlrun.config.check_names import check_names
from dlrun.config.compose import builtin_conf, composer
from dlrun.config.practices import COMMANDS
from dlrun.search import space
from support.commands import Outcome
from support.stored import write

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "tests/benchmarks/README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def commands() -> list[str]:
    """Every command of the README: the lines of its blocks that begin with dlrun or a prompt, and `dlrun …` in text."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, re.M | re.S)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    text = re.sub(r"^```\w*\n.*?^```", "", README, flags=re.M | re.S)
    found = [line for line in lines if line.startswith("dlrun ")] + re.findall(r"`(dlrun [^`]+)`", text)
    return sorted({line.split(" #")[0].strip() for line in found})


def test_every_verb_has_a_row_and_every_row_a_verb() -> None:
    named: set[str] = set()
    for row in section("Verbs").splitlines():
        if row.startswith("| `"):
            named |= set(re.findall(r"`dlrun (\w+)", row.split(" | ")[0]))
    assert named == set(cli.VERBS)


def test_groups_and_options_are_those_of_conf() -> None:
    listed = {
        cells[0].strip("` "): set(re.findall(r"`(\w+)`", cells[1]))
        for row in section("Groups").splitlines()
        if row.startswith("| `") and len(cells := row.strip("| ").split(" | ")) == 2
    }
    conf = builtin_conf()
    there = {
        folder.relative_to(conf).as_posix(): {file.stem for file in folder.glob("*.yaml")} - {"mine"}  # dlrun init
        for folder in [*conf.iterdir(), conf / "hydra/launcher"]
        if folder.is_dir() and folder.name != "hydra"
    }
    assert listed == there


def test_the_number_of_checks_is_right() -> None:
    counts = re.findall(r"(\d+) checks", README)
    assert counts
    assert set(counts) == {str(len(check_names()))}


@pytest.fixture
def furnished(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README's commands name."""
    monkeypatch.delitem(sys.modules, "mynet", raising=False)  # that of another test
    for name in ("photos/train/cat/a.png", "photos/test/cat/b.png", "five-votes/ensemble.yaml", "train_images/a.png"):
        write(here / name, "")
    write(here / "train.csv", "id,label\na,cat\n")
    write(here / "mynet.py", "from torch import nn\n\n\nclass MyNet(nn.Flatten):\n    pass\n")
    for number in range(100):
        write(here / f"train-{number:03}.tar", "")
    np.savez(here / "data.npz", x=np.zeros((2, 8, 8)), y=np.zeros(2))
    np.save(here / "x.npy", np.zeros((2, 8, 8)))
    np.save(here / "y.npy", np.zeros(2))
    assert init.main([]) == 0
    return here


MISTAKES = dict(re.findall(r"^\$ (dlrun train .*)\n(dlrun: .*)$", README, re.M))
COMPOSED = [
    line for line in commands() if line.split()[1] in cli.COMPOSED and line not in MISTAKES and "--from" not in line
]


@pytest.mark.parametrize("line", COMPOSED)
def test_every_command_composes(furnished: Path, line: str) -> None:
    verb, *words = shlex.split(line)[1:]
    for extra, package in (("shards", "webdataset"), ("huggingface", "datasets")):
        if f"dataset={extra}" in words and find_spec(package) is None:
            pytest.skip(f"the extra {extra} is not installed")
    if verb in ("show", "study"):
        words = words[1:]
    if "--explain" in words:
        assert words.pop(words.index("--explain") + 1) in check_names()
    flags = {"--explain", "--help", "--cfg", "job", "…"}
    words = [word for word in words if word not in flags]
    with composer({}, words) as made:
        if "-m" not in words and verb != "ladder":
            assert made.config(made.parse(words))
            return
        words = [word for word in words if word != "-m"]
        axes, fixed = space.read(made, words)
        assert axes
        space.check(made, axes, fixed, False)


DONE = [f"dlrun {one}" for one in COMMANDS.values() if one.split()[0] in cli.COMPOSED]
DONE = [line for line in DONE if "search=default" not in line and "five-votes" not in line]  # need no axis, or a folder


@pytest.mark.sampled(4)
@pytest.mark.parametrize("line", DONE)
def test_commands_of_the_page_of_practices_compose(furnished: Path, line: str) -> None:
    test_every_command_composes(furnished, line)


OTHERS = [line for line in commands() if line.split()[1] not in cli.COMPOSED]
OTHERS += [f"dlrun {one}" for one in COMMANDS.values() if one.split()[0] not in cli.COMPOSED and "--" in one]


@pytest.mark.parametrize("line", OTHERS)
def test_every_flag_of_the_other_commands_exists(line: str, dlrun: Callable[..., Outcome]) -> None:
    verb, *words = shlex.split(line)[1:]
    flags = [word.split("=")[0] for word in words if word.startswith("--")]
    if verb.startswith("-"):
        return
    assert verb in cli.VERBS
    said = dlrun(verb, "--help")
    assert said.code == 0
    assert [flag for flag in flags if flag not in said.out] == []


def test_flags_in_sentences_exist(dlrun: Callable[..., Outcome]) -> None:
    helps = {verb: dlrun(verb, "--help").out for verb in ("compare", "ensemble")}
    for verb, title in (("compare", "Verbs"), ("ensemble", "Ensembles and distillation")):
        text = section(title)
        rows = [row for row in text.splitlines() if f"dlrun {verb}" in row] if title == "Verbs" else [text]
        flags = {flag for row in rows for flag in re.findall(r"(?<=`)--[a-z-]+", row)}
        assert flags
        assert not {flag for flag in flags if flag not in helps[verb]}


def test_the_mistake_is_answered_as_printed(here: Path, dlrun: Callable[..., Outcome]) -> None:
    ((line, answer),) = MISTAKES.items()
    done = dlrun(*shlex.split(line)[1:])
    assert (done.code, done.err.strip()) == (2, answer)


@pytest.mark.parametrize("page", [README, BENCHMARKS], ids=["README", "benchmarks"])
def test_links_and_files_exist(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / link).exists(), link
    for file in set(re.findall(r"\b(bench_\w+\.py|same_results\.py)", page)):
        assert (ROOT / "tests/benchmarks" / file).exists(), file


def test_every_benchmark_is_on_the_page() -> None:
    missing = [f.name for f in (ROOT / "tests/benchmarks").glob("bench_*.py") if f.name not in BENCHMARKS]
    assert missing == []


def test_numbers_measured_are_those_of_the_benchmarks_page() -> None:
    numbers = {n for n in re.findall(r"\d[\d,.]*\d", section("Measured")) if n not in ("32",)}
    assert len(numbers) > 8
    assert {n for n in numbers if n not in BENCHMARKS} == set()
