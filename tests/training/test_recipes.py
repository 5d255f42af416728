"""Ingredients of strong recipes by exact number: SAM, Lookahead, SWA, fp16, dropout by layer (O1, O7, O10, R2, R3)."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.checks.sandbox import twin
from dlrun.data.batches import Batch
from dlrun.errors import UserError
from dlrun.models.dropout import set_rates
from dlrun.models.resnet import ResNet
from dlrun.optim.lookahead import Lookahead
from dlrun.training import averaging, loop, sam
from dlrun.training.experiment import Experiment, build
from dlrun.training.loss_scale import FIRST, INTERVAL, LossScale
from support.composed import SMALL, composed
from support.networks import every
from support.tensors import tensors


def experiment(*overrides: str) -> Experiment:
    return build(composed(*SMALL, "trainer.diagnostics=false", *overrides))


def stepped(exp: Experiment, count: int = 1) -> tuple[list[Tensor], list[loop.Step]]:
    x, y, _ = next(exp.train.epoch(1))
    exp.model.train()
    sums = [loop.step(exp, Batch(x, y)) for _ in range(count)]
    return [p.detach().clone() for p in exp.model.parameters()], sums


def same(a: list[Tensor], b: list[Tensor], **tolerance: float) -> bool:
    return all(torch.allclose(x, y, **tolerance) for x, y in zip(a, b, strict=True))


# --- SAM


def test_sam_takes_the_gradient_uphill_of_a_quadratic_and_puts_the_weights_back() -> None:
    # f(w) = ½ wᵀ A w: the gradient at w + ρ g/‖g‖ is A (w + ρ A w / ‖A w‖)
    a, w = torch.diag(torch.tensor([1.0, 4.0])), nn.Parameter(torch.tensor([3.0, 0.5]))
    model = nn.Module()
    model.register_parameter("w", w)
    before, gradient = w.detach().clone(), a @ w.detach()
    w.grad = gradient.clone()
    with sam.ascended(model, [w], 0.1):
        w.grad = None
        (0.5 * w @ a @ w).backward()
    torch.testing.assert_close(w.grad, a @ (before + 0.1 * gradient / gradient.norm()))
    assert torch.equal(w.detach(), before)
    w.grad = torch.zeros(2)
    with sam.ascended(model, [w], 0.1):
        assert torch.equal(w.detach(), before)


def by_hand(exp: Experiment, rho: float) -> list[Tensor]:
    """The weights after a SAM step of plain SGD on the whole batch."""
    x, y, _ = next(exp.train.epoch(1))
    parameters = [*exp.model.parameters()]
    held = [p.detach().clone() for p in parameters]

    def gradient() -> list[Tensor]:
        loss = exp.loss(exp.model(x), y) + exp.penalty.penalty(exp.model)
        return [*torch.autograd.grad(loss, parameters)]

    first = gradient()
    norm = torch.cat([g.flatten() for g in first]).norm()
    with torch.no_grad():
        for p, g in zip(parameters, first, strict=True):
            p.add_(rho * g / norm)
    second = gradient()
    total = torch.cat([g.flatten() for g in second]).norm()
    rate = 0.1 * min(1.0, float(0.05 / total))
    return [h - rate * g for h, g in zip(held, second, strict=True)]


@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_of_sam_composes_with_accumulation_penalty_and_clipping(parts: int) -> None:
    words = ("optimizer=sgd", "optimizer.momentum=0", "model.norm=none", "regularizer=l2", "scheduler=constant")
    words += ("optimizer.sam=0.5", "trainer.clip_norm=0.05", "trainer.precision=fp32")
    expected = by_hand(experiment(*words), 0.5)
    found, (sums,) = stepped(experiment(*words, f"trainer.accumulate={parts}"))
    assert same(found, expected, atol=1e-6)
    plain, (usual,) = stepped(experiment(*words, "optimizer.sam=0"))
    assert not same(found, plain, atol=1e-6)
    assert float(sums.loss) == pytest.approx(float(usual.loss), rel=1e-5)  # that of the weights themselves


def test_the_second_pass_of_sam_leaves_running_statistics_unchanged() -> None:
    exps = [experiment("optimizer=sgd", f"optimizer.sam={rho}", "model.norm=batch") for rho in (0.5, 0)]
    for exp in exps:
        stepped(exp)
    norms = [every(exp.model, nn.BatchNorm2d) for exp in exps]
    for a, b in zip(*norms, strict=True):
        assert torch.equal(a.running_mean, b.running_mean)
        assert int(a.num_batches_tracked) == 1


# --- Lookahead


def test_lookahead_by_hand_on_a_quadratic() -> None:
    w, slow, fast = nn.Parameter(torch.tensor([1.0])), 1.0, 1.0
    optimizer = Lookahead(torch.optim.SGD([w], lr=0.1), every=3, share=0.25)
    for step in range(1, 11):
        w.grad = 2 * w.detach()  # of w²
        optimizer.step()
        fast -= 0.1 * 2 * fast
        if step % 3 == 0:
            slow += 0.25 * (fast - slow)
            fast = slow
        assert float(w.detach()) == pytest.approx(fast, rel=1e-6)


def test_lookahead_continues_from_its_state_and_copies_with_its_weights() -> None:
    words = ("optimizer=adamw", "optimizer.lookahead=3", "model.norm=none")
    exp, other = experiment(*words), experiment(*words)
    stepped(exp, 4)
    buffer = io.BytesIO()
    torch.save([exp.model.state_dict(), exp.optimizer.state_dict()], buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    other.model.load_state_dict(weights)
    other.optimizer.load_state_dict(state)
    trial = twin(exp)
    assert isinstance(trial.optimizer, Lookahead)
    copied, _ = stepped(trial, 3)
    untouched = [p.detach().clone() for p in exp.model.parameters()]
    assert not same(copied, untouched)
    expected, _ = stepped(exp, 3)
    found, _ = stepped(other, 3)
    for a, b, c in zip(expected, found, copied, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    exp.scheduler.set(0.0)
    assert exp.optimizer.inner.param_groups is exp.optimizer.param_groups  # type: ignore[attr-defined]


# --- SWA


def test_the_average_of_epochs_is_their_mean_and_its_norms_are_measured_again() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)) for _ in range(3)]
    average = averaging.started(models[0])
    for count, model in enumerate(models, 1):
        averaging.join(average, model, count)
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([m.state_dict()[name] for m in models]).mean(0))
    batches = [torch.randn(5, 3) for _ in range(4)]
    before = torch.random.get_rng_state()
    averaging.measure(average, batches)
    assert torch.equal(torch.random.get_rng_state(), before)  # no dropout is drawn
    seen = [average[0](x) for x in batches]  # type: ignore[index]
    norm: Any = average[1]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for x in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var(0) for x in seen]).mean(0))
    assert not average.training
    assert norm.momentum == 0.1
    averaging.join(average, models[1], 1)
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), models[1].parameters(), strict=True))
    with pytest.raises(UserError, match=r"trainer\.ema=0\.9 .*trainer\.swa=0\.5\b"):
        experiment("trainer.ema=0.9", "trainer.swa=0.5")


# --- fp16


def test_the_scale_of_the_loss_follows_torchs() -> None:
    ours, p = LossScale(), nn.Parameter(torch.ones(2))
    theirs = torch.amp.GradScaler("cpu", init_scale=FIRST, growth_interval=INTERVAL)
    optimizer = torch.optim.SGD([p], lr=0.0)
    for gradient in (1.0, torch.inf, torch.nan, 1.0, 2.0):
        scale = float(theirs.get_scale())
        assert ours.value == scale
        theirs.scale(torch.ones(()))
        p.grad = torch.full((2,), gradient * scale)
        assert ours.unscaled([p]) == (gradient == gradient and gradient != torch.inf)
        assert gradient != 1.0 or torch.equal(p.grad, torch.ones(2))
        p.grad = torch.full((2,), gradient * scale)
        theirs.step(optimizer)
        theirs.update()
    ours.fine, ours.value = INTERVAL - 1, 8.0
    p.grad = torch.ones(2)
    assert ours.unscaled([p])
    assert ours.value == 16.0
    again = LossScale()
    again.load_state_dict(ours.state_dict())
    assert (again.value, again.fine) == (16.0, INTERVAL)
    ours.value = 1.0
    p.grad = torch.full((2,), torch.inf)
    assert ours.unscaled([p])  # it cannot fall further


def test_fp16_trains_nearly_as_fp32_after_it_found_its_scale() -> None:
    half, full = (experiment(f"trainer.precision={p}", "optimizer=sgd", "model.width=8") for p in ("fp16", "fp32"))
    assert half.dtype == torch.float16
    assert full.scale is None
    assert half.scale is not None
    start = [p.detach().clone() for p in half.model.parameters()]
    half.scale.value = 2.0**40  # overflows: halved until it does not
    found, (sums,) = stepped(half)
    expected, (usual,) = stepped(full)
    assert 1 <= half.scale.value < 2.0**40
    assert not same(found, start)
    assert same(found, expected, atol=5e-3)
    assert float(sums.grad_norm) == pytest.approx(float(usual.grad_norm), rel=0.05)
    trial = twin(half)
    assert trial.scale is not None
    trial.scale.value = 2.0
    assert half.scale.value != 2.0


# --- dropout by layer


def test_dropout_by_layer_changes_rates_and_adds_layers_but_no_weights() -> None:
    plain = ResNet(1, 10, blocks=[1, 1], width=4, dropout=0.1)
    model = copy.deepcopy(plain)
    set_rates(model, {"stage[12]": 0.2, "dropout": 0.5})
    assert model.state_dict().keys() == plain.state_dict().keys()
    rates = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {"stage1.dropout": 0.2, "stage2.dropout": 0.2, "dropout": 0.5}
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    for wrong, message in (({"nothing": 0.1}, "nothing"), ({"(": 0.1}, "regular"), ({"stage1": 1.0}, "1.0")):
        with pytest.raises(UserError, match=message):
            set_rates(copy.deepcopy(plain), wrong)
    exp = experiment("model=resnet20", "model.blocks=[1,1]", "regularizer.dropout_per_layer={stage2: 0.25}")
    assert exp.model.get_submodule("stage2.dropout").p == 0.25
    assert tensors(exp.model.state_dict())
