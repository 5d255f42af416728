"""What is recorded of a config: the words typed, and the default of every key that differs from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlrun.config.defaults import changed
from support.composed import recorded
from support.stored import write


def test_nothing_typed_is_nothing_changed(here: Path) -> None:
    assert recorded() == {"typed": [], "changed": {}}


def test_a_default_is_that_of_the_chosen_option(here: Path) -> None:
    words = ["optimizer=sgd", "optimizer.lr=0.5", "trainer.epochs=7", "optimizer.per_layer={conv: {lr: 0.01}}"]
    assert recorded(*words) == {
        "typed": words,
        "changed": {
            "optimizer.lr": 0.1,  # of sgd; of adam it is 0.001
            "optimizer.per_layer.conv.lr": None,
            "trainer.epochs": 30,  # scheduler.epochs follows it, and is not listed
            "choices.optimizer": "adam",
        },
    }


def test_a_value_typed_as_it_is_by_default_is_not_changed(here: Path) -> None:
    assert recorded("optimizer.eps=1e-8", "optimizer.lr=1e-3", "scheduler.epochs=30")["changed"] == {}


def test_a_key_that_no_longer_follows_is_changed_from_what_it_would_follow(here: Path) -> None:
    assert recorded("trainer.epochs=5", "scheduler.epochs=9")["changed"] == {
        "trainer.epochs": 30,
        "scheduler.epochs": 5,
    }


def test_an_option_of_a_users_own_has_its_own_defaults(here: Path) -> None:
    write(here / "conf/optimizer/mine.yaml", "_target_: torch.optim.Adam\nlr: 0.125\nbetas: [0.5, 0.9]\n")
    assert recorded("optimizer=mine")["changed"] == {"choices.optimizer": "adam"}
    found = recorded("optimizer=mine", "optimizer.lr=0.25", "+optimizer.amsgrad=true")["changed"]
    assert found == {"optimizer.lr": 0.125, "optimizer.amsgrad": None, "choices.optimizer": "adam"}


def test_what_a_preset_sets_is_changed_from_the_options_it_picks(here: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - override /optimizer: sgd\noptimizer: {lr: 0.7}\nseed: 5\n"
    write(here / "conf/experiment/mine.yaml", text)
    assert recorded("experiment=mine", "seed=6") == {
        "typed": ["experiment=mine", "seed=6"],
        "changed": {"seed": 1, "optimizer.lr": 0.1, "choices.optimizer": "adam", "choices.experiment": None},
    }


@pytest.mark.parametrize("nested", [False, True])
def test_a_root_of_a_users_own_says_what_is_chosen_by_default(here: Path, nested: bool) -> None:
    builtin = Path(__file__).parents[2] / "conf/train.yaml"
    text = builtin.read_text().replace("model: cnn", "model: mlp").replace("seed: 1 ", "seed: 3 ")
    write(here / "conf" / ("below.yaml" if nested else "train.yaml"), text)
    if nested:
        write(here / "conf/train.yaml", "defaults:\n  - below\n  - _self_\n")
    assert recorded()["changed"] == {}
    assert recorded("model=cnn", "seed=1")["changed"] == {"seed": 3, "choices.model": "mlp"}


def test_defaults_that_follow_other_keys() -> None:
    config = {"a": {"b": 2, "c": 2, "d": "x"}, "e": 3}
    assert changed(config, {"a": {"b": 2, "c": "${.b}", "d": "${nowhere}"}, "e": "${a.b}"}) == {
        "a.d": "${nowhere}",
        "e": 2,
    }
    assert changed({"root": "data"}, {"root": "???"}) == {"root": None}
    follows = changed({"widths": [8, 16], "same": [8, 16], "other": [1]}, dict.fromkeys(("same", "other"), "${widths}"))
    assert json.dumps(follows) == '{"widths": null, "other": [8, 16]}'
