"""A sweep of somebody else: its plan adds no trust, no folders of options and no commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.commands import Outcome
from support.hostile import MODULE, change, some, watched
from support.stored import write

FIXED = ["dataset.limit=60", "trainer.report=false", "trainer.epochs=1", "check=none"]
OWN = ["model=custom", f"model._target_={MODULE}.Net"]
AXIS = {"words": [f"[{MODULE}]"], "low": 0.0, "high": 0.0, "log": False, "whole": False, "group": False}


def axes(*keys: str) -> dict[str, Any]:
    return {"fixed": FIXED + OWN, "more": [{**AXIS, "key": key} for key in keys]}


def fixed(*words: str, **more: Any) -> dict[str, Any]:
    return {"fixed": [*FIXED, *OWN, *words], **more}


PLANS: dict[str, dict[str, Any]] = {
    "axis trust": axes("trust"),
    "axis +trust": axes("+trust"),
    "axis ++trust": axes("++trust"),
    "axis trust.0": axes("trust.0"),
    "axis trust@": axes("trust@_global_"),
    "axis searchpath": axes("hydra.searchpath"),
    "axis setup": axes("hydra.launcher.setup"),
    "axis in a round only": {**axes("trust"), "rounds only": True},
    "trust": fixed(f"trust=[{MODULE}]"),
    "+trust": fixed(f"+trust=[{MODULE}]"),
    "++trust": fixed(f"++trust=[{MODULE}]"),
    "trust of keys": fixed(f"trust={{{MODULE}:1}}"),
    "trust by interpolation": fixed(f"run.tags=[{MODULE}]", "trust=${run.tags}"),
    "trust with a space": fixed(f" trust=[{MODULE}]"),
    "two words in one": fixed(f"run.note=x trust=[{MODULE}]"),
    "searchpath of a file": fixed("hydra.searchpath=[file://{here}/theirs]", "experiment=evil"),
    "searchpath of a package": fixed(f"hydra.searchpath=[pkg://{MODULE}]"),
    "+searchpath": fixed(f"+hydra.searchpath=[pkg://{MODULE}]"),
    "setup": fixed("hydra/launcher=submitit_slurm", "hydra.launcher.setup=[touch PWNED]"),
    "+setup": fixed("hydra/launcher=submitit_slurm", "+hydra.launcher.setup=[touch PWNED]"),
    "a launcher as one value": fixed("+hydra.launcher={setup: [touch PWNED]}"),
    "parameters": fixed("hydra/launcher=submitit_slurm", "hydra.launcher.additional_parameters={wrap: touch PWNED}"),
    "a line break": fixed("hydra/launcher=submitit_slurm", 'hydra.launcher.partition="a\ntouch PWNED"'),
    "a cluster elsewhere": fixed("hydra/launcher=ray", "hydra.launcher.address=evil:1"),
    "a target": fixed(),
    "a target of the system": {"fixed": [*FIXED, "model=custom", "model._target_=posix.system", "+model.command=x"]},
    "packages": fixed("objective=distill", "objective.teacher=run", "+objective.packages=[posix]"),
    "a folder of options": fixed("experiment=evil", flags={"--multirun": None, "--config-dir": "{here}/theirs"}),
    "a config elsewhere": fixed(flags={"--multirun": None, "--config-name": "../theirs/root"}),
    "reads the environment": fixed("run.note=${oc.env:HOME}"),
    "an axis that reads the environment": {"fixed": FIXED, "more": [{**AXIS, "key": "seed", "words": ["${oc.env:X}"]}]},
    "words that are no list": fixed(flags=[1]),
}


@pytest.fixture
def planned(theirs: Path) -> Callable[[str], None]:
    """Write a plan into the unfinished sweep, beside options that trust a package."""
    evil = f"trust: [{MODULE}]\nmodel: {{_target_: {MODULE}.Net}}\n"
    write(theirs / "theirs/experiment/evil.yaml", f"# @package _global_\n{evil}")
    write(theirs / "theirs/root.yaml", f"defaults: [train, _self_]\n{evil}")

    def plan(name: str) -> None:
        found = yaml.safe_load((theirs / "killed/sweep.yaml").read_text())
        asked = yaml.safe_load(yaml.safe_dump(PLANS[name]).replace("{here}", str(theirs)))
        more, only = asked.pop("more", []), asked.pop("rounds only", False)
        rounds = [{**one, "axes": [*one["axes"], *more]} for one in found["rounds"]]
        own = found["axes"] if only else [*found["axes"], *more]
        change(theirs / "killed/sweep.yaml", axes=own, rounds=rounds, **asked)

    return plan


@pytest.mark.parametrize("name", some(PLANS, 4))
def test_a_plan(name: str, planned: Callable[[str], None], harmless: Callable[..., Outcome]) -> None:
    planned(name)
    done = harmless("resume", "killed")
    assert done.code == 2
    assert done.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["axis trust", "searchpath of a file", "setup"])
def test_commands_that_only_read(name: str, planned: Callable[[str], None], harmless: Callable[..., Outcome]) -> None:
    planned(name)
    for words in (
        "compare killed",
        "list killed",
        "report killed",
        "diff killed/0000 killed/0001",
        "resume killed/0000",
    ):
        harmless(*words.split())


def test_the_same_sweep_typed_again(planned: Callable[[str], None], harmless: Callable[..., Outcome]) -> None:
    planned("axis trust")
    words = [*FIXED, *OWN, "sweep.dir=killed", "optimizer.lr=0.01,0.003"]
    assert harmless("train", "-m", *words, f"trust=[{MODULE}x]").code == 2


def test_what_a_sweep_needs_is_asked_for_and_then_accepted(theirs: Path, dlrun: Callable[..., Outcome]) -> None:
    """The message has the words to type, which are then all that is needed."""
    write(theirs / "more/model/wide.yaml", "defaults: [mlp]\nwidth: 8\n")
    for flags, needed in (
        ({"--config-dir": "more"}, "--config-dir more"),
        ({}, "'hydra.searchpath=[file://more]'"),
    ):
        given = [] if flags else [needed.strip("'")]
        change(theirs / "killed/sweep.yaml", fixed=[*FIXED, "model=wide", *given], flags={"--multirun": None, **flags})
        done = dlrun("resume", "killed")
        assert done.code == 2
        assert done.err.strip().endswith(f"dlrun resume killed {needed}")
    assert "no such option" in dlrun("resume", "killed", "hydra.searchpath=[file://sweep]").err
    change(theirs / "killed/sweep.yaml", fixed=[*FIXED, "model=wide", "optimizer.eps=-1"])
    assert "optimizer.eps" in dlrun("resume", "killed", "hydra.searchpath=[file://more]").err  # what comes after


def test_the_environment_is_read_for_typed_words_only(theirs: Path, dlrun: Callable[..., Outcome]) -> None:
    reads = "run.note=${oc.env:HOME}"
    change(theirs / "killed/sweep.yaml", fixed=[*FIXED, "model=mlp", reads, "optimizer.eps=-1"])
    done = dlrun("resume", "killed")
    assert done.code == 2
    assert done.err.strip().endswith(f"dlrun resume killed '{reads}'")
    assert "optimizer.eps" in dlrun("resume", "killed", reads).err  # what comes after


def test_typed_trust_is_for_typed_packages(theirs: Path, dlrun: Callable[..., Outcome]) -> None:
    change(theirs / "killed/sweep.yaml", fixed=[*FIXED, *OWN, f"trust=[{MODULE}]"])
    with watched(theirs) as seen:
        assert dlrun("resume", "killed", "trust=[other]").code == 2
    assert seen.bad == []
    done = dlrun("resume", "killed")
    assert f"trust=[{MODULE}]" in done.err
