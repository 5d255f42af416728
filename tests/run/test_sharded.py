"""`trainer.sharding=fsdp2`: processes that divide the weights take the steps of those that do not (real processes)."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dlrun.config.compose import compose
from dlrun.config.ranks import Rank
from dlrun.errors import UserError
from dlrun.models.resnet import ResNet
from dlrun.training import sharded
from dlrun.training.divisible import must_divide
from dlrun.training.experiment import build
from support.commands import Outcome
from support.ranks import TINY, ended, rows, started

SMALL = ("model=cnn", "model.width=4", "model.norm=group", "augment=crop_flip")
DIVIDED = "trainer.sharding=fsdp2"
WITHOUT = tuple(word for word in TINY if not word.startswith(("optimizer", "trainer.precision")))


def content(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    found: dict[str, Any] = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    return found


def same_file(one: Any, other: Any, place: str = "") -> None:
    """Fail if two checkpoints differ in more than the rounding of numbers, or in how tensors lie in memory."""
    assert type(one) is type(other), place
    if isinstance(one, Tensor):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride()), place
        error = (one.double() - other.double()).abs()
        assert not one.numel() or error.max() <= 1e-3 * one.double().abs().max() + 1e-6, place
    elif isinstance(one, dict):
        assert list(one) == list(other), place
        for key in one:
            same_file(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            same_file(*pair, f"{place}.{number}")
    else:
        assert other == (pytest.approx(one, rel=2e-3) if isinstance(one, float) else one), place


SETUPS = {
    "perceptron": (2, ("model=mlp", "model.width=16", "model.norm=layer", "optimizer=adamw", "trainer.ema=0.9")),
    "adamw": (2, (*SMALL, "optimizer=adamw", "trainer.ema=0.9", "trainer.clip_norm=0.5", "trainer.precision=fp32")),
    # three rows for four processes: one has none of some weights
    "four": (4, ("model=mlp", "model.width=3", "model.norm=layer", "optimizer=adam", "trainer.batch_size=26")),
    "parts": (2, (*SMALL, "objective=mixup", "optimizer=sgd", "optimizer.lookahead=2", "trainer.accumulate=2")),
    "norms": (2, ("model=cnn", "model.width=4", "trainer.sync_batchnorm=true", "trainer.swa=0.5", "optimizer=rmsprop")),
    "sam": (
        2,
        ("model=mlp", "model.norm=none", "optimizer=sgd", "optimizer.sam=0.05", "regularizer.l2=1e-2",
         "regularizer.l1=1e-3", "regularizer.max_norm=1", "trainer.clip_value=0.01"),
    ),
    "frozen": (2, (*SMALL, "optimizer=sgd", "model.freeze=backbone", "model.unfreeze_at=2")),
    "fp16": (2, ("model=mlp", "model.norm=layer", "optimizer=sgd", "trainer.precision=fp16")),
    "bf16": (2, ("model=mlp", "model.norm=layer", "optimizer=adamw", "trainer.precision=bf16")),
    "recomputed": (2, ("model=resnet20", "model.checkpointing=true", "trainer.sync_batchnorm=true", "optimizer=sgd")),
    **{name: (2, ("model=mlp", "model.norm=layer", f"optimizer={name}")) for name in ("adagrad", "radam", "adadelta")},
    **{name: (2, ("model=mlp", "model.norm=layer", f"optimizer={name}")) for name in ("lion", "adan")},
}  # fmt: skip


@pytest.mark.sampled(20)
@pytest.mark.parametrize("name", [*SETUPS])
def test_divided_weights_give_the_losses_and_the_checkpoint_of_whole_ones(name: str, tmp_path: Path) -> None:
    world, words = SETUPS[name]
    if name in ("lion", "adan"):
        pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")
    kinds = {"whole": "trainer.sharding=none", "divided": DIVIDED}
    both = [started(tmp_path, world, *WITHOUT, *words, word, f"run.dir={kind}") for kind, word in kinds.items()]
    outcomes = [one for processes in both for one in ended(processes)]
    assert [one.code for one in outcomes] == [0] * (2 * world), outcomes
    expected, found = rows(tmp_path / "whole"), rows(tmp_path / "divided")
    assert len(found) == 2
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=1e-5)
    first, second = content(tmp_path / "whole"), content(tmp_path / "divided")
    for key in ("rng", "seconds"):
        del first[key], second[key]
    same_file(first, second)
    layers = [(tmp_path / kind / "layers.csv").read_text().splitlines() for kind in kinds]
    for one, other in zip(*layers, strict=True):
        cells = [(float(a), float(b)) for a, b in zip(one.split(","), other.split(","), strict=True) if a[:1].isdigit()]
        assert [b for _, b in cells] == pytest.approx([a for a, _ in cells], rel=1e-2, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"), [((2, DIVIDED), 1), ((1, DIVIDED), 2), ((2, DIVIDED), 2), ((2, "trainer.sharding=none"), 2)]
)
def test_a_divided_run_continues_on_any_number_of_processes(before: Any, after: int, tmp_path: Path) -> None:
    world, word = before
    words = (
        *WITHOUT,
        *SMALL,
        "optimizer=adamw",
        "optimizer.lookahead=3",
        "regularizer=dropout",
        "trainer.ema=0.9",
        word,
    )
    assert ended(started(tmp_path, world, *words, "run.dir=whole"))[0].code == 0
    assert ended(started(tmp_path, world, *words, "run.dir=paused", "trainer.stop_after=1"))[0].code == 0
    found = ended(started(tmp_path, after, "resume", "paused"))
    assert [one.code for one in found] == [0] * after, found
    if world == after:
        one, other = content(tmp_path / "whole"), content(tmp_path / "paused")
        assert all(torch.equal(one[key][name], other[key][name]) for key in ("model", "ema") for name in one[key])
        return
    # dropout draws anew in each process
    expected, others = rows(tmp_path / "whole")[0], rows(tmp_path / "paused")
    assert others[0] == pytest.approx(expected, rel=2e-3, abs=1e-5)
    assert len(others) == 2


@pytest.mark.slow
def test_what_follows_a_divided_run_finds_a_run_like_any_other(dlrun: Callable[..., Outcome], here: Path) -> None:
    words = (*WITHOUT, *SMALL, "optimizer=adamw", "trainer.keep=all", DIVIDED)
    assert ended(started(here, 2, *words, "run.dir=run"))[0].code == 0
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(here / "one.png")
    for verb in (
        ("predict", "run", "one.png"),
        ("evaluate", "run"),
        ("export", "run", "--to", "torch_export"),
        ("compare", "run"),
        ("report", "run"),
    ):
        found = dlrun(*verb)
        assert (found.code, found.err) == (0, ""), (verb, found)
    more = ("optimizer=adamw", "trainer.start_from=run", "run.dir=next")
    assert ended(started(here, 1, *WITHOUT, *SMALL, *more))[0].code == 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_of_a_divided_run_ends_the_others_and_resume_changes_no_bit(rank: int, tmp_path: Path) -> None:
    words = (*WITHOUT, *SMALL, "optimizer=adamw", DIVIDED, "trainer.epochs=6", "dataset.limit=600")
    assert ended(started(tmp_path, 2, *words, "run.dir=whole"))[0].code == 0
    processes = started(tmp_path, 2, *words, "run.dir=run")
    while not (tmp_path / "run/checkpoints/last.pt").exists():
        time.sleep(0.02)
        assert all(one.poll() is None for one in processes)
    processes[rank].kill()
    began = time.monotonic()
    found = ended(processes, timeout=60)
    assert time.monotonic() - began < 30
    assert (found[rank].code, found[1 - rank].code) == (-signal.SIGKILL, 1)
    if not rank:
        assert found[1].err == found[1].out == ""
    else:
        assert "dlrun: failed: process 1 of 2 ended" in found[0].out
        assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "failed"
    assert content(tmp_path / "run")["epoch"] < 6
    assert [one.code for one in ended(started(tmp_path, 2, "resume", "run"))] == [0, 0]
    one, other = content(tmp_path / "whole")["model"], content(tmp_path / "run")["model"]
    assert all(torch.equal(one[key], other[key]) for key in one)


NUMBER = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, in_channels, num_classes, image_size):
        super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
        self.warmth = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.warmth
"""


@pytest.mark.slow
def test_a_model_that_torch_does_not_divide_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "number.py").write_text(NUMBER)
    words = ("model=custom", "model._target_=number.Net", "trust=[number]", "optimizer=sgd", DIVIDED, "run.dir=run")
    found = ended(started(tmp_path, 2, *WITHOUT, *words))
    assert [one.code for one in found] == [2, 2], found
    assert found[0].err.startswith("dlrun: trainer.sharding=fsdp2: Net cannot be divided: ")
    assert found[0].err.endswith("; type trainer.sharding=none\n")
    assert found[1].err == found[1].out == ""


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("optimizer=lbfgs",), "trainer.sharding=fsdp2 with optimizer=lbfgs: "),
        (("optimizer=muon",), "trainer.sharding=fsdp2 with optimizer=muon: "),
        (("trainer.compile=true",), "trainer.sharding=fsdp2 with trainer.compile=true: "),
    ],
)
def test_what_cannot_be_divided_is_one_line_that_names_what_to_type(words: tuple[str, ...], reason: str) -> None:
    exp = build(compose("dataset=digits", "dataset.limit=100", "model=mlp", "trainer.device=cpu", DIVIDED, *words))
    with pytest.raises(UserError, match="type trainer") as error:
        must_divide(exp, Rank(0, 2, 0, 2))
    assert reason in str(error.value)


def test_one_process_has_nothing_to_divide_and_says_so(dlrun: Callable[..., Outcome], here: Path) -> None:
    words = ("train", *TINY[1:], "model=mlp", "model.width=8", "trainer.epochs=1")
    for name, word in (("whole", "trainer.sharding=none"), ("divided", DIVIDED)):
        found = dlrun(*words, word, f"run.dir={name}")
        assert found.code == 0, found
        assert ("nothing to divide" in found.out) is (word == DIVIDED)
    one, other = (content(here / name)["model"] for name in ("whole", "divided"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_layers_that_are_collected_by_themselves_hold_each_weight_once() -> None:
    model = ResNet(3, 10)
    units = sharded._units(model)
    assert len(units) > 3
    held = [id(p) for unit in units for p in unit.parameters()]
    inside = [unit for unit in units if any(unit is not other and unit in other.modules() for other in units)]
    assert len(held) - sum(len(list(unit.parameters())) for unit in inside) == len(set(held))
    total = sum(p.numel() for p in model.parameters())
    assert all(sum(p.numel() for p in unit.parameters()) >= total / sharded.UNITS for unit in units)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert sharded._units(tied) == []
    assert sharded._units(nn.MultiheadAttention(8, 2)) == []  # it reads the weights of a layer that it never calls
