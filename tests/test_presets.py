"""The presets that train on any folder of images, untouched: experiment=scratch and experiment=fast (M2, O3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.config.compose import compose
from dlrun.errors import UserError
from support.commands import Outcome
from support.photos import root

__all__ = ["root"]  # a fixture

CHEAP = ("check=none", "trainer.threads=1", "trainer.report=false", "model.width=4", "dataset.image_size=16")


@pytest.mark.parametrize("preset", ["scratch", "fast"])
def test_a_preset_trains_on_a_folder(preset: str, root: Path, dlrun: Callable[..., Outcome]) -> None:
    short = "trainer.epochs=2" if preset == "scratch" else "trainer.hours=0.0003"
    done = dlrun("train", f"experiment={preset}", f"dataset.root={root}", short, "run.dir=run", *CHEAP)
    assert done.code == 0, done.err
    result = json.loads(Path("run/result.json").read_text())
    assert result["status"] == "completed"
    assert result["multi_crop"] == {"scratch": "mirror_scales", "fast": "mirror_larger"}[preset]
    assert result["epochs"] == 2 or preset == "fast"
    assert result["reason"].startswith("trainer.hours") == (preset == "fast")


def test_presets_take_other_data_and_models_whose_options_lack_their_keys(root: Path) -> None:
    cfg = compose("experiment=scratch", "dataset=digits", "model=cnn")
    assert "image_size" not in cfg.dataset
    assert "stem" not in cfg.model
    assert (cfg.choices["dataset"], cfg.choices["model"], cfg.choices["scheduler"]) == ("digits", "cnn", "one_cycle")
    assert cfg.trainer.epochs == compose("experiment=scratch", f"dataset.root={root}").trainer.epochs > 30
    assert compose("experiment=fast", f"dataset.root={root}").trainer.hours == 0.1
    with pytest.raises(UserError, match="image_size"):  # typed, it is a mistake as ever
        compose("experiment=scratch", "dataset=digits", "dataset.image_size=8")
