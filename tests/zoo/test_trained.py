"""Sound but unusual networks train, resume and are evaluated again from their weights (M3)."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support import unusual
from support.commands import Outcome

NETWORKS = {
    "log-probabilities and NLL": ("LogProbabilities", "loss=nll"),
    "auxiliary head in a tuple": ("Auxiliary", "+model.kind=tuple"),
    "auxiliary head in a dict": ("Auxiliary", "+model.kind=dict"),
    "weight norm, old": ("old_norm", "+model.kind=weight_norm"),
    "spectral norm, old": ("old_norm", "+model.kind=spectral_norm"),
    "weight norm": ("new_norm", "+model.kind=weight_norm"),
    "spectral norm": ("new_norm", "+model.kind=spectral_norm"),
    "lazy": ("Lazy",),
    "distances": ("Distances",),
    "experts": ("Experts",),
    "initialised from the first batch": ("FromTheFirstBatch",),
    "tied weights": ("Tied",),
    "checkpointed": ("Checkpointed",),
    "straight through": ("StraightThrough", "check.skip=[gradient:rounding]"),
    "focal loss of a detached weight": ("Trunk", "loss=own_focal"),
    "one against the rest": ("Trunk", "loss=one_against_the_rest"),
}
LOSSES = {
    "nll": "torch.nn.NLLLoss",
    "own_focal": "unusual.Focal",
    "one_against_the_rest": "unusual.OneAgainstTheRest",
}
SHORT = ("dataset.limit=400", "trainer.epochs=2", "trainer.threads=1", "trainer.report=false", "optimizer.lr=0.003")
OWN = ("model=custom", "trust=[unusual]")


@pytest.fixture
def place(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(unusual.__file__, here / "unusual.py")
    monkeypatch.syspath_prepend(str(here))
    (here / "conf/loss").mkdir(parents=True)
    for name, target in LOSSES.items():
        (here / f"conf/loss/{name}.yaml").write_text(f"_target_: {target}\n")
    return here


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file)]


def trained(dlrun: Callable[..., Outcome], place: Path, target: str, *words: str) -> None:
    """Train for two epochs, once through and once with a break, and evaluate the weights again."""
    words = (*SHORT, *OWN, f"model._target_=unusual.{target}", *words)
    done = dlrun("train", *words, "run.dir=whole")
    assert done.code == 0, done.err
    assert json.loads((place / "whole/result.json").read_text())["status"] == "completed"
    rows = losses(place / "whole")
    assert len(rows) == 2
    assert rows[1] < rows[0], rows
    assert dlrun("train", *words, "check=none", "run.dir=halved", "trainer.stop_after=1").code == 0
    again = dlrun("resume", "halved", "trust=[unusual]")
    assert again.code == 0, again.err
    assert losses(place / "halved") == pytest.approx(rows, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_unusual_and_sound_trains_after_its_checks_and_resumes(
    dlrun: Callable[..., Outcome], place: Path, name: str
) -> None:
    trained(dlrun, place, *NETWORKS[name], "check.budget=6000")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["auxiliary head in a dict", "lazy"])
def test_extra_outputs_and_lazy_layers_train_and_resume(dlrun: Callable[..., Outcome], place: Path, name: str) -> None:
    trained(dlrun, place, *NETWORKS[name], "check=none", "dataset.limit=200")
