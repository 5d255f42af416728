"""What an objective leaves behind in the model, in pairs of a fault and its repair (M3, R3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.data.batches import Batch
from dlrun.training.objective import with_batch
from support.composed import alter
from support.pairs import Change, Pair, checked


class Own:
    """The supervised objective by hand, and a place for each mistake."""

    def __init__(self, mistake: str = "") -> None:
        self.mistake = mistake

    def __call__(self, model: nn.Module, loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        x = getattr(self, self.mistake.replace(" ", "_"), lambda model, loss, batch: batch.x)(model, loss, batch)
        logits = model(x)
        value = loss(logits, batch.y)
        if self.mistake == "late eval":
            model.eval()
        if self.mistake == "frozen":
            model.requires_grad_(False)
        if self.mistake == "own backward":
            value.backward(retain_graph=True)
        if self.mistake == "number":
            value = value.detach()
        return (loss(logits, batch.y).expand(len(batch)) if self.mistake == "per sample" else value), logits

    def attack(self, model: nn.Module, loss: nn.Module, batch: Batch) -> Tensor:
        """Images of the fast gradient sign method, with a gradient of the images alone."""
        x = batch.x.clone().requires_grad_()
        model.eval()
        found = loss(model(x), batch.y)
        model.train()
        (slope,) = torch.autograd.grad(found, x)
        return batch.x + 0.1 * slope.sign()

    def attack_with_backward(self, model: nn.Module, loss: nn.Module, batch: Batch) -> Tensor:
        x = batch.x.clone().requires_grad_()
        loss(model(x), batch.y).backward()
        assert x.grad is not None
        return batch.x + 0.1 * x.grad.sign()

    def attack_in_eval(self, model: nn.Module, loss: nn.Module, batch: Batch) -> Tensor:
        found = self.attack(model, loss, batch)
        model.eval()
        return found

    def cleared(self, model: nn.Module, loss: nn.Module, batch: Batch) -> Tensor:
        model.zero_grad()
        return batch.x

    def switched_off(self, model: nn.Module, loss: nn.Module, batch: Batch) -> Tensor:
        torch.set_grad_enabled(False)
        return batch.x

    def perturbed(self, model: nn.Module, loss: nn.Module, batch: Batch) -> Tensor:
        """Adversarial weight perturbation that is not undone."""
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * torch.randn_like(p))
        return batch.x

    def seeded(self, model: nn.Module, loss: nn.Module, batch: Batch) -> Tensor:
        torch.manual_seed(0)
        return batch.x + 0.1 * torch.randn_like(batch.x)


def aims(mistake: str = "") -> Change:
    return lambda exp: alter(exp, objective=with_batch(Own(mistake)))


def wrong(mistake: str, word: str, fixed: str = "", common: str = "", status: str = "fail") -> Pair:
    return Pair(mistake, "objective", word, aims(mistake), aims(fixed), common, status)


PAIRS = [
    wrong("attack in eval", "model.train()", "attack"),
    wrong("late eval", "evaluation mode"),
    wrong("frozen", "requires_grad_(True)"),
    wrong("attack with backward", "autograd.grad", "attack"),
    wrong("own backward", "without backward()"),
    wrong("cleared", "zero_grad()", common="trainer.accumulate=4"),
    wrong("perturbed", "changes the weights"),
    wrong("switched off", "no_grad()"),
    wrong("number", "detach()"),
    wrong("per sample", "one number"),
    wrong("seeded", "seed", status="warn"),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_fault_is_marked_and_its_repair_is_not(pair: Pair) -> None:
    pair.holds()


@pytest.mark.parametrize("mistake", ["attack in eval", "attack with backward", "cleared", "seeded"])
def test_the_line_of_the_users_code_is_named(mistake: str) -> None:
    assert "test_objectives.py:" in checked("objective", "", aims(mistake)).message


def test_nothing_that_was_watched_stays_wrapped() -> None:
    before: list[Any] = [torch.manual_seed, Tensor.backward, torch.autograd.backward, torch.optim.Optimizer.zero_grad]
    checked("objective", "", aims("seeded"))
    assert [torch.manual_seed, Tensor.backward, torch.autograd.backward, torch.optim.Optimizer.zero_grad] == before


@pytest.mark.parametrize("words", ["", "objective=mixup", "objective=cutmix"])
def test_objectives_of_dlrun_pass(words: str) -> None:
    assert checked("objective", words).status == "pass"
