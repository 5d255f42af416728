"""Each guard by itself: most payloads would be stopped by the next one as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrun.config import hydra_files, targets, trust
from dlrun.config.compose import compose, composer
from dlrun.config.own_options import refuse_unsafe
from dlrun.errors import UserError
from dlrun.run.provenance import origin
from dlrun.search.plan import Plan
from support.hostile import EVIL, MODULE, watched
from support.stored import write

TYPED = [
    f"trust=[{MODULE}]",
    f"+trust=[{MODULE}]",
    f"++trust=[{MODULE}]",
    f"trust.0={MODULE}",
    f"hydra.searchpath=[pkg://{MODULE}]",
    "hydra.launcher.setup=[x]",
    "+hydra.launcher.setup=[x]",
    "hydra.launcher.additional_parameters={a: b}",
    "+hydra.launcher.additional_parameters.wrap=x",
    "hydra.launcher.address=evil:1",
]


@pytest.mark.parametrize("word", TYPED)
def test_a_word_counts_only_if_it_was_typed(word: str, here: Path) -> None:
    with composer({}) as stored, pytest.raises(UserError, match=r"typed"):
        stored.parse([word])
    with composer({}, [word]) as made:
        assert made.parse([word])


def test_the_config_has_the_typed_packages_and_no_others(here: Path) -> None:
    for typed, expected in (([], []), (["trust=[a,b.c]"], ["a", "b.c"]), (["trust=['a']", "trust=[b]"], ["a", "b"])):
        with composer({}, typed) as made:
            assert made.config(made.parse([]))["trust"] == expected
    for word in ("trust=[a b]", "trust=[${run.tags}]", "trust={a: 1}", "trust=[../a]", "trust=[a/b]", "trust=[a.]"):
        with pytest.raises(UserError, match=r"^trust="), composer({}, [word]):
            pass


@pytest.mark.parametrize("text", [f"[{MODULE}]", f"{{{MODULE}: 1}}", MODULE, "${run.tags}"])
def test_files_add_no_trust(text: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = yaml.safe_load(f"trust: {text}\n")
    with pytest.raises(UserError, match=r"^x\.yaml: trust"):
        refuse_unsafe(Path("x.yaml"), found)
    monkeypatch.setattr(hydra_files, "refuse_unsafe", lambda file, found: None)
    write(here / "conf/experiment/mine.yaml", f"run: {{tags: [{MODULE}]}}\ntrust: {text}\n")
    with pytest.raises(UserError, match=r"^trust|ConfigTypeError"):
        compose("experiment=mine")


@pytest.mark.parametrize(
    "found",
    [
        {"hydra": {"searchpath": ["file:///"]}},
        {"hydra": "${there}", "there": {"searchpath": ["file:///"]}},
        {"hydra": ["searchpath"]},
        {"hydra.searchpath": ["file:///"]},
    ],
    ids=str,
)
def test_files_add_no_search_path(found: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^x\.yaml: hydra"):
        refuse_unsafe(Path("x.yaml"), found)


@pytest.mark.parametrize(
    "key", ["trust", "+trust", "trust.0", "trust@x", "hydra/launcher", "hydra.searchpath", "run.dir"]
)
@pytest.mark.parametrize("place", ["axes", "rounds"])
def test_a_plan_has_no_axis_that_all_trials_share(key: str, place: str) -> None:
    axis = {"key": key, "words": ["x"], "low": 0.0, "high": 0.0, "log": False, "whole": False, "group": False}
    good = {**axis, "key": "seed"}
    one = {"stage": 1, "epochs": 0, "first": 0, "new": 1, "axes": [good, *([axis] if place == "rounds" else [])]}
    plan = {
        "fixed": [],
        "axes": [good, *([axis] if place == "axes" else [])],
        "search": {},
        "flags": {},
        "rounds": [one],
    }
    with pytest.raises(UserError, match=r"shared"):
        Plan.recorded(plan)


def test_launchers_of_files_start_nothing() -> None:
    for composed in ({"setup": ["x"]}, {"additional_parameters": {"a": 1}}, {"address": "evil:1"}, {"setup": "${x}"}):
        with pytest.raises(UserError, match=next(iter(composed))):
            trust.refuse_commands({}, composed, [])
    for launcher in (
        {"partition": "a\nb"},
        {"qos": "\x1b[1m"},
        {"additional_parameters": {"a\n": 1}},
        {"setup": ["a\r"]},
    ):
        with pytest.raises(UserError, match=r"hydra\.launcher"):
            trust.refuse_commands(launcher, {}, [])
    trust.refuse_commands({"setup": ["module load cuda"]}, {"setup": []}, ["hydra.launcher.setup=[module load cuda]"])


def test_what_a_name_resolves_to_counts(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"refused"):
        targets.check_targets({"model": EVIL}, [])
    monkeypatch.setattr(targets, "_check_name", lambda key, name, trust: None)
    with watched(theirs) as seen:
        for node in (EVIL, {"_target_": f"{MODULE}.Net"}, {"_target_": "torch.nn.modules.module.functools.partial"}):
            with pytest.raises(UserError):
                targets.instantiate(node, [], "model")
    assert seen.bad == []


def test_the_record_of_a_run_starts_no_program(here: Path) -> None:
    cfg = compose()
    with watched(here) as seen:
        assert origin(cfg)["git"] is None
    assert seen.bad == []
