"""The content of a checkpoint: copies of everything, and a version; a newer one is refused, one without it loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlrun.data.batches import Batch
from dlrun.errors import UserError
from dlrun.folders.run import claim
from dlrun.training import checkpoint, loop
from dlrun.training.checkpoint import State
from dlrun.training.experiment import Experiment, build
from dlrun.vocabulary import FORMAT
from support.commands import TINY, Outcome
from support.composed import SMALL, composed
from support.tensors import tensors

FEW = [w for w in TINY if not w.startswith("trainer.epochs")]


@pytest.fixture
def paused(dlrun: Callable[..., Outcome]) -> Path:
    assert dlrun("train", *FEW, "trainer.epochs=2", "trainer.stop_after=1", "run.dir=run").code == 0
    return Path("run/checkpoints/last.pt")


def rewritten(file: Path, version: float | None) -> None:
    """Give a checkpoint another version, or none."""
    content = torch.load(file, weights_only=True)
    assert content.pop("version") == FORMAT
    torch.save(content if version is None else {"version": version, **content}, file)


def test_a_checkpoint_of_a_newer_dlrun_is_refused_in_one_line(paused: Path, dlrun: Callable[..., Outcome]) -> None:
    rewritten(paused, FORMAT + 1)
    with pytest.raises(UserError) as caught:
        checkpoint.load(paused)
    message = str(caught.value)
    assert str(paused) in message
    assert "newer dlrun" in message
    assert "\n" not in message
    done = dlrun("resume", "run")
    assert done.code == 2
    assert "Traceback" not in done.out + done.err
    assert "newer dlrun" in done.err


def test_a_newer_checkpoint_is_not_called_damaged_though_it_lacks_keys(tmp_path: Path) -> None:
    torch.save({"version": FORMAT + 0.5, "weights": torch.zeros(2)}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="newer dlrun"):
        checkpoint.load(tmp_path / "last.pt")


def test_a_checkpoint_without_a_version_is_older_and_resumes_to_the_same_bits(
    paused: Path, dlrun: Callable[..., Outcome]
) -> None:
    rewritten(paused, None)
    assert dlrun("resume", "run").code == 0
    assert dlrun("train", *FEW, "trainer.epochs=2", "run.dir=whole").code == 0
    ours, theirs = (checkpoint.load(Path(run) / "checkpoints/last.pt")["model"] for run in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert checkpoint.load(paused)["version"] == FORMAT


def trained(exp: Experiment, steps: int) -> None:
    batches = exp.train.epoch(1)
    for _ in range(steps):
        loop.step(exp, Batch(*next(batches)))


@pytest.mark.parametrize(
    "words", [("optimizer=adam", "trainer.ema=0.9"), ("optimizer=sgd",), ("optimizer=muon",), ("optimizer=lbfgs",)]
)
def test_training_on_does_not_reach_into_a_snapshot(tmp_path: Path, words: tuple[str, ...]) -> None:
    exp = build(composed(*SMALL, "trainer.batch_size=16", *words))
    trained(exp, 2)
    state = State(epoch=1, step=2, best={"epoch": 1, "value": 0.5, "val_loss": 1.0})
    torch.save(exp.optimizer.state_dict(), tmp_path / "optimizer.pt")
    weights = {name: tensor.clone() for name, tensor in exp.model.state_dict().items()}
    content = checkpoint.snapshot(exp, state)
    trained(exp, 3)
    if exp.average is not None:
        for tensor in exp.average.state_dict().values():
            tensor.fill_(7)
    torch.rand(1)

    run = claim(str(tmp_path / "run"), "test")
    checkpoint.write(run, content, is_best=True)
    found = checkpoint.load(run.last)
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in weights.items())
    assert any(not torch.equal(weights[name], tensor) for name, tensor in exp.model.state_dict().items())
    before, kept = (tensors(o) for o in (torch.load(tmp_path / "optimizer.pt"), found["optimizer"]))
    assert len(before) == len(kept) > 0
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(before, kept, strict=True))
    assert exp.average is None or not any((t == 7).all() for t in tensors(found["ema"]) if t.is_floating_point())
    # modules find the version of what they load in it
    assert content["model"]._metadata == exp.model.state_dict()._metadata  # type: ignore[attr-defined]
    run.release()
