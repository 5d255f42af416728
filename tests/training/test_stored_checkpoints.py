"""Checkpoints of other versions: a newer one is refused in one line, one without a version loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlrun.errors import UserError
from dlrun.training import checkpoint
from dlrun.vocabulary import FORMAT
from support.commands import TINY, Outcome

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
