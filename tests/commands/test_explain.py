"""`dlrun explain`: every key has a comment, what is said to set a key does, and mistakes are one line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dlrun.config import practices
from dlrun.config.compose import builtin_conf, composer
from dlrun.config.options import PRESETS, Options
from dlrun.config.practices import PRACTICES, cited, without_ids
from dlrun.config.sources import Sources
from support.commands import Outcome, without_torch
from support.stored import write

TESTS = Path(__file__).parents[1]

OPTIONS = Options([builtin_conf()])
GROUPS = OPTIONS.groups()
EVERY = [("", "train"), *((group, name) for group in GROUPS if group != PRESETS for name in OPTIONS.names(group))]
COMMON = ("_target_", "_partial_")  # the same in every option; explained by the command itself


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_every_key_of_every_built_in_option_has_a_comment(group: str, name: str) -> None:
    keys = {k: one for k, one in OPTIONS.keys(group, name).items() if one.value and k.rpartition(".")[2] not in COMMON}
    assert [k for k, one in keys.items() if len(without_ids(one.comment)) < 8] == []


@pytest.mark.parametrize(("group", "name"), [*EVERY[1:], *((PRESETS, name) for name in OPTIONS.names(PRESETS))])
def test_every_option_names_its_command_and_a_practice(group: str, name: str) -> None:
    option = OPTIONS.option(group, name)
    assert option is not None
    what, _, command = option.title.partition(": dlrun train ")
    assert what
    assert cited(command)
    words = command.partition(" (")[0].split()
    default = OPTIONS.option("", "train").chosen[group].value  # type: ignore[union-attr]
    assert f"{group}={name}" in words or name == default


def test_every_group_has_a_description() -> None:
    sources = Sources(OPTIONS)
    assert [group for group in [*GROUPS, "run", "sweep"] if not sources.about(group)] == []


def test_each_practice_has_a_command_and_a_test_that_names_it(dlrun: Callable[..., Outcome]) -> None:
    page = dlrun("explain", "practices").out
    assert len(PRACTICES) == 72
    assert all(
        re.search(rf"^  {name} ", page, re.M) and f"dlrun {practices.COMMANDS[name]}\n" in page for name in PRACTICES
    )
    others = (file for file in TESTS.rglob("test_*.py") if file != Path(__file__))
    named = {name for file in others for name in cited(file.read_text())}
    assert sorted(PRACTICES.keys() - named) == []


def test_practices_that_are_cited_exist() -> None:
    assert cited("x (C1-C3, D10) y (R5)") == ["C1", "C2", "C3", "D10", "R5"]
    assert cited("x (0 = never), (Jordan 2024)") == []
    for group, name in EVERY:
        for one in OPTIONS.keys(group, name).values():
            ids = re.findall(r"\(([DMORCBSE]\d+)", one.comment)
            assert set(ids) <= set(PRACTICES)
            assert set(ids) <= set(cited(one.comment))


COMMANDS = {
    "defaults": [],
    "options": ["optimizer=nesterov", "scheduler=multi_step", "model=resnet20", "augment=affine", "search=staged"],
    "values": ["optimizer.lr=0.5", "trainer.epochs=7", "++seed=3", "+experiment=quick"],
    "preset": ["experiment=quick", "trainer.epochs=7"],
    "preset with options": ["experiment=cifar10_speedrun", "model=cnn"],
    "user": ["optimizer=mine", "regularizer=both"],
    "user's root": ["--config-name", "root", "experiment=quick"],
    "user's preset": ["experiment=own"],
}


@pytest.fixture
def own(here: Path) -> Path:
    """A folder with options of the user's own, here."""
    write(here / "conf/optimizer/mine.yaml", "defaults: [sgd, _self_]\nmomentum: 0.5\nper_layer:\n  head: {lr: 0.2}\n")
    write(here / "conf/optimizer/adam.yaml", "_target_: torch.optim.Adam\nlr: 0.125  # faster\n")
    write(here / "conf/regularizer/both.yaml", "defaults:\n  - l1\n  - l2\nl2: 0.5\n")
    write(here / "conf/root.yaml", "defaults:\n  - train\n  - override model: mlp\n  - _self_\nmodel: {}\nseed: 7\n")
    preset = "# @package _global_\ndefaults:\n  - quick\n  - override /loss: hinge\nseed: 9\nmodel:\n  depth: 4\n"
    write(here / "conf/experiment/own.yaml", preset)
    return here


@pytest.mark.sampled(2)
@pytest.mark.parametrize("words", COMMANDS.values(), ids=list(COMMANDS))
def test_values_are_those_that_hydra_composes(own: Path, words: list[str]) -> None:
    root = words[1] if words[:1] == ["--config-name"] else "train"
    overrides = words[2:] if root != "train" else words
    with composer({"--config-name": root}) as made:
        plain = made.config(made.parse([w.removeprefix("+") if "experiment" in w else w for w in overrides]))
    sources = Sources(Options(root=root), overrides)
    chosen = {group: one.option for group, one in sources.choices.items() if not group.startswith("hydra/")}
    assert chosen == plain["choices"]
    shown = OmegaConf.create({k: v for k, v in plain.items() if k in ("seed", "trust")})
    for key, one in sources.keys().items():
        if not key.startswith("hydra."):
            OmegaConf.update(shown, key, _loaded(one.value), force_add=True)
    assert OmegaConf.to_container(shown, resolve=True) == {k: v for k, v in plain.items() if k != "choices"}


def _loaded(text: str) -> Any:
    loaded: Any = OmegaConf.to_container(OmegaConf.create(f"x: {text}"))
    return loaded["x"]


def facts(outcome: Outcome) -> dict[str, str]:
    """The rows below the explanation of a key, each by its name."""
    assert (outcome.code, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines())) <= 80
    rows = re.sub(r"\n {14}", " ", outcome.out)
    return dict(re.findall(r"^  (type|allowed|default|set by|follows|practice) +(.*)$", rows, re.MULTILINE))


def test_a_key(dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("explain", "optimizer.momentum", "optimizer=nesterov")
    found = facts(outcome)
    assert outcome.out.startswith("optimizer.momentum=0.9\n")
    assert OPTIONS.keys("optimizer", "nesterov")["optimizer.momentum"].comment[1:] in " ".join(outcome.out.split())
    rule = OPTIONS.keys("optimizer", "nesterov")["optimizer.momentum"].rule()
    assert rule is not None
    assert (found["allowed"], found["default"]) == (rule.expected, "0.9")
    assert "optimizer=nesterov" in found["set by"]
    assert "conf/optimizer/nesterov.yaml, line 4" in found["set by"]
    assert found["practice"].startswith("O1: ")


def test_what_sets_a_key(own: Path, dlrun: Callable[..., Outcome]) -> None:
    assert "built-in conf/train.yaml" in facts(dlrun("explain", "seed"))["set by"]
    adam = facts(dlrun("explain", "optimizer.lr"))
    assert adam["set by"] == "optimizer=adam: conf/optimizer/adam.yaml, line 2"
    preset = facts(dlrun("explain", "trainer.epochs", "experiment=quick"))
    assert preset["default"].startswith("30 (built-in conf/trainer/default.yaml")
    assert "experiment=quick: built-in conf/experiment/quick.yaml, line 6" in preset["set by"]
    typed = dlrun("explain", "optimizer.lr", "optimizer=sgd", "optimizer.lr=0.5")
    assert typed.out.startswith("optimizer.lr=0.5\n")
    assert (facts(typed)["default"].split()[0], facts(typed)["set by"].split()[-1]) == ("0.1", "optimizer.lr=0.5")
    root = facts(dlrun("explain", "--config-name", "root", "seed"))
    assert (root["set by"], root["default"].split()[0]) == ("conf/root.yaml, line 6", "1")
    follows = facts(dlrun("explain", "scheduler.epochs", "trainer.epochs=7"))
    assert follows["follows"] == "trainer.epochs, now 7"
    assert "head: {lr: 0.2}" in dlrun("explain", "optimizer.per_layer", "optimizer=mine").out


def test_folders_named_in_the_words(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "more/model/mine.yaml", "# Mine\n_target_: mine.Net\nheads: 4  # [1..16] attention heads\n")
    for how in (["--config-dir", "more"], ["hydra.searchpath=[file://more]"]):
        outcome = dlrun("explain", "model.heads", "model=mine", *how)
        assert re.findall(r"\d+", facts(outcome)["allowed"]) == ["1", "16"]
        assert "Attention heads" in outcome.out


@pytest.mark.sampled(2)
@pytest.mark.parametrize("group", GROUPS)
def test_a_group_lists_its_options_and_the_keys_of_the_chosen_one(dlrun: Callable[..., Outcome], group: str) -> None:
    for option in OPTIONS.names(group):
        outcome = dlrun("explain", group, f"{group}={option}")
        assert (outcome.code, outcome.err) == (0, "")
        lines = outcome.out.splitlines()
        assert max(map(len, lines)) <= 80
        listed = [line[2:].split()[:2] for line in lines if line.startswith(("    ", "  * ")) and line[4:5].strip()]
        names = [words[1] if words[0] == "*" else words[0] for words in listed]
        assert [name for name in names if name in OPTIONS.names(group)] == OPTIONS.names(group)
        assert [words[1] for words in listed if words[0] == "*"] == [option]
        if group != PRESETS:
            for key in OPTIONS.keys(group, option):
                if key.rpartition(".")[2] not in COMMON:
                    assert f"  {key}=" in outcome.out
    assert dlrun("explain", f"{group}={OPTIONS.names(group)[0]}").code == 0  # an option instead of its group


@pytest.mark.slow
def test_every_key_is_explained_within_80_columns(dlrun: Callable[..., Outcome]) -> None:
    for group, name in EVERY[1:]:
        for key in OPTIONS.keys(group, name):
            assert facts(dlrun("explain", key, f"{group}={name}"))["default"]


def test_a_key_of_an_option_that_is_not_chosen(dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("explain", "objective.temperature")
    assert "objective=supervised" in outcome.out
    assert "objective=distill" in outcome.out
    assert "set by" not in facts(outcome)
    many = dlrun("explain", "model.width", "model=torchvision").out
    assert {f"model={n}" for n in ("cnn", "mlp", "resnet18", "resnet56")} <= set(re.split(r"[\s,;]+", many))


def test_without_words_it_says_how_to_use_it(dlrun: Callable[..., Outcome]) -> None:
    for words in ([], ["--help"], ["-h"]):
        outcome = dlrun("explain", *words)
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.startswith("usage: dlrun explain KEY|GROUP")
        assert [group for group in GROUPS if f"\n  {group} " not in outcome.out] == []
        assert max(map(len, outcome.out.splitlines())) <= 80
    assert "run.dir=null" in dlrun("explain", "run").out


MISTAKES = {
    "optimizer.momentm optimizer=sgd": "optimizer.momentum",
    "momentum": "optimizer.momentum",
    "optimizr": "optimizer=?",
    "nothing.like.this": "nothing.like.this",
    "seed optimizer=nesterv": "nesterov",
    "seed optimizer.lrr=3": "optimizer.lr",
    "seed optimizer.lr=-1": "optimizer.lr=-1: expected 0",
    "seed trainer.monitor=val_ac": "trainer.monitor=val_acc",
    "seed trainer": "trainer",
    "seed experiment=quik": "quick",
    "seed --config-name nowhere": "conf/nowhere.yaml",
    "seed --config-dir nowhere": "--config-dir nowhere",
    "seed -m": "--multirun",
    "seed =3": "=3: expected key=value",
}


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    commands = [("explain", *line.split()) for line in MISTAKES]
    for line, outcome in zip(MISTAKES, without_torch(commands, tmp_path), strict=True):
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1), line
        assert MISTAKES[line] in outcome.err


def test_it_waits_for_neither_hydra_nor_torch(tmp_path: Path) -> None:
    code = "import sys; from dlrun.commands import explain; explain.main(['seed'])\n"
    code += "print({'hydra', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_completion(dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        outcome = dlrun("-sc", "query=bash")
        assert (outcome.code, outcome.err) == (0, "")
        return outcome.out.split()

    assert {"optimizer", "optimizer.lr", "optimizer.momentum", "optimizer.betas"} <= set(ask("dlrun explain opt"))
    assert {*GROUPS, "seed", "objective.temperature"} <= set(ask("dlrun explain "))
    assert ask("dlrun explain objective.temp") == ["objective.temperature"]
    assert ask("dlrun explain model.width model=resnet1") == ["model=resnet18"]


def test_compose_and_explain_use_the_same_words_for_an_option_that_does_not_exist(
    here: Path, dlrun: Callable[..., Outcome]
) -> None:
    assert dlrun("explain", "seed", "model=resnt18").err == dlrun("train", "model=resnt18").err
