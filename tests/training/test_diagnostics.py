"""Layer statistics against numbers worked out by hand, and the promise that watching changes nothing (B3, B4)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.data.batches import Batch
from dlrun.models.layers import ACTIVATIONS
from dlrun.training import loop
from dlrun.training.diagnostics import BINS, HISTOGRAM_VALUES, Watch, sparsity
from dlrun.training.experiment import Experiment, build
from support.composed import SMALL, alter, composed
from support.watched import watched


def experiment(*overrides: str, model: nn.Module | None = None) -> Experiment:
    exp = build(composed(*SMALL, *overrides))
    if model is not None:
        alter(exp, model=model.to(memory_format=torch.channels_last))
    return exp


def rows(exp: Experiment) -> dict[str, dict[str, Any]]:
    return {row["layer"]: row for row in Watch(exp).look(1).rows}


def test_a_watched_run_is_bit_for_bit_an_unwatched_one() -> None:
    options = (*SMALL, "regularizer=dropout", "trainer.batch_size=16", "augment=crop_flip")
    states = []
    for watch in (True, False):
        exp = watched(*options, watch=watch).exp
        draws = [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]
        states.append((exp, draws))
    (a, draws_a), (b, draws_b) = states
    assert draws_a == draws_b
    for one, other in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)
        for key, value in a.optimizer.state[p].items():
            assert torch.equal(value, b.optimizer.state[q][key])


def test_a_look_changes_no_buffer_mode_hook_or_random_state_even_where_the_model_draws_in_evaluation() -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head, self.frozen = nn.BatchNorm2d(1), nn.Linear(64, 10), nn.BatchNorm1d(64)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.frozen(F.dropout(self.norm(x).flatten(1), 0.5)))  # type: ignore[no-any-return]

    exp = experiment(model=Drawing())
    watch = Watch(exp)
    exp.model.train()
    exp.model.get_submodule("frozen").eval()
    before = {k: v.clone() for k, v in exp.model.state_dict().items()}
    random_state = torch.get_rng_state()
    watch.look(1)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in exp.model.state_dict().items())
    assert [m.training for m in exp.model.modules()] == [True, True, True, False]
    assert not any(m._forward_hooks for m in exp.model.modules())


def test_the_update_ratio_is_the_change_that_the_optimizer_made_over_the_weight_before() -> None:
    exp = experiment("optimizer=adam", "trainer.clip_norm=0.1", "regularizer=max_norm")
    watch = Watch(exp)
    x, y, _ = next(exp.train.epoch(1))
    before = {n: p.detach().clone() for n, p in exp.model.named_parameters()}
    with watch.step(0, 1):
        loop.step(exp, Batch(x, y))
    look = watch.look(1)
    assert [r["layer"] for r in look.rows] == [
        "stage1.conv1.conv",
        "stage2.conv1.conv",
        "stage3.conv1.conv",
        "head",
    ]
    for row in look.rows:
        name = f"{row['layer']}.weight"
        weight = exp.model.get_parameter(name)
        moved, size = weight.detach() - before[name], weight.detach().norm()
        assert row["update_ratio"] == pytest.approx(float(moved.norm() / before[name].norm()), rel=1e-4)
        assert row["weight_norm"] == pytest.approx(float(size), rel=1e-4)
        assert weight.grad is not None
        assert row["grad_norm"] == pytest.approx(float(weight.grad.norm()), rel=1e-4)
    assert look.update_ratio == pytest.approx(float(np.median([r["update_ratio"] for r in look.rows])))


@pytest.mark.parametrize(("steps", "measured"), [(41, [12, 26, 40]), (3, [0, 1, 2]), (2, [0, 1]), (1, [0])])
def test_a_few_steps_spread_over_the_epoch_are_measured_the_last_among_them(steps: int, measured: list[int]) -> None:
    exp = experiment()
    watch, found = Watch(exp), []
    for i in range(steps):
        count = len(watch._norms)
        with watch.step(i, steps):
            pass
        found += [i] * (len(watch._norms) - count)
    assert found == measured


def test_the_median_over_the_measured_steps_is_reported() -> None:
    exp = experiment(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)))
    weight, watch = exp.model.get_parameter("1.weight"), Watch(exp)
    torch.nn.init.ones_(weight)
    for i, factor in enumerate([1.5, 1.001, 1.25]):  # moves by this share minus one
        with watch.step(i, 3), torch.no_grad():
            weight.mul_(factor)
    assert watch.look(1).rows[0]["update_ratio"] == pytest.approx(0.25, rel=1e-4)


def test_a_layer_that_starts_at_zero_has_a_finite_ratio_and_a_frozen_one_none() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    model[1].requires_grad_(False)
    torch.nn.init.zeros_(model[3].weight)
    exp = experiment(model=model)
    watch = Watch(exp)
    with watch.step(0, 1), torch.no_grad():
        model[3].weight.add_(0.1)
    frozen, fresh = watch.look(1).rows
    assert frozen["update_ratio"] is None
    assert frozen["grad_norm"] is None
    assert fresh["update_ratio"] == pytest.approx(1.0)


class Functional(nn.Module):
    """Activations as functions, one function twice, and a norm between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.hidden = nn.Linear(64, 5)
        self.head = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        x = torch.tanh(self.conv2(x)).flatten(1)
        return self.head(F.relu(self.hidden(x), inplace=True))  # type: ignore[no-any-return]


def test_statistics_are_those_before_the_activation_function_of_a_module_or_not() -> None:
    model = Functional()
    with torch.no_grad():
        model.norm.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -100.0]))  # one channel of four never fires
        model.conv2.weight.zero_()
        model.conv2.bias.copy_(torch.tensor([3.0, 0.0, 0.0, -3.0]))  # tanh 3 = 0.995: two of four saturate
        model.hidden.weight.zero_()
        model.hidden.bias.copy_(torch.tensor([0.0, -1.0, -2.0, 4.0, 1.0]))  # 0 is not above 0: three of five
    exp = experiment(model=model)
    watch = Watch(exp)
    found = {row["layer"]: row for row in watch.look(1).rows}
    assert list(found) == ["conv1", "conv2", "hidden", "head"]
    assert found["conv1"]["dead_fraction"] == 0.25
    assert found["conv2"]["dead_fraction"] is None
    assert found["conv2"]["saturated_fraction"] == 0.5
    assert found["conv1"]["saturated_fraction"] is None
    assert found["hidden"]["dead_fraction"] == pytest.approx(0.6)
    assert found["hidden"]["act_mean"] == pytest.approx(0.4)
    assert found["hidden"]["act_std"] == pytest.approx(float(np.std([0, -1, -2, 4, 1])))
    with torch.no_grad():
        before = model.eval().norm(model.conv1(watch._images))
    assert found["conv1"]["act_mean"] == pytest.approx(float(before.mean()), rel=1e-5)
    assert found["conv1"]["act_std"] == pytest.approx(float(before.std(correction=0)), rel=1e-5)
    assert found["head"]["dead_fraction"] is None
    assert watch.look(2).dead_fraction == pytest.approx((1 + 3) / (4 + 5))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_heard_and_only_those_without_a_gradient_die(name: str) -> None:
    exp = experiment("model=mlp", "model.norm=none", f"model.activation={name}", "model.width=8")
    for number in (1, 2):
        nn.init.constant_(exp.model.get_parameter(f"layer{number}.linear.bias"), -50.0)
    found = rows(exp)["layer1.linear"]
    assert found["act_mean"] == pytest.approx(-50, abs=2)
    expected = {"dead_fraction": None, "saturated_fraction": None}
    if name in ("relu", "gelu", "silu"):
        expected["dead_fraction"] = 1.0  # type: ignore[assignment]
    elif name in ("tanh", "sigmoid", "softsign"):
        expected["saturated_fraction"] = 1.0  # type: ignore[assignment]
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("act", [nn.Sigmoid(), nn.Hardsigmoid()])
@pytest.mark.parametrize(("pool", "saturated"), [(True, None), (False, 1.0)])
def test_a_gate_at_its_limit_is_open_not_saturated(act: nn.Module, pool: bool, saturated: float | None) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.act, self.head = nn.Conv2d(1, 1, 1), act, nn.Linear(1, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate: torch.Tensor = self.act(self.expand(x.mean((2, 3), keepdim=True) if pool else x))
            logits: torch.Tensor = self.head((x * gate).mean((2, 3)))
            return logits

    model = Gated()
    nn.init.constant_(model.expand.bias, 50.0)  # type: ignore[arg-type]
    found = rows(experiment(model=model))["expand"]
    assert (found["dead_fraction"], found["saturated_fraction"]) == (None, saturated)


@pytest.mark.parametrize(("act", "saturated"), [(nn.ReLU6(), None), (nn.Hardtanh(), 0.5)])
def test_relu6_at_zero_is_off_and_hardtanh_at_its_limit_is_saturated(act: nn.Module, saturated: float | None) -> None:
    hidden = nn.Linear(64, 4)
    with torch.no_grad():
        hidden.weight.zero_()
        hidden.bias.copy_(torch.tensor([-5.0, -9.0, 0.2, 0.9]))
    found = rows(experiment(model=nn.Sequential(nn.Flatten(), hidden, act, nn.Linear(4, 10))))["1"]
    assert (found["dead_fraction"], found["saturated_fraction"]) == (0.5 if saturated is None else None, saturated)


def test_a_network_that_calls_one_activation_module_twice_gives_each_layer_its_own() -> None:
    small = [o for o in SMALL if not o.startswith("model.")]
    exp = build(composed(*small, "model=torchvision", "model.name=resnet18"))
    found = rows(exp)
    assert found["layer1.0.conv1"]["dead_fraction"] is not None
    assert found["layer1.0.conv2"]["dead_fraction"] is not None
    assert found["layer1.0.conv1"]["act_mean"] != found["layer1.0.conv2"]["act_mean"]
    assert found["layer2.0.conv2"]["dead_fraction"] is None  # the shortcut ran between it and the activation
    assert found["layer2.0.downsample.0"]["dead_fraction"] is not None
    assert len(found) == 21


def test_the_features_of_a_linear_layer_over_tokens_are_its_last_dimension() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(8, 6), nn.Linear(6, 10)
            self.start = nn.Parameter(torch.zeros(1, 8, 8))
            nn.init.constant_(self.embed.bias, -99.0)
            nn.init.constant_(self.embed.bias[:3], 99.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x[:, 0] + self.start).relu().mean(1))  # type: ignore[no-any-return]

    found = rows(experiment(model=Tokens()))
    assert found["embed"]["dead_fraction"] == 0.5
    assert found["model"]["act_mean"] is None  # weights of the model itself, which no activation follows


def test_bfloat16_forward_passes_are_measured_as_well() -> None:
    found = rows(experiment("trainer.precision=bf16"))
    assert all(row["act_std"] > 0 for row in found.values())


def test_histograms_come_at_a_few_epochs_with_edges_and_counts_for_every_layer() -> None:
    run = watched(*SMALL, "trainer.epochs=8", "model.width=64", "trainer.batch_size=64")
    assert [k + 1 for k, h in enumerate(run.histograms) if "gradients_counts" in h] == [1, 2, 4, 8]
    assert all(h["weights_counts"].shape == (4, BINS) for h in run.histograms)  # of 8 epochs, which are few
    found = run.histograms[-1]
    sizes = {row["layer"]: run.exp.model.get_parameter(f"{row['layer']}.weight").numel() for row in run.layers}
    assert found["layers"].tolist() == list(sizes)
    for kind in ("activations", "gradients", "weights"):
        assert found[f"{kind}_edges"].shape == (4, BINS + 1)
        assert (np.diff(found[f"{kind}_edges"]) > 0).all()
    assert found["weights_counts"].sum(1).tolist() == [min(n, HISTOGRAM_VALUES) for n in sizes.values()]
    head = run.exp.model.get_parameter("head.weight").detach()
    assert found["weights_edges"][-1, [0, -1]] == pytest.approx([float(head.min()), float(head.max())], rel=1e-5)


def test_histograms_of_weights_are_kept_of_twelve_epochs_at_most() -> None:
    run = watched(*SMALL, "trainer.epochs=30", "model.width=8", "trainer.batch_size=512", "dataset.limit=100")
    kept = [k + 1 for k, h in enumerate(run.histograms) if h is not None]
    assert kept == [1, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30]
    assert [k + 1 for k, h in enumerate(run.histograms) if h and "activations_counts" in h] == [1, 8, 15, 30]


@pytest.mark.parametrize(("model", "count"), [("mlp", 64), ("cnn", 32)])
def test_the_images_are_spread_over_the_validation_split_and_the_same_each_time(model: str, count: int) -> None:
    exp = experiment("dataset.limit=1000", f"model={model}")
    index = torch.linspace(0, len(exp.data.val) - 1, count).long()
    assert torch.equal(Watch(exp)._images, Watch(exp)._images)
    everything = torch.cat([x for x, _, _ in exp.val.epoch(0)])
    assert torch.equal(Watch(exp)._images, everything[index])


def test_sparsity_counts_the_weights_below_a_thousandth_of_the_largest_of_their_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1), nn.Linear(1, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[2.0, 0.0, 0.0019, -0.0021]]))
        model[2].weight.copy_(torch.tensor([[1.0], [1.0], [0.5], [0.1]]))
    assert sparsity(model) == (0.25, {"0": 0.5, "2": 0.0})
