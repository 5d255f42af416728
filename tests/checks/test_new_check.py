"""A check is one file: planted in a copy of the package, it runs, is named, kept and skipped like all the others."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dlrun.checks.runner import CHECKS
from dlrun.config.check_names import check_names
from dlrun.config.compose import builtin_conf
from support import warm
from support.commands import Outcome

PLANTED = '''"""Whether there is a validation split at all."""

from __future__ import annotations

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome


@check(
    order=61,  # right behind outputs
    needs_outputs=True,
)
def validation_size(exp: Experiment) -> Verdict:
    """Count the validation samples."""
    size = len(exp.data.val)
    return Verdict(Outcome.PASS if size else Outcome.FAIL, str(size), "1 or more", "counted")
'''
NET = """from torch import nn


class Three(nn.Sequential):
    def __init__(self, image_size):
        super().__init__(nn.Flatten(), nn.Linear(image_size**2, 3))
"""
SMALL = ("dataset.limit=120", "trainer.threads=1", "trainer.device=cpu")


def test_the_names_of_the_config_are_those_that_the_runner_runs_in_its_order() -> None:
    assert check_names() == tuple(CHECKS)
    assert len(set(check_names())) == len(check_names()) > 15


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has one check more, and a model of three logits."""
    folder = tmp_path_factory.mktemp("copied")
    shutil.copytree(builtin_conf().parent / "dlrun", folder / "dlrun", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(builtin_conf(), folder / "dlrun" / "conf")  # as in a wheel
    (folder / "dlrun" / "checks" / "validation_size.py").write_text(PLANTED)
    (folder / "threenet.py").write_text(NET)
    return folder


def command(folder: Path, *words: str) -> Outcome:
    """Run dlrun as it stands in the folder."""
    return warm.call(folder, *words, PYTHONPATH=str(folder))


def checked(folder: Path, *words: str) -> dict[str, dict[str, Any]]:
    """The rows of `dlrun check` by the name of the check."""
    done = command(folder, "check", "--json", *SMALL, *words)
    assert done.out, done.err
    return {row["check"]: row for row in json.loads(done.out)}


def test_a_planted_check_runs_in_its_place_stands_in_checks_csv_and_is_run_once_for_a_setup(copied: Path) -> None:
    done = command(copied, "train", *SMALL, "trainer.epochs=1", "model.width=4", "check.only=[outputs,validation_size,loss]", "trainer.report=false", "run.dir=run")  # fmt: skip  # noqa: E501
    assert done.code == 0, done.err
    with open(copied / "run" / "checks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["check"] for row in rows]
    assert names[names.index("outputs") + 1] == "validation_size"
    assert [row["status"] for row in rows if row["check"] == "validation_size"] == ["pass"]
    again = checked(copied, "model.width=4", "check.only=[validation_size]")
    assert list(again) == ["validation_size"]
    assert again["validation_size"]["message"].endswith(" ago")
    fresh = checked(copied, "model.width=4", "check.only=[validation_size]", "check.fresh=true")
    assert fresh["validation_size"]["message"] == "counted"


def test_a_planted_check_is_named_where_a_name_is_mistyped(copied: Path) -> None:
    done = command(copied, "check", *SMALL, "check.only=[typo]")
    assert done.code == 2
    assert "outputs, validation_size, " in done.err
    done = command(copied, "check", *SMALL, "check.skip=[validation_sise]")
    assert done.code == 2
    assert done.err.strip().endswith("did you mean validation_size?")


def test_a_planted_check_that_needs_outputs_is_skipped_when_they_are_unusable(copied: Path) -> None:
    words = ("model=custom", "model._target_=threenet.Three", "trust=[threenet]")
    found = checked(copied, *words, "check.only=[outputs,validation_size]")
    assert {name: row["status"] for name, row in found.items()} == {"outputs": "fail", "validation_size": "skip"}
    assert "`outputs`" in found["validation_size"]["message"]
