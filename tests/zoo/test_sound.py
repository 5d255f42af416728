"""Sound but unusual networks and losses: no check fails on them (M3, C1-C10)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.checks.result import Verdict
from dlrun.checks.runner import CHECKS
from dlrun.checks.sandbox import no_trace
from dlrun.data.batches import Batch
from dlrun.objectives import Supervised
from dlrun.training.experiment import build_model
from dlrun.training.objective import with_batch
from support.pairs import experiment
from support.sound import SOUND
from support.unusual import Auxiliary

# the checks that are likeliest to fail on them, which take a moment; the slow test runs all
LIKELY = {
    "log-probabilities and NLL": "loss initial_loss probabilities",
    "auxiliary head in a tuple": "outputs initial_loss probabilities parameters",
    "auxiliary head in a dict": "outputs parameters",
    "weight norm, old": "outputs independence optimizer",
    "spectral norm, old": "outputs gradient",
    "distances": "probabilities",
    "experts": "parameters",
    "initialised from the first batch": "independence",
    "focal loss of a detached weight": "loss gradient",
    "one against the rest": "loss initial_loss",
}


def failed(name: str, checks: Iterable[str]) -> dict[str, Verdict]:
    exp = experiment("", SOUND[name])
    with no_trace():
        found = {check: CHECKS[check](exp) for check in checks}
    return {check: verdict for check, verdict in found.items() if verdict.status == "fail"}


@pytest.mark.parametrize("name", LIKELY)
def test_what_is_unusual_and_sound_passes_the_checks_that_look_at_it(name: str) -> None:
    assert failed(name, LIKELY[name].split()) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUND)
def test_what_is_unusual_and_sound_fails_no_check(name: str) -> None:
    assert failed(name, CHECKS) == {}


class Lazy(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def test_lazy_layers_get_their_sizes_when_the_model_is_built() -> None:
    model = build_model({"_target_": f"{__name__}.Lazy"}, [__name__.partition(".")[0]], (8, 6, 3), ["a", "b"])
    assert [tuple(p.shape) for p in model.parameters()] == [(4, 3, 3, 3), (4,), (2, 4 * 6 * 4), (2,)]
    assert model.training


@torch.no_grad()
def test_the_loss_of_an_auxiliary_classifier_counts_by_its_weight() -> None:
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    model, loss = Auxiliary("tuple").train(), nn.CrossEntropyLoss()
    logits, other = model(x)
    value, main = Supervised()(model, loss, Batch(x, y))
    assert torch.equal(main, logits)
    assert float(value) == pytest.approx(float(loss(logits, y) + 0.3 * loss(other, y)))
    value, _ = Supervised(aux_weight=0.0)(model, loss, Batch(x, y))
    assert float(value) == pytest.approx(float(loss(logits, y)))
    value, _ = Supervised()(model.eval(), loss, Batch(x, y))
    assert float(value) == pytest.approx(float(loss(logits, y)), rel=1e-5)


def test_an_objective_may_take_images_and_labels() -> None:
    class Old:
        train_acc_valid = False

        def __call__(self, model: Any, loss: Any, x: Tensor, y: Tensor, index: Tensor | None = None) -> Any:
            return x.sum() + y.sum() + (0 if index is None else index.sum()), x

    batch = Batch(torch.ones(2, 1), torch.tensor([1, 2]), torch.tensor([5, 7]))
    found = with_batch(Old())
    assert float(found(None, None, batch)[0]) == 2 + 3 + 12
    assert not found.train_acc_valid
    new = Supervised()
    assert with_batch(new) is new


def test_a_loss_of_others_needs_no_argument_for_weights_that_are_off() -> None:
    exp = experiment("loss._target_=torch.nn.CrossEntropyLoss")
    assert type(exp.loss) is nn.CrossEntropyLoss
    assert exp.loss.weight is None
