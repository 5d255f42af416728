"""The pieces of `experiment=cifar10_speedrun` together, small: stopped and resumed it ends bit for bit the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from support.commands import Outcome

SMALL = ("dataset=digits", "dataset.limit=200", "dataset.val_fraction=0.1", "model.widths=[8,8]", "trainer.epochs=4")
SMALL += ("trainer.batch_size=60", "check=none", "trainer.threads=1", "trainer.report=false", "augment.pad=1")
SMALL += ("augment.progressive=[[6,1],[7,1]]",)


@pytest.mark.slow
def test_a_speedrun_resumes_bit_for_bit_and_freezes_the_first_layer_on_time(dlrun: Callable[..., Outcome]) -> None:
    words = ("train", "experiment=cifar10_speedrun", *SMALL)
    done = dlrun(*words, "trainer.keep=all", "run.dir=straight")
    assert done.code == 0, done.err
    assert "muon at lr 0.24, linear" in done.out
    assert dlrun(*words, "trainer.keep=all", "trainer.stop_after=2", "run.dir=halves").code == 0
    assert dlrun("resume", "halves").code == 0
    files = {d: sorted(Path(d, "checkpoints").glob("epoch_*.pt")) for d in ("straight", "halves")}
    assert [f.name for f in files["halves"]] == [f.name for f in files["straight"]]
    assert len(files["halves"]) == 4
    found = [[torch.load(f, weights_only=True) for f in files[d]] for d in files]
    for ours, theirs in zip(*found, strict=True):
        assert all(torch.equal(ours["model"][name], tensor) for name, tensor in theirs["model"].items())
        for mine, other in zip(*(found["optimizer"]["state"].values() for found in (ours, theirs)), strict=True):
            assert torch.equal(mine["momentum_buffer"], other["momentum_buffer"])
    bias, filters = ([one["model"][f"whiten.conv.{n}"] for one in found[0]] for n in ("bias", "weight"))
    assert not torch.equal(bias[1], bias[2])
    assert torch.equal(bias[2], bias[3])  # whiten: {epochs: 3}
    assert all(torch.equal(filters[0], later) for later in filters[1:])
    config = yaml.safe_load(Path("straight/config.yaml").read_text())
    assert config["choices"]["optimizer"] == "muon"
    assert config["augment"]["flip"] == "alternating"
