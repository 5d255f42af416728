"""Frozen weights stay as they are, with the statistics of their norms, and train from the epoch that is asked for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.analysis.evidence import Evidence
from dlrun.errors import UserError
from dlrun.training import freezing
from dlrun.training.experiment import Experiment, build
from support.composed import SMALL, composed
from support.watched import watched

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def trained(*words: str) -> tuple[Experiment, dict[str, Tensor]]:
    """An experiment after its epochs, and its state before them."""
    before: dict[str, Tensor] = {}
    found = watched(*SMALL, *words, change=lambda exp: before.update(copy.deepcopy(exp.model.state_dict())))
    return found.exp, before


def changed(words: tuple[str, ...]) -> set[str]:
    """The parts of the state that training changed."""
    exp, before = trained(*words)
    return {name for name, now in exp.model.state_dict().items() if not torch.equal(now, before[name])}


def test_a_frozen_backbone_keeps_weights_and_statistics_and_has_no_moments() -> None:
    exp, before = trained("model.freeze=backbone", "model.norm=batch")
    now = exp.model.state_dict()
    assert [name for name in now if not torch.equal(now[name], before[name])] == ["head.weight", "head.bias"]
    assert len(exp.optimizer.state) == 2
    assert sum(len(group["params"]) for group in exp.optimizer.param_groups) == 2
    assert all(p.grad is None for name, p in exp.model.named_parameters() if not name.startswith("head"))
    assert exp.frozen is not None
    assert len(exp.frozen.never) == len(before) - 2 - 3 * len(BUFFERS)


def test_norms_are_held_as_asked() -> None:
    drifting = {name for name in changed(("model.freeze=backbone", "model.hold_norms=none")) if "norm" in name}
    assert drifting == {f"stage{n}.conv1.norm.{buffer}" for n in (1, 2, 3) for buffer in BUFFERS}
    still = {name for name in changed(("model.hold_norms=all",)) if name.endswith(BUFFERS)}
    assert still == set()
    partly = changed(("model.freeze=[stage1,stage2.conv1.conv.*]",))
    assert {name for name in partly if name.startswith("stage1")} == set()
    assert {name for name in partly if name.startswith("stage2")} == {
        f"stage2.conv1.norm.{what}" for what in ("weight", "bias", *BUFFERS)
    }


def test_a_copy_holds_its_own_norms() -> None:
    exp = build(composed(*SMALL, "model.freeze=backbone"))
    twin = copy.deepcopy(exp.model).train()
    modes = {name: module.training for name, module in twin.named_modules()}
    assert (modes["stage1.conv1.norm"], modes["head"], modes["dropout"]) == (False, True, True)
    assert not any(module.training for module in twin.eval().modules())
    assert exp.model.get_submodule("head").training


class Bare(nn.Module):
    """A norm without weights, which no frozen parameter names."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm, self.stem = nn.BatchNorm2d(1, affine=False), nn.Conv2d(1, 4, 8)
        self.head = nn.Linear(4, num_classes)


def test_a_norm_without_weights_is_held_with_the_backbone() -> None:
    model = Bare(10)
    for words, held in (({"freeze": "backbone"}, True), ({"freeze": ["stem"]}, False), ({"freeze": "n*"}, True)):
        twin = copy.deepcopy(model)
        if words["freeze"] == "n*":
            with pytest.raises(UserError, match="n\\*"):
                freezing.planned(words, twin, 10)
            continue
        plan = freezing.planned(words, twin, 10)
        assert plan is not None
        freezing.begin(twin, plan)
        assert twin.train().norm.training is not held


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"freeze": ["stage9"]}, ["stage9", "stage"]),
        ({"freeze": ["*"]}, ["model.freeze"]),
        ({"freeze": "backbone", "unfreeze_at": [2, 3, 4, 5]}, ["model.unfreeze_at", "at most 3"]),
    ],
)
def test_what_cannot_be_frozen_is_named(words: dict[str, Any], named: list[str]) -> None:
    model = build(composed(*SMALL)).model
    with pytest.raises(UserError) as caught:
        freezing.planned(words, model, 10)
    assert all(name in str(caught.value) for name in named)


def test_weights_that_would_train_after_the_last_epoch_are_named() -> None:
    words = (*SMALL, "model.freeze=backbone")
    for at, more in (("[2,9]", ()), ("2", ()), ("9", ("trainer.hours=1",)), ("0", ())):
        notes = build(composed(*words, f"model.unfreeze_at={at}", *more)).notes
        assert any("trainer.epochs=2 ends before epoch 9" in note for note in notes) is (at == "[2,9]")


def learning(exp: Experiment, t: float) -> set[str]:
    exp.scheduler.set(t)
    return {name.partition(".")[0] for name, p in exp.model.named_parameters() if p.requires_grad}


def test_layers_join_from_the_head_down_at_their_epochs() -> None:
    exp = build(composed(*SMALL, "trainer.epochs=6", "model.freeze=backbone", "model.unfreeze_at=[2,4,5]"))
    expected = {0.0: 1, 0.9: 1, 1.0: 2, 2.5: 2, 3.0: 3, 4.0: 4}
    for t, count in expected.items():
        assert learning(exp, t) == {"head", "stage3", "stage2", "stage1"} & {
            "head",
            *[f"stage{n}" for n in range(5 - count, 4)],
        }
    exp.scheduler.set(1.0)
    exp.model.train()
    held = {name for name, m in exp.model.named_modules() if isinstance(m, nn.BatchNorm2d) and not m.training}
    assert held == {"stage1.conv1.norm", "stage2.conv1.norm"}


def test_moments_begin_when_weights_begin_to_train() -> None:
    words = ("trainer.epochs=3", "model.freeze=backbone", "model.unfreeze_at=3", "optimizer=adamw")
    exp, _ = trained(*words)
    steps = {int(exp.optimizer.state[p]["step"]) for p in exp.model.parameters()}
    assert steps == {len(exp.train), 3 * len(exp.train)}


def test_layer_decay_and_the_rate_of_the_head() -> None:
    exp = build(composed(*SMALL, "optimizer=adamw", "optimizer.layer_decay=0.5", "optimizer.head_lr=10x"))
    exp.scheduler.set(0.6)
    names = {id(p): name for name, p in exp.model.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in exp.optimizer.param_groups for p in g["params"]}
    shares = [rates[f"stage{n}.conv1.norm.bias"] / rates["head.bias"] for n in (3, 2, 1)]
    assert shares == pytest.approx([0.05, 0.025, 0.0125])
    assert exp.scheduler.lr == rates["stage3.conv1.norm.bias"]  # the nearest to that of the config


def test_rates_of_muon_and_of_single_layers() -> None:
    words = ("optimizer=muon", "optimizer.layer_decay=0.5", "optimizer.per_layer={stage2: {lr: 0.7}}")
    exp = build(composed(*SMALL, *words, "scheduler=constant"))
    names = {id(p): name for name, p in exp.model.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in exp.optimizer.param_groups for p in g["params"]}
    assert rates["head.weight"] == pytest.approx(0.1)
    assert rates["stage3.conv1.conv.weight"] == pytest.approx(0.01)
    assert rates["stage1.conv1.norm.weight"] == pytest.approx(0.0125)
    assert rates["stage2.conv1.conv.weight"] == 0.7


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("optimizer.head_lr=10y", "optimizer.head_lr"),
        ("model.unfreeze_at=1", "model.unfreeze_at"),
        ("model.unfreeze_at=[4,3]", "model.unfreeze_at"),
        ("model.freeze=[]", "model.freeze"),
        ("model.unfreeze_at=3", "model.freeze"),
        ("scheduler.warmup_steps=1.5", "scheduler.warmup_steps"),
        ("dataset.normalize=[[0.5],[0]]", "dataset.normalize"),
    ],
)
def test_a_wrong_value_names_its_key(word: str, key: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as refused:
        composed(word)
    assert f"type {word}" not in str(refused.value)
    assert "type -m" not in str(refused.value)


def test_a_frozen_layer_of_silent_units_is_not_dead() -> None:
    def silence(exp: Experiment) -> None:
        with torch.no_grad():
            exp.model.get_parameter("stage3.conv1.norm.bias").fill_(-100)

    alive, frozen = (watched(*SMALL, *more, change=silence) for more in ((), ("model.freeze=[stage3]",)))
    rows = [next(row for row in found.layers[::-1] if row["layer"].startswith("stage3")) for found in (alive, frozen)]
    assert [row["dead_fraction"] for row in rows] == [1.0, 1.0]
    assert [found.metrics[-1]["dead_fraction"] > 0.5 for found in (alive, frozen)] == [True, False]
    seen = [
        Evidence(found.metrics, found.layers, found.config, found.exp.data.record(), found.status).now("dead_fraction")
        for found in (alive, frozen)
    ]
    assert [rows[0]["layer"] in shares for shares in seen] == [True, False]


def test_a_run_with_a_late_backbone_resumes_bit_for_bit(dlrun: Any, here: Path) -> None:
    words = (
        *("train", *SMALL, "trainer.epochs=4", "model.freeze=backbone", "model.unfreeze_at=[2,4]", "optimizer=adamw"),
        *("optimizer.layer_decay=0.5", "optimizer.head_lr=3x", "trainer.ema=0.9", "trainer.accumulate=2"),
    )
    assert dlrun(*words, "run.dir=whole").code == 0
    for stop in (1, 3):
        assert dlrun(*words, f"run.dir=parts{stop}", f"trainer.stop_after={stop}").code == 0
        assert dlrun("resume", f"parts{stop}").code == 0
        ours, theirs = (torch.load(here / run / "checkpoints/last.pt") for run in ("whole", f"parts{stop}"))
        for part in ("model", "ema"):
            assert all(torch.equal(ours[part][name], theirs[part][name]) for name in ours[part])
        state = [found["optimizer"]["state"] for found in (ours, theirs)]
        assert all(torch.equal(state[0][n][key], state[1][n][key]) for n in state[0] for key in state[0][n])


def test_an_average_of_epochs_keeps_held_statistics(dlrun: Any, here: Path) -> None:
    words = ("train", *SMALL, "model.freeze=[stage1]", "trainer.epochs=3", "trainer.swa=0.9", "run.dir=run")
    assert dlrun(*words).code == 0
    found = torch.load(here / "run/checkpoints/last.pt")
    same = [torch.equal(found["ema"][name], found["model"][name]) for name in found["ema"] if "running_mean" in name]
    assert same == [True, False, False]
    assert not found["ema"]["stage1.conv1.norm.running_mean"].any()
