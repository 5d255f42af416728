"""Groups of the optimizer, clipping, averages, penalties, SAM and Lookahead by hand, in pairs (O1, O4, O7, O10, R1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.regularizers import Penalty
from dlrun.training.experiment import Experiment
from support.composed import alter
from support.pairs import Change, Pair, checked


class Rule(torch.optim.Optimizer):
    """SGD by hand, and a place for each mistake."""

    def __init__(self, params: Any, mistake: str = "", lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        self.mistake, self.count = mistake, 0

    def tensors(self) -> list[tuple[Tensor, float]]:
        groups = self.param_groups[:1] if self.mistake == "first group" else self.param_groups
        return [(p, group["lr"]) for group in groups for p in group["params"] if p.grad is not None]

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            self.count += 1
            for p, rate in self.tensors():
                p.sub_(rate * p.grad)
        return loss


class Sam(Rule):
    """Sharpness-aware minimisation: a second gradient, at weights that are moved up and then back."""

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            held = self.tensors()
            norm = torch.stack([p.grad.norm() for p, _ in held]).norm() + 1e-12  # type: ignore[union-attr]
            moves = [0.05 * p.grad / norm for p, _ in held]
            for (p, _), move in zip(held, moves, strict=True):
                p.add_(move)
        closure()
        with torch.no_grad():
            for (p, rate), move in zip(held, moves, strict=True):
                p.sub_(rate * p.grad + (0.0 if self.mistake == "not restored" else 1.0) * move)
        return loss


class Lookahead(Rule):
    """Slow weights that follow the fast ones every five steps."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for p, _ in self.tensors():
                slow = self.state[p].setdefault("slow", p.clone())
                if self.count % 5 == 0:
                    slow.add_((-0.8 if self.mistake == "steps back" else 0.8) * (p - slow))
                    p.copy_(slow)
        return loss


class Restless(Rule):
    """Every second step goes up the gradient, and farther."""

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            self.count += 1
            for p, rate in self.tensors():
                sign = -1.5 if self.mistake == "climbs later" and self.count % 2 == 0 else 1.0
                p.sub_(sign * rate * p.grad)
        return loss


def by_hand(rule: type[Rule], mistake: str = "", groups: int = 1) -> Change:
    def change(exp: Experiment) -> None:
        weights = [*exp.model.parameters()]
        parts = [weights] if groups == 1 else [[p for p in weights if p.ndim >= 2], [p for p in weights if p.ndim < 2]]
        alter(exp, optimizer=rule([{"params": part} for part in parts], mistake))

    return change


@dataclass(frozen=True)
class Own(Penalty):
    """A penalty by hand."""

    function: Callable[[float, nn.Module], Tensor] = lambda strength, model: torch.zeros(())

    def penalty(self, model: nn.Module) -> Tensor:
        return self.function(self.l2, model)


def squares(tensors: Any) -> Tensor:
    return torch.stack([p.square().sum() for p in tensors if p.ndim >= 2]).sum()


def penalised(function: Callable[[float, nn.Module], Tensor]) -> Change:
    return lambda exp: alter(exp, penalty=Own(l2=1e-3, function=function))


def nested(strength: float, model: nn.Module) -> Tensor:
    return strength * squares(p for m in model.modules() for p in m.parameters())


def means(strength: float, model: nn.Module) -> Tensor:
    return strength * torch.stack([p.square().mean() for p in model.parameters() if p.ndim >= 2]).sum()


def sizes(strength: float, model: nn.Module) -> Tensor:
    return strength * torch.stack([p.norm() for p in model.parameters() if p.ndim >= 2]).sum()


whole = penalised(lambda s, m: s * squares(m.parameters()))
half = penalised(lambda s, m: s / 2 * squares(m.parameters()))


def swapped(head: float, body: float) -> Change:
    def change(exp: Experiment) -> None:
        *others, weight, bias = exp.model.parameters()
        groups = [{"params": others, "lr": body}, {"params": [weight, bias], "lr": head}]
        alter(exp, optimizer=torch.optim.SGD(groups, lr=body))

    return change


SGD = "optimizer=sgd model.norm=none"
PAIRS = [
    Pair(
        *("SAM that does not move back", "descent", "SAM has to move back"),
        *(by_hand(Sam, "not restored"), by_hand(Sam), "", "fail"),
    ),
    Pair(
        *("slow weights that step back", "updates", "away from the fast"),
        *(by_hand(Lookahead, "steps back"), by_hand(Lookahead), "", "fail"),
    ),
    Pair(
        *("every second step climbs", "trial_steps", "torch.optim.Adam does"),
        *(by_hand(Restless, "climbs later"), by_hand(Restless), "", "fail"),
    ),
    Pair(
        *("only the first group", "optimizer", "self.param_groups"),
        *(by_hand(Rule, "first group", 2), by_hand(Rule, "", 2), "", "fail"),
    ),
    Pair("a rate of 0 in one group", "rates", "rate of", swapped(0.0, 0.1), swapped(0.1, 0.1), "", "fail"),
    Pair("rates of head and backbone swapped", "rates", "wrong way round", swapped(1e-4, 0.01), swapped(0.01, 1e-4)),
    Pair("a low rate for the head", "rates", "=10x", "optimizer.head_lr=0.001", "optimizer.head_lr=0.1", SGD),
    Pair("layers that stand still", "rates", "stand still", "optimizer.layer_decay=0.01", "optimizer.layer_decay=0.7"),
    Pair("norm clipped to a rate", "trial_steps", "=1", "trainer.clip_norm=1e-3", "trainer.clip_norm=1", SGD, "warn"),
    Pair(
        *("values clipped to their signs", "trial_steps", "signs"),
        *("trainer.clip_value=1e-5", "trainer.clip_value=0.1", SGD, "warn"),
    ),
    Pair("a rate that climbs", "trial_steps", "optimizer.lr=0", "optimizer.lr=10", "optimizer.lr=0.1", SGD, "warn"),
    Pair("average over all and more", "trial_steps", "lag", "trainer.ema=0.9999", "trainer.ema=0.99", "", "warn"),
    Pair("average of two steps", "trial_steps", "hardly", "trainer.ema=0.5", "trainer.ema=0.99", "", "warn"),
    Pair("a penalty above all", "trial_steps", "outweighs", "regularizer.l2=1", "", "regularizer=l2 optimizer=sgd"),
    Pair("weights counted once per module", "penalty", "model.parameters() once", penalised(nested), whole),
    Pair("mean over tensors", "penalty", "sum()", penalised(means), whole),
    Pair("norms without squares", "penalty", "square()", penalised(sizes), half),
    Pair(
        "multiplied by samples", "penalty", "times as", penalised(lambda s, m: 32 * s * squares(m.parameters())), half
    ),
    Pair("divided by weights", "penalty", "times as", penalised(lambda s, m: s * squares(m.parameters()) / 9e3), half),
    Pair("strength squared", "penalty", "once", penalised(lambda s, m: s**2 * squares(m.parameters())), whole),
    Pair(
        *("acts though it is off", "penalty", "at strength 0"),
        *(penalised(lambda s, m: (s + 1e-4) * squares(m.parameters())), whole),
    ),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_fault_is_marked_and_its_repair_is_not(pair: Pair) -> None:
    pair.holds()


@pytest.mark.parametrize("words", ["l1", "l2", "elastic", "none regularizer.l2=1e-5 regularizer.biases=true"])
def test_penalties_of_dlrun_pass(words: str) -> None:
    assert checked("penalty", f"regularizer={words}").status == "pass"


def test_clipping_that_adam_undoes_passes_and_is_counted() -> None:
    found = checked("trial_steps", "trainer.clip_norm=0.01")
    assert (found.status, "100%" in found.value) == ("pass", True)


@pytest.mark.parametrize(
    "words", ["optimizer=adadelta", "optimizer=lbfgs", "optimizer.sam=0.05", "objective=mixup", "optimizer.lr=1e-6"]
)
def test_sound_trainings_pass(words: str) -> None:
    assert checked("trial_steps", words).status == "pass"


def test_the_experiment_is_the_same_afterwards() -> None:
    exps: list[Experiment] = []
    checked("trial_steps", "", lambda exp: exps.append(exp))
    (exp,) = exps
    assert not exp.optimizer.state
    assert checked("trial_steps", "", lambda other: alter(other, model=replace(exp).model)).status == "pass"


def test_steps_of_many_evaluations_are_compared_with_the_loss_before_the_first() -> None:
    # the first step of L-BFGS ends next to 0, from where later ones may leave all numbers
    found = checked("trial_steps", "optimizer=lbfgs")
    assert found.status == "pass"
    assert 1.5 < float(found.value.split()[1]) < 3.5
