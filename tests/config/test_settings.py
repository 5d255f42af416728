"""Settings: typed as the YAML has them, read-only, complete for configs of older versions, stored as they came."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from typing import Any, get_type_hints

import pytest
import yaml

from dlrun.config.compose import builtin_conf
from dlrun.config.settings import Check, Settings, Trainer
from support.composed import composed

KINDS = {"trainer": Trainer, "check": Check}


@pytest.mark.parametrize("group", KINDS)
def test_fields_are_the_keys_of_the_yaml_with_the_same_defaults(group: str) -> None:
    keys: dict[str, Any] = yaml.safe_load((builtin_conf() / group / "default.yaml").read_text())
    keys = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
    defaults = dataclasses.asdict(KINDS[group]())
    assert defaults == keys
    assert list(defaults) == list(keys)
    assert {key: type(value) for key, value in defaults.items()} == {key: type(value) for key, value in keys.items()}
    hints = get_type_hints(KINDS[group])
    assert all(isinstance(value, getattr(hints[key], "__origin__", hints[key])) for key, value in defaults.items())


def test_a_composed_config_comes_out_as_it_would_be_stored() -> None:
    cfg = composed("trainer.epochs=7", "check.only=[loss,gradient]", "trainer.clip_norm=1", "optimizer.lr=0.25")
    plain = cfg.plain
    assert plain["trainer"]["epochs"] == cfg.trainer.epochs == 7
    assert cfg.check.only == ("loss", "gradient")
    assert plain["check"]["only"] == ["loss", "gradient"]
    assert (cfg.optimizer["lr"], cfg.seed, cfg.trust, cfg.run_dir) == (0.25, 1, (), None)
    assert cfg.choices["model"] == "cnn"
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert {"search", "sweep"} <= plain.keys()


def test_a_number_that_is_stored_as_whole_is_a_float_where_the_default_is_one() -> None:
    cfg = Settings.of({"trainer": {"clip_norm": 1, "epochs": 2}, "check": {"budget": 5}})
    assert (cfg.trainer.clip_norm, cfg.check.budget) == (1.0, 5.0)
    assert isinstance(cfg.trainer.clip_norm, float)
    assert isinstance(cfg.trainer.epochs, int)


def test_what_an_older_config_lacks_has_the_default_and_what_a_newer_one_adds_is_kept() -> None:
    stored = {"seed": 3, "trainer": {"epochs": 4, "warp": 9}, "optimizer": {"lr": 0.1}, "novel": {"a": 1}}
    cfg = Settings.of(stored)
    assert cfg.trainer == Trainer(epochs=4)
    assert cfg.check == Check()
    assert (dict(cfg.logger), dict(cfg.augment), cfg.trust) == ({}, {}, ())
    assert cfg.plain == stored
    assert cfg.changed(trainer={"stop_after": 2}).plain["trainer"] == {"epochs": 4, "warp": 9, "stop_after": 2}


def test_nothing_changes_settings() -> None:
    stored: dict[str, Any] = {"seed": 1, "trainer": {"epochs": 2}, "optimizer": {"betas": [0.9, 0.99]}}
    cfg = Settings.of(stored)
    stored["trainer"]["epochs"] = 9
    stored["optimizer"]["betas"].append(1)
    cfg.plain["optimizer"]["betas"].append(2)
    assert cfg.plain == {"seed": 1, "trainer": {"epochs": 2}, "optimizer": {"betas": [0.9, 0.99]}}
    for name in ("seed", "trainer"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(cfg, name, 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.trainer.epochs = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        cfg.optimizer["lr"] = 1  # type: ignore[index]
    other = cfg.changed(trainer={"epochs": 5}, seed=8)
    assert (other.trainer.epochs, other.seed) == (5, 8)
    assert (cfg.trainer.epochs, cfg.seed) == (2, 1)


@pytest.mark.parametrize("again", [lambda cfg: pickle.loads(pickle.dumps(cfg)), copy.deepcopy], ids=["pickle", "copy"])
def test_settings_travel_to_other_processes(again: Any) -> None:
    cfg = composed("trainer.epochs=3", "model=mlp")
    assert again(cfg) == cfg
    assert again(cfg).plain == cfg.plain


@pytest.mark.parametrize(("stop_after", "last"), [(0, 5), (3, 3), (5, 5), (9, 5)])
def test_the_last_epoch_is_that_of_the_pause_or_the_schedule(stop_after: int, last: int) -> None:
    assert Trainer(epochs=5, stop_after=stop_after).last_epoch == last


def test_settings_need_neither_torch_nor_omegaconf() -> None:
    text = "import sys; import dlrun.config.settings; print({'torch', 'omegaconf', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
