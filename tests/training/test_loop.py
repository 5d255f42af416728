"""The loop by exact number: means over samples, accumulation, clipping, divergence, precision (B8, O10)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.console import Screen
from dlrun.data.batches import Batch
from dlrun.folders import reading
from dlrun.folders.run import Run, claim
from dlrun.training import checkpoint, choosing, loop, random_state
from dlrun.training.checkpoint import State
from dlrun.training.device import pick_dtype
from dlrun.training.diagnostics import Watch
from dlrun.training.experiment import Experiment, build
from support.composed import SMALL, alter, composed


def experiment(*overrides: str) -> Experiment:
    return build(composed(*SMALL, *overrides))


def fitted(exp: Experiment, folder: Path) -> tuple[Run, State]:
    run, state = claim(str(folder), "test"), State()
    loop.fit(exp, run, state, Screen())
    return run, state


def weights(exp: Experiment) -> list[torch.Tensor]:
    return [p.detach().clone() for p in exp.model.parameters()]


def test_a_short_last_batch_skews_neither_loss_nor_accuracy(tmp_path: Path) -> None:
    # 108 training images in batches of 100: a mean over batches would count the last 8 like 100
    exp = experiment(
        "trainer.batch_size=100", "optimizer=sgd", "optimizer.lr=0.0", "model.norm=none", "trainer.epochs=1"
    )
    run, _ = fitted(exp, tmp_path / "run")
    row = reading.metrics(run.path)[0]
    whole = loop.predict(exp, exp.batches(exp.data.train))
    expected = loop.scores(exp, whole, "train")
    assert float(row["train_loss"]) == pytest.approx(expected["train_loss"], rel=1e-5)
    assert float(row["train_acc"]) == pytest.approx(expected["train_acc"], abs=1e-12)
    fold = loop.scores(exp, loop.predict(exp, exp.batches(exp.data.val, batch_size=5)), "val")
    assert float(row["val_loss"]) == pytest.approx(fold["val_loss"], rel=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_accumulating_a_batch_in_parts_gives_the_same_step(parts: int) -> None:
    whole = experiment("optimizer=sgd", "model.norm=none", "regularizer=l2")
    split = experiment("optimizer=sgd", "model.norm=none", "regularizer=l2", f"trainer.accumulate={parts}")
    x, y, _ = next(whole.train.epoch(1))
    sums = [loop.step(e, Batch(x, y)) for e in (whole, split)]
    assert torch.allclose(*(torch.stack(one) for one in sums), rtol=1e-5)
    for a, b in zip(weights(whole), weights(split), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_clipping_bounds_the_step_and_reports_the_norm_before_it() -> None:
    exp = experiment(
        "optimizer=sgd",
        "optimizer.lr=1.0",
        "optimizer.momentum=0.0",
        "scheduler=constant",
        "trainer.clip_norm=0.01",
    )
    before = weights(exp)
    x, y, _ = next(exp.train.epoch(1))
    norm = float(loop.step(exp, Batch(x, y)).grad_norm) / len(y)
    moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(weights(exp), before, strict=True)))
    assert norm > 0.01
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_clipping_by_value_bounds_every_entry() -> None:
    exp = experiment(
        "optimizer=sgd",
        "optimizer.lr=1.0",
        "optimizer.momentum=0.0",
        "scheduler=constant",
        "trainer.clip_value=1e-4",
    )
    before = weights(exp)
    loop.step(exp, Batch(*next(exp.train.epoch(1))))
    steps = torch.cat([(a - b).flatten().abs() for a, b in zip(weights(exp), before, strict=True)])
    assert float(steps.max()) == pytest.approx(1e-4, rel=1e-2)


def test_the_penalty_is_logged_apart_from_the_data_loss(tmp_path: Path) -> None:
    exp = experiment("regularizer=l2", "regularizer.l2=0.1", "optimizer=sgd", "optimizer.lr=0.0", "trainer.epochs=1")
    penalty = 0.05 * sum(float(p.detach().square().sum()) for p in exp.model.parameters() if p.ndim >= 2)
    run, _ = fitted(exp, tmp_path / "run")
    row = reading.metrics(run.path)[0]
    assert float(row["penalty"]) == pytest.approx(penalty, rel=1e-4)
    assert float(row["train_loss"]) < 5


def test_a_loss_that_is_not_finite_stops_before_it_reaches_saved_weights(tmp_path: Path) -> None:
    exp = experiment("optimizer=sgd", "optimizer.lr=1e30", "model.norm=none", "trainer.batch_size=32")
    run, state = claim(str(tmp_path / "run"), "test"), State()
    with pytest.raises(loop.Diverged) as caught:
        loop.fit(exp, run, state, Screen())
    message = str(caught.value)
    assert "epoch 1, step" in message
    assert "optimizer.lr=" in message
    assert not run.last.exists()
    assert not run.best.exists()
    assert all(torch.isfinite(w).all() for w in weights(exp))  # the step with that loss was not taken


def test_the_best_epoch_is_kept_and_a_tie_goes_to_the_lower_loss() -> None:
    best = {"epoch": 1, "value": 0.9, "val_loss": 0.5}
    assert choosing.better({"val_acc": 0.91, "val_loss": 9.0}, best, "val_acc")
    assert not choosing.better({"val_acc": 0.89, "val_loss": 0.1}, best, "val_acc")
    assert choosing.better({"val_acc": 0.9, "val_loss": 0.4}, best, "val_acc")
    assert not choosing.better({"val_acc": 0.9, "val_loss": 0.5}, best, "val_acc")
    low = {"epoch": 1, "value": 0.5, "val_loss": 0.5}
    assert choosing.better({"val_loss": 0.4}, low, "val_loss")
    assert not choosing.better({"val_loss": 0.6}, low, "val_loss")


def test_best_pt_holds_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    exp = experiment("trainer.epochs=6", "optimizer=sgd", "optimizer.lr=0.3", "scheduler=constant")
    run, state = fitted(exp, tmp_path / "run")
    rows = reading.metrics(run.path)
    assert [int(r["epoch"]) for r in rows] == [1, 2, 3, 4, 5, 6]
    scores = [(float(r["val_acc"]), -float(r["val_loss"])) for r in rows]
    assert state.best is not None
    assert state.best["epoch"] == 1 + scores.index(max(scores))
    found = checkpoint.load(run.best)
    checkpoint.load_weights(run.best, found, exp.model)
    assert loop.scores(exp, loop.predict(exp, exp.val), "val")["val_acc"] == max(scores)[0]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam", "rmsprop_momentum", "muon"])
def test_every_kind_of_optimizer_learns_through_the_same_step(optimizer: str) -> None:
    exp = experiment(f"optimizer={optimizer}", "scheduler=constant", "optimizer.lr=0.02", "trainer.batch_size=200")
    x, y, _ = next(exp.train.epoch(1))
    losses = [float(loop.step(exp, Batch(x, y)).loss) / len(y) for _ in range(15)]
    assert losses[-1] < losses[0] - 0.05


def test_bf16_trains_with_fp32_weights_and_finite_scores(tmp_path: Path) -> None:
    exp = experiment("trainer.precision=bf16", "trainer.epochs=1")
    run, _ = fitted(exp, tmp_path / "run")
    assert all(p.dtype == torch.float32 for p in exp.model.parameters())
    assert math.isfinite(float(reading.metrics(run.path)[0]["val_loss"]))


def test_the_rate_follows_the_schedule_in_fractions_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    exp = experiment("scheduler=exponential", "scheduler.k=1.0", "optimizer.lr=0.1", "trainer.batch_size=27")
    seen: list[float] = []
    monkeypatch.setattr(loop, "step", lambda e, _: seen.append(e.scheduler.lr) or loop.Step(*torch.zeros(4)))
    loop.train_epoch(exp, 2, State(epoch=1), Screen(), Watch(exp))
    assert seen == pytest.approx([0.1 * math.exp(-(1 + i / 4)) for i in range(4)])


def test_random_state_comes_back_exactly() -> None:
    import random

    import numpy as np

    def draws() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)

    before = random_state.rng_state()
    first = draws()
    random_state.set_rng_state(before)
    assert draws() == first


@pytest.mark.parametrize("overrides", [("trainer.batch_size=107",), ("trainer.batch_size=54", "trainer.accumulate=54")])
def test_a_single_sample_left_over_does_not_stop_batch_norm(overrides: tuple[str, ...]) -> None:
    exp = experiment("model=mlp", "model.norm=batch", *overrides)
    assert len(exp.data.train) == 108
    sizes = [len(y) for _, y, _ in exp.train.epoch(1)]
    assert sum(sizes) == 108
    assert min(sizes) > 1
    assert len(sizes) == len(exp.train)
    loop.train_epoch(exp, 1, State(), Screen(), Watch(exp))


@pytest.mark.parametrize(
    ("capabilities", "width", "shape", "dtype"),
    [
        ({"avx512_bf16": True}, 64, (32, 32, 3), torch.bfloat16),
        ({"amx_bf16": True}, 64, (32, 32, 3), torch.bfloat16),
        ({"avx512_bf16": True}, 64, (8, 8, 1), torch.float32),
        ({"avx512_bf16": True}, 4, (32, 32, 3), torch.float32),
        ({"avx2": True, "avx512_bf16": False}, 64, (32, 32, 3), torch.float32),
    ],
)
def test_auto_takes_bf16_where_the_processor_has_it_and_it_pays(monkeypatch, capabilities, width, shape, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    processor, model = torch.device("cpu"), torch.nn.Sequential(torch.nn.Conv2d(3, width, 3))
    assert pick_dtype("auto", processor, model, shape) == dtype
    assert pick_dtype("fp32", processor, model, shape) == torch.float32
    assert pick_dtype("bf16", processor, model, shape) == torch.bfloat16
    mlp = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64))
    assert pick_dtype("auto", processor, mlp, shape) == torch.float32


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.clip_norm=1", "regularizer=elastic", "trainer.accumulate=2"),
        ("optimizer=sgd", "trainer.ema=0.9", "regularizer=max_norm", "regularizer.dropout=0.3", "loss=hinge"),
        ("optimizer=sgd", "optimizer.sam=0.05", "optimizer.lookahead=2", "objective=cutmix", "objective.mixup=0.4"),
        ("model=resnet20", "model.stochastic_depth=0.2", "model.antialias=true", "loss=focal", "optimizer=muon"),
    ],
)
def test_no_step_waits_for_an_accelerator_except_to_look_whether_the_loss_is_finite(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """On the meta device nothing has a value: what asks for one raises, and these two ways of asking are counted."""
    monkeypatch.setattr("dlrun.training.experiment.pick_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(Experiment, "autocast", lambda self: nullcontext())
    exp = build(composed(*SMALL, "trainer.diagnostics=false", *words))
    asked: list[str] = []
    whole, one = torch.Tensor.tolist, torch.Tensor.__float__

    def tolist(self: torch.Tensor) -> Any:
        if not self.is_meta:
            return whole(self)
        asked.append("list")
        return [0.0] * len(self)

    def number(self: torch.Tensor) -> float:
        if not self.is_meta:
            return one(self)
        asked.append("float")
        return 0.0

    class Meta:
        weights = None

        def __len__(self) -> int:
            return 3

        def epoch(self, _: int) -> Any:
            x, y = torch.zeros(8, 1, 8, 8, device="meta"), torch.zeros(8, dtype=torch.long, device="meta")
            return ((x, y, torch.arange(8, device="meta")) for _ in range(3))

        def numbers(self, _: int) -> list[torch.Tensor]:
            return [torch.arange(8)] * 3

    alter(exp, train=Meta())
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    monkeypatch.setattr(torch.Tensor, "__float__", number)
    loop.train_epoch(exp, 1, State(), Screen(None, quiet=True), Watch(exp))
    assert asked == ["float", "float", "list"]  # every fiftieth step from the first, and the last; then the sums


@pytest.mark.parametrize("own", ["+optimizer.foreach=true", "+optimizer.fused=false", "+optimizer.differentiable=true"])
def test_an_optimizers_kernel_is_the_users_to_choose(own: str) -> None:
    key, value = own.removeprefix("+optimizer.").split("=")
    optimizer = build(composed(*SMALL, own)).optimizer
    assert optimizer.defaults[key] is (value == "true")
    assert bool(optimizer.defaults["fused"]) is False
    assert build(composed(*SMALL)).optimizer.defaults["fused"] is True
