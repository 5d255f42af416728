"""Sound but unusual networks and losses: no check fails on them (M3, C1-C10)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlrun.checks.result import Verdict
from dlrun.checks.runner import CHECKS
from dlrun.checks.sandbox import no_trace
from dlrun.data.batches import Batch
from dlrun.objectives import Supervised
from dlrun.training.experiment import Experiment, build_model
from dlrun.training.objective import with_batch
from support.composed import alter
from support.pairs import experiment, wear


class Trunk(nn.Module):
    """Two convolutions, and a place for what is unusual."""

    def __init__(self, width: int = 8, norm: Callable[[Any], Any] = lambda layer: layer) -> None:
        super().__init__()
        self.conv1 = norm(nn.Conv2d(1, width, 3, padding=1))
        self.conv2 = norm(nn.Conv2d(width, width, 3, stride=2, padding=1))
        self.head = nn.Linear(width * 16, 10)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


class LogProbabilities(Trunk):
    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(super().forward(x), 1)


class Auxiliary(Trunk):
    """Returns a second classifier's logits in training mode."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.aux, self.kind = nn.Linear(8 * 64, 10), kind

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        if not self.training:
            return logits
        other = self.aux(F.relu(self.conv1(x)).flatten(1))
        return {"aux": other, "logits": logits} if self.kind == "dict" else (logits, other)


class Distances(Trunk):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, 4)
        self.prototypes = nn.Parameter(torch.randn(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(super().forward(x), self.prototypes).square()


class Experts(Trunk):
    """Top-1 routing; with so many experts a few samples do not reach them all."""

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.gate = nn.Linear(128, count)
        self.experts = nn.ModuleList(nn.Linear(128, 128) for _ in range(count))

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        weight, chosen = self.gate(x).softmax(1).max(1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            if mine.any():
                out[mine] = weight[mine, None] * expert(x[mine])
        return x + out


class FromTheFirstBatch(Trunk):
    """Sets a scale and a shift so that the first batch has mean 0 and variance 1, as flows and SELU nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(128)), nn.Parameter(torch.zeros(128))
        self.register_buffer("ready", torch.tensor(False))

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        if self.training and not self.ready:
            with torch.no_grad():
                self.scale.copy_(1 / (x.std(0) + 0.1))
                self.shift.copy_(-x.mean(0) * self.scale)
                self.ready.fill_(True)  # type: ignore[operator]
        return x * self.scale + self.shift


class Tied(Trunk):
    """Uses one convolution three times, and was built to."""

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        for _ in range(3):
            x = F.relu(F.conv2d(x, self.conv2.weight, self.conv2.bias, padding=1))
        return self.conv2(x).flatten(1)


class Checkpointed(Trunk):
    def features(self, x: Tensor) -> Tensor:
        found: Tensor = torch.utils.checkpoint.checkpoint(super().features, x, use_reentrant=False)  # type: ignore[no-untyped-call]
        return found


def old_norm(kind: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trunk(norm=getattr(nn.utils, kind))


def both(*changes: Callable[[Experiment], None]) -> Callable[[Experiment], None]:
    return lambda exp: [change(exp) for change in changes] and None


def scored(loss: nn.Module) -> Callable[[Experiment], None]:
    return lambda exp: alter(exp, loss=loss)


class Focal(nn.Module):
    """Focal loss whose weight has no gradient."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        cost = F.cross_entropy(logits, labels, reduction="none")
        return ((1 - torch.exp(-cost)).detach() ** 2 * cost).mean()


class OneAgainstTheRest(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 10).to(logits))


SOUND: dict[str, Callable[[Experiment], None]] = {
    "log-probabilities and NLL": both(wear(LogProbabilities), scored(nn.NLLLoss())),
    "auxiliary head in a tuple": wear(lambda: Auxiliary("tuple")),
    "auxiliary head in a dict": wear(lambda: Auxiliary("dict")),
    "weight norm, old": wear(lambda: old_norm("weight_norm")),
    "spectral norm, old": wear(lambda: old_norm("spectral_norm")),
    "weight norm": wear(lambda: Trunk(norm=nn.utils.parametrizations.weight_norm)),
    "spectral norm": wear(lambda: Trunk(norm=nn.utils.parametrizations.spectral_norm)),
    "distances": wear(Distances),
    "experts": wear(Experts),
    "initialised from the first batch": wear(FromTheFirstBatch),
    "tied weights": wear(Tied),
    "checkpointed": wear(Checkpointed),
    "focal loss of a detached weight": both(wear(Trunk), scored(Focal())),
    "one against the rest": both(wear(Trunk), scored(OneAgainstTheRest())),
}
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
