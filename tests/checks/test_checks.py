"""The checks on setups whose answer is known: exact numbers, sound oddities, and no trace (C1-C10, M9)."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.checks import chance, garbage, inputs, lints, overfit, probabilities
from dlrun.checks import independence as c8
from dlrun.checks import parameters as c9
from dlrun.checks.advice import advice
from dlrun.checks.augmented import augmented
from dlrun.checks.penalty import penalty
from dlrun.checks.sandbox import in_turn, named, no_trace, peak_rates, samples, settle
from dlrun.config.settings import Settings
from dlrun.training.experiment import Experiment, build
from support.composed import alter, composed

SMALL = ("dataset.limit=300", "trainer.threads=1", "model.width=8")
SUITE = {
    "inputs": inputs.inputs,
    "labels": inputs.labels,
    "outputs": inputs.outputs,
    "loss": chance.loss,
    "initial_loss": chance.initial_loss,
    "penalty": penalty,
    "lint_bias": lints.lint_bias,
    "lint_activation": lints.lint_activation,
    "lint_width": lints.lint_width,
    "optimizer": c9.optimizer,
    "parameters": c9.parameters,
    "probabilities": probabilities.probabilities,
    "independence": c8.independence,
    "overfit": overfit.overfit,
    "garbage": garbage.garbage,
}


@functools.cache
def config(*overrides: str) -> Any:
    return composed(*SMALL, *overrides)


def experiment(*overrides: str) -> Experiment:
    return build(config(*overrides))


def wearing(model: nn.Module, *overrides: str) -> Experiment:
    exp = experiment(*overrides)
    alter(exp, model=model)
    alter(exp, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))
    return exp


# the arithmetic


@pytest.mark.parametrize(
    ("hits", "n", "p"), [(0, 10, 0.1), (3, 10, 0.1), (10, 10, 0.5), (40, 300, 0.1), (250, 600, 0.4)]
)
def test_the_tail_of_the_binomial_is_exact(hits: int, n: int, p: float) -> None:
    assert garbage._tail(hits, n, p) == pytest.approx(stats.binom.sf(hits - 1, n, p), rel=1e-9)


@pytest.mark.parametrize(("hits", "n", "others", "m"), [(2, 30, 100, 150), (15, 150, 120, 150), (0, 5, 3, 5)])
def test_worse_is_fishers_exact_test(hits: int, n: int, others: int, m: int) -> None:
    table = [[hits, n - hits], [others, m - others]]
    assert garbage._worse(hits, n, others, m) == pytest.approx(stats.fisher_exact(table, "less").pvalue, rel=1e-9)


def test_guessing_one_class_of_a_skewed_set_is_not_above_chance() -> None:
    # 90 % right, and what one gets who always says 0
    y = torch.tensor([0] * 90 + [1] * 10)
    assert garbage._p_value(torch.zeros(100, dtype=torch.long), y) > 0.5
    assert garbage._p_value(y, y) < 1e-3


def test_a_shift_of_the_classes_is_recognised() -> None:
    y = torch.arange(10).repeat(5)
    assert "labelled 3" in garbage._shift(y, (y + 3) % 10, 10)
    assert garbage._shift(y, y[torch.randperm(50, generator=torch.Generator().manual_seed(0))], 10) == ""


def test_classes_take_turns() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert labels[in_turn(labels, 3)].tolist() == [0, 1, 2, 0, 1, 0]
    exp = experiment()
    assert samples(exp, 20)[1].tolist() == list(range(10)) * 2


def test_settled_statistics_are_those_of_the_batch() -> None:
    norm = nn.BatchNorm1d(2)
    x = torch.tensor([[1.0, 10.0], [3.0, 14.0]])
    settle(norm.eval(), x)
    assert norm.running_mean.tolist() == [2.0, 12.0]
    assert norm.running_var.tolist() == [2.0, 8.0]
    assert (norm.momentum, norm.training) == (0.1, False)


def test_long_lists_of_names_are_cut() -> None:
    assert named(["a", "b", "c"]) == "a, b, c"
    assert named(list("abcde")) == "a, b, c and 2 more"


def test_chance_is_ln_classes_for_cross_entropy_and_classes_less_one_for_hinge() -> None:
    y = torch.arange(10)
    assert chance.expected_loss(experiment(), y) == (pytest.approx(math.log(10)), "ln 10")
    assert chance.expected_loss(experiment("loss=hinge"), y) == (pytest.approx(9.0), "10 - 1")
    wide = experiment("loss=hinge", "loss.margin=2.0")
    assert chance.expected_loss(wide, y) == (pytest.approx(18.0), "(10 - 1) × 2")


def test_with_an_output_bias_chance_is_the_entropy_of_the_labels() -> None:
    exp = experiment("model.output_bias=frequency")
    counts = torch.bincount(exp.data.train.labels).double()
    share = counts / counts.sum()
    y = exp.data.train.labels
    assert chance.expected_loss(exp, y)[0] == pytest.approx(float(-(share * share.log()).sum()), rel=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge"])
def test_with_an_output_bias_the_initial_loss_is_that_of_guessing_by_frequency(tmp_path: Path, loss: str) -> None:
    x = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 1), dtype=np.uint8)
    y = (np.arange(1000) % 10 == 0).astype(np.int64)  # a tenth of class 1
    np.savez(tmp_path / "uneven.npz", x=x, y=y)
    words = ("dataset=arrays", f"dataset.path={tmp_path}/uneven.npz", f"loss={loss}", "model.output_bias=frequency")
    words = (*words, "dataset.split=position")  # with the same number of each class for every draw of the images
    found = chance.initial_loss(experiment(*words))
    assert found.status == "pass", found
    assert ("entropy" in found.expected) == (loss == "cross_entropy")
    # of 64 samples 58 are of class 0; the margin of 1 is met by ln 9 there, and missed by 1 + ln 9 in the other
    exact = {"cross_entropy": -(58 * math.log(0.9) + 6 * math.log(0.1)) / 64, "hinge": 6 / 64 * (1 + math.log(9))}
    assert float(found.expected.split()[0]) == pytest.approx(exact[loss], abs=2e-3)


# sound oddities


class Odd(nn.Module):
    """A trunk and a head, with what a test wants between them."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.trunk, self.between, self.head = nn.Linear(64, 16), between, nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.trunk(x.flatten(1)).relu()))


class Residual(nn.Module):
    """x + branch(x), the branch zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 16), nn.Linear(16, 16)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).relu())


class Gate(nn.Module):
    """Squeeze and excitation: a sigmoid that multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).sigmoid()


OPTIMIZERS = ["sgd", "nesterov", "adagrad", "adadelta", "rmsprop", "rmsprop_momentum", "adamw", "lbfgs"]


def zero_head() -> nn.Module:
    model = Odd(nn.Identity())
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


def test_a_residual_branch_that_starts_at_zero_has_a_few_steps_to_show_a_gradient() -> None:
    assert c9.parameters(wearing(Odd(Residual()))).status == "pass"


def test_a_head_that_starts_at_zero_is_sound() -> None:
    exp = wearing(zero_head())
    assert {n: SUITE[n](exp).status for n in ("independence", "parameters", "probabilities", "initial_loss")} == {
        "independence": "pass",
        "parameters": "pass",
        "probabilities": "pass",
        "initial_loss": "pass",
    }


def test_a_bias_without_a_gradient_before_a_norm_is_left_to_the_lint() -> None:
    model = Odd(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16)))
    assert c9.parameters(wearing(model)).status == "pass"
    assert " between.0 " in lints.lint_bias(wearing(model)).message


def test_a_sigmoid_that_gates_is_no_saturating_layer() -> None:
    assert lints.lint_activation(wearing(Odd(Gate()))).status == "pass"
    assert lints.lint_activation(wearing(Odd(nn.Sigmoid()))).value == "1 hidden sigmoid"


def test_widths_are_information_only() -> None:
    found = lints.lint_width(experiment("model.width=12"))
    assert (found.status, found.value) == ("pass", "3 of 3 off")
    assert "stage1.conv1.conv 12" in found.message


def test_a_few_frozen_weights_pass_and_most_of_them_fail_unless_they_are_asked_for() -> None:
    exp = experiment()
    head = [p for n, p in exp.model.named_parameters() if n.startswith("head")]
    for p in head:
        p.requires_grad_(False)
    found = c9.parameters(exp)
    assert (found.status, "2 are frozen" in found.message) == ("pass", True)
    for p in exp.model.parameters():
        p.requires_grad_(p is head[0] or p is head[1])
    found = c9.parameters(exp)
    assert (found.status, "model.freeze=backbone" in found.message) == ("fail", True)
    asked = experiment("model.freeze=backbone")
    found = c9.parameters(asked)
    assert (found.status, "9 tensors frozen" in found.message) == ("pass", True)
    asked.model.get_parameter("stage1.conv1.conv.weight").requires_grad_()
    assert c9.parameters(asked).status == "fail"


def test_a_warm_up_is_tried_at_the_rate_it_leads_to() -> None:
    exp = experiment("scheduler.warmup=2", "optimizer.lr=0.5")
    assert exp.optimizer.param_groups[0]["lr"] < 0.01
    assert peak_rates(exp) == [0.5]


@pytest.mark.parametrize(
    "name", ["sgd", "nesterov", "adagrad", "adadelta", "rmsprop", "rmsprop_momentum", "adamw", "lbfgs"]
)
def test_every_optimizer_of_the_house_passes_at_its_own_rate(name: str) -> None:
    assert c9.optimizer(experiment(f"optimizer={name}")).status == "pass"


class Smoothed(nn.Module):
    """A loss of the user's own, without `chance`, its labels smoothed inside."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=0.1)


class Squares(nn.Module):
    """A loss that is no cross-entropy: squares against one-hot labels, a mean over samples."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - F.one_hot(labels, logits.shape[1])).square().sum(1).mean()


@pytest.mark.parametrize("own", [Smoothed, Squares])
def test_a_loss_of_the_user_passes_without_a_chance_method(own: type[nn.Module]) -> None:
    exp = experiment()
    alter(exp, loss=own())
    assert chance.loss(exp).status == "pass"


def test_a_loss_with_class_weights_passes() -> None:
    exp = experiment()
    alter(exp, loss=nn.CrossEntropyLoss(weight=torch.linspace(0.5, 3, 10)))
    assert chance.loss(exp).status == "pass"


def test_a_validation_split_of_the_user_may_lack_a_class() -> None:
    exp = experiment("dataset.limit=600")
    few = exp.data.val.labels != 3
    for fraction, status in ((0.1, "fail"), (None, "warn")):
        other = replace(exp.data, val=exp.data.val.subset(few.nonzero().flatten()), val_fraction=fraction)
        found = inputs.labels(replace(exp, data=other))
        assert found.status == status
        assert ("stratified" in found.message) == (fraction is not None)


def test_without_a_penalty_its_check_is_skipped() -> None:
    assert penalty(experiment()).status == "skip"
    assert penalty(experiment("regularizer=elastic")).status == "pass"


# no trace, no false alarm


def test_the_checks_leave_the_experiment_as_it_was() -> None:
    exp = experiment("regularizer=l2")
    before = copy.deepcopy(exp.model.state_dict()), copy.deepcopy(exp.optimizer.state_dict())
    torch.manual_seed(7)
    with no_trace():
        for check in SUITE.values():
            check(exp)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(v, before[0][k]) for k, v in exp.model.state_dict().items())
    assert str(exp.optimizer.state_dict()) == str(before[1])
    assert [p.grad for p in exp.model.parameters()] == [None] * len(list(exp.model.parameters()))
    assert exp.model.training


def test_a_deep_network_that_overflows_when_pushed_has_logits() -> None:
    exp = build(composed("model=resnet56", "model.norm=none", "dataset.limit=300", "trainer.threads=1"))
    assert probabilities.probabilities(exp).status == "pass"


def alarms(exp: Experiment) -> dict[str, str]:
    with no_trace():
        found = {name: check(exp) for name, check in SUITE.items() if not name.startswith("lint")}
    return {name: f"{v.status}: {v.value}" for name, v in found.items() if v.status not in ("pass", "skip")}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("overrides", [
    ("model=mlp", "model.norm=layer", "model.activation=gelu"),
    ("model=mlp", "model.depth=0"),
    ("model=cnn", "model.norm=none", "model.activation=sigmoid", "loss=hinge"),
    ("model=cnn", "model.norm=group", "model.activation=maxout", "regularizer=dropout"),
    ("model=resnet20", "model.norm=none", "loss=hinge", "model.zero_init_residual=false"),
], ids=" ".join)  # fmt: skip
def test_sound_setups_raise_no_alarm(overrides: tuple[str, ...]) -> None:
    assert alarms(build(composed("dataset.limit=600", "trainer.threads=1", *overrides))) == {}


@pytest.mark.parametrize("overrides", [(), ("model.norm=none", "model.activation=relu"), ("model.skip=false",)])
def test_a_deep_residual_network_that_is_sure_of_itself_is_advised_what_calms_it(overrides: tuple[str, ...]) -> None:
    words = ("dataset.limit=300", "trainer.threads=1", "model=resnet20", "model.activation=maxout", *overrides)
    exp = build(composed(*words))
    with torch.no_grad():
        exp.model.head.weight.mul_(100.0)
    found = chance.initial_loss(exp)
    assert found.status != "pass"
    tried = found.message.partition("; try ")[2].split()
    assert ("model.zero_init_residual=true" in tried) == (exp.cfg.model["skip"] is True)
    assert build(composed(*words, *tried)).cfg.model["norm"] != "none"  # a setup that composes


def test_zero_init_residual_makes_deep_maxout_networks_guess() -> None:
    words = ("dataset.limit=300", "trainer.threads=1", "model=resnet56", "model.activation=maxout", "seed=2")
    assert chance.initial_loss(build(composed(*words))).status == "warn"
    assert chance.initial_loss(build(composed(*words, "model.zero_init_residual=true"))).status == "pass"


def test_the_published_depths_of_residual_networks_start_within_the_band() -> None:
    for words in (("model=resnet56",), ("model=resnet56", "model.norm=layer", "seed=5")):
        found = chance.initial_loss(build(composed("dataset.limit=300", "trainer.threads=1", *words)))
        assert found.status == "pass", (words, found)


# advice


@pytest.mark.parametrize("limit", [0, 12])
def test_a_limit_is_to_be_raised_only_where_there_is_one(limit: int) -> None:
    exp = experiment()
    alter(exp, cfg=exp.cfg.changed(dataset={"limit": limit}))
    alter(
        exp,
        data=replace(exp.data, train=exp.data.train.subset(torch.arange(3)), val=exp.data.val.subset(torch.arange(2))),
    )
    for check in (inputs.labels, c8.independence, garbage.garbage):
        found = check(exp)
        assert found.status in ("fail", "skip")
        assert ("raise dataset.limit=12" in found.message) == (limit == 12)


def test_advice_names_keys_of_the_config_with_other_values() -> None:
    exp = experiment("optimizer.lr=0.001", "model.init=he_normal")
    words = ("optimizer.lr=1e-3", "model.init=he_normal", "model.init=default", "model.colour=red", "regularizer=l2")
    assert advice(exp, *words) == "; try model.init=default regularizer=l2"
    assert advice(exp, "optimizer.lr=1e-3") == ""


@pytest.mark.slow
def test_a_model_of_the_user_is_advised_no_key_that_it_lacks() -> None:
    exp = experiment("model.norm=none", "model.activation=tanh")
    for p in exp.model.parameters():
        p.data.zero_()
    assert "; try model.activation=relu model.norm=batch" in overfit.overfit(exp).message
    own = {"_target_": "mynet.Net", "init": "default", "output_bias": "default"}
    alter(exp, cfg=Settings.of({**exp.cfg.plain, "model": own}))
    assert "try" not in overfit.overfit(exp).message


def test_logits_that_are_not_finite_for_some_samples_are_reported_as_such() -> None:
    class Rare(Odd):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.where(torch.arange(len(x)) == 20, math.nan, 0.0).unsqueeze(1)

    found = chance.initial_loss(wearing(Rare(nn.Identity())))
    assert found.status == "fail"
    assert "1 of 64 samples" in found.message


def test_images_may_be_evaluated_larger_than_they_are_trained() -> None:
    exp = build(composed(*SMALL, "augment=resized_crop", "augment.crop=6", "augment.eval_crop=7"))
    with no_trace():
        assert augmented(exp).status == "pass"
