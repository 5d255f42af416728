"""Members from checkpoints, fresh evaluations and the average of weights, on three real runs (E3, E4)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dlrun.folders import reading
from dlrun.folders.run import claim
from dlrun.run.execute import execute
from support.commands import TINY, Outcome, without_torch
from support.composed import composed


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh") / "sweep"
    more = ("trainer.epochs=4", "trainer.keep=all", "scheduler=warm_restarts", "scheduler.period=2")
    for seed in range(3):
        cfg = composed(*TINY, *more, f"seed={seed}")
        assert execute(cfg, claim(str(folder / f"{seed:04d}"), "")) == 0
    return folder


def arrays(folder: str) -> dict[str, np.ndarray]:
    with np.load(Path(folder) / "predictions.npz") as found:
        return dict(found)


def test_fresh_members_equal_the_stored_ones(sweep: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("ensemble", str(sweep), "--out", "stored").code == 0
    (Path(sweep) / "0001" / "predictions.npz").rename(sweep / "aside.npz")
    try:
        done = dlrun("ensemble", str(sweep), "--fresh", "--out", "fresh")
    finally:
        (sweep / "aside.npz").rename(Path(sweep) / "0001" / "predictions.npz")
    assert done.code == 0, done.err
    one, other = arrays("stored"), arrays("fresh")
    for key in one:
        if key.endswith("logits"):
            np.testing.assert_allclose(one[key], other[key], atol=1e-4)
        else:
            assert (one[key] == other[key]).all()


def test_snapshots_are_the_ends_of_cycles(sweep: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("ensemble", str(sweep / "0000"), "--members", "checkpoints", "--out", "e")
    assert done.code == 0, done.err
    members = yaml.safe_load(Path("e/ensemble.yaml").read_text())["members"]
    assert sorted(m["checkpoint"][:10] for m in members) == ["epoch_0002", "epoch_0004"]
    np.save("x.npy", np.zeros((3, 8, 8, 1), np.uint8))
    assert dlrun("predict", "e", "x.npy").code == 0
    done = dlrun("ensemble", str(sweep), "--members", "checkpoints")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert re.search(r"--members\b.*\b3\b", done.err)


def test_checkpoints_that_end_no_cycle_all_vote_with_a_note(here: Path, dlrun: Callable[..., Outcome]) -> None:
    more = ("scheduler=warm_restarts", "scheduler.period=3", "trainer.keep=all", "trainer.epochs=4", "run.dir=r")
    assert dlrun("train", *TINY, *more, "scheduler.mult=2").code == 0
    for file in Path("r/checkpoints").glob("epoch_0003_*"):
        file.unlink()  # as with trainer.keep=top3, which keeps the best
    done = dlrun("ensemble", "r", "--members", "checkpoints")
    assert done.code == 0, done.err
    note, headline = done.out.splitlines()[:2]
    assert re.search(r"^r\b.*\ball 3\b.*\btrainer\.keep=all trainer\.epochs=9\b.*\bscheduler\.period", note)
    assert headline.startswith("3 members")


def test_the_average_of_weights_is_a_new_run(sweep: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("ensemble", str(sweep), "--average", "weights", "--out", "soup")
    assert done.code == 0, done.err
    states = [torch.load(reading.tested(sweep / f"{k:04d}"), weights_only=True)["model"] for k in range(3)]
    found = torch.load("soup/checkpoints/best.pt", weights_only=True)["model"]
    for name, tensor in found.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(tensor, sum(s[name] for s in states) / 3, atol=1e-6), name  # type: ignore[arg-type]
    # batch statistics are measured for the average, not averaged
    means = "stage1.conv1.norm.running_mean"
    assert not torch.allclose(found[means], sum(s[means] for s in states) / 3)  # type: ignore[arg-type]
    np.save("x.npy", np.zeros((3, 8, 8, 1), np.uint8))
    assert dlrun("predict", "soup", "x.npy").code == 0
    assert dlrun("resume", "soup").out.strip().endswith("nothing to do")
    assert re.search(r"\baverage\b.*\b0000\b", reading.stored(Path("soup"))["reason"])
    assert "epochs in" not in done.out  # nothing was trained


@pytest.mark.slow
def test_an_average_is_no_seed_and_no_member_beside_its_parts(sweep: Path, dlrun: Callable[..., Outcome]) -> None:
    shutil.copytree(sweep, "all/sweep")
    assert dlrun("ensemble", "all/sweep", "--average", "weights", "--out", "all/soup").code == 0
    grouped = json.loads(dlrun("compare", "all", "--group-seeds", "--json").out)
    assert sorted((row["objective"], row["n"]) for row in grouped) == [("average-of-3", 1), ("supervised", 3)]
    for more in ((), ("--fresh",)):
        done = dlrun("ensemble", "all", *more)
        assert done.code == 0, done.err
        assert re.search(r"\ball/soup\b.*\baverage\b", done.out)
        assert "3 members" in done.out
    assert "4 members" in dlrun("ensemble", "all/sweep", "all/soup").out


def test_other_architectures_have_no_average(sweep: Path, dlrun: Callable[..., Outcome]) -> None:
    words = [w for w in TINY if not w.startswith("model.width")]
    assert dlrun("train", *words, "model.width=6", "run.dir=wide").code == 0
    done = dlrun("ensemble", str(sweep), "wide", "--average", "weights", "--out", "soup")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert re.search(r"^dlrun: .*\bwide\b.*\bmodel\b", done.err)
    assert not Path("soup").exists()


def test_help_needs_no_torch(tmp_path: Path) -> None:
    assert without_torch([("ensemble", "--help"), ("predict", "--help")], tmp_path)[0].code == 0
