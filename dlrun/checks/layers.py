"""M4, M5, M6: each layer is built with settings that let it work; `dlrun check`.

Reads the settings and the weights at the start; trains a copy for three steps only if units are alike. Detects: units
that start with the same weights and stay the same, weights that are frozen at a random start, eps in the place of
momentum, a slope of 1 or a flag in the place of a number, pooling that changes nothing. Cannot detect: frozen weights
that were drawn from a normal distribution, which look like trained ones.
"""

from __future__ import annotations

from itertools import repeat

from torch import Tensor, nn
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, replica, samples, training
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["layers"]

COUNT, STEPS = 16, 3
EPS = 0.05  # norms take 1e-3 or less; the variance that it is added to is about 1
MANY = 64  # weights whose distribution can be told
UNIFORM, FLAT = 0.02, 0.15  # of the largest over the spread, and of the kurtosis of 1.8, in a sample of many
Found = tuple[str, str]
FINE = ("", "")


@check(order=64, needs_outputs=True, labels=False)
def layers(exp: Experiment) -> Verdict:
    """Look for layers whose settings or first weights keep them from working."""
    expected = "settings and weights that can learn"
    for serious, (value, message) in (
        (True, _alike(exp)),
        (False, _settings(exp.model)),
        (False, _frozen(exp.model)),
    ):
        if message:
            return Verdict(Outcome.FAIL if serious else Outcome.WARN, value, expected, message)
    count = sum(1 for _ in exp.model.modules())
    return Verdict(Outcome.PASS, f"{count} modules", expected, "no setting or first weight stands in the way")


def _alike(exp: Experiment) -> Found:
    """Layers whose units have the same weights, before and after a few steps: they never become different."""
    if not _same(exp.model):
        return FINE
    model = replica(exp)
    for _ in training(exp, model, repeat(samples(exp, COUNT), STEPS), 1e-3):
        pass
    found = _same(model)
    if not found:
        return FINE
    message = (
        f"all units of {named(found)} start with the same weights and learn the same, so each layer is worth one unit: "
        "initialise with random numbers, such as nn.init.kaiming_normal_(weight), and zeros for biases alone"
    )
    return f"{len(found)} layers of equal units", message


def _same(model: nn.Module) -> list[str]:
    found = []
    for name, p in model.named_parameters():
        if p.requires_grad and p.ndim > 1 and len(p) > 1 and p[0].numel() > 1:
            units = p.detach().flatten(1)
            if float((units - units[:1]).abs().max()) <= 1e-6 * float(units.abs().max()):
                found.append(name)
    return found


def _settings(model: nn.Module) -> Found:
    for name, m in model.named_modules():
        kind = type(m).__name__
        if not type(m).__module__.startswith("torch.nn."):
            continue
        eps, slope, inplace = (getattr(m, key, None) for key in ("eps", "negative_slope", "inplace"))
        if isinstance(eps, float) and eps > EPS and "Norm" in kind:
            message = (
                f"{name} ({kind}) has eps={eps:g}, added to the variance: the second argument is eps, not momentum; "
                f"write {kind}(…, momentum=0.1), and leave eps at 1e-5"
            )
            return f"eps {eps:g}", message
        if slope is not None and slope >= 1:
            message = f"{name} ({kind}) has negative_slope={slope}, so it is no activation: "
            return f"slope {slope}", f"{message}write nn.LeakyReLU(0.01, inplace=True) if inplace was meant"
        if inplace is not None and not isinstance(inplace, bool):
            message = f"{name} ({kind}) has inplace={inplace!r}: the argument is no slope"
            return f"inplace {inplace!r}", f"{message}; write nn.LeakyReLU({inplace!r}) if a slope was meant"
        if isinstance(m, (_AvgPoolNd, _MaxPoolNd)) and _ones(m.kernel_size) and _ones(m.stride):
            message = f"{name} ({kind}) has a kernel of 1, so it changes nothing"
            return "pooling by 1", f"{message}: write {kind}(2), or remove it"
    return FINE


def _ones(size: object) -> bool:
    return all(n == 1 for n in size) if isinstance(size, tuple) else size == 1


def _frozen(model: nn.Module) -> Found:
    """Weights that are not trained and look as they were drawn: pretrained ones are not evenly distributed."""
    random = [n for n, p in model.named_parameters() if not p.requires_grad and p.ndim > 1 and _uniform(p.detach())]
    if not random:
        return FINE
    message = (
        f"{named(random)} {'is' if len(random) == 1 else 'are'} frozen at a random start, and not pretrained: train "
        "with requires_grad_(True), or load weights before freezing"
    )
    return f"{len(random)} frozen at random", message


def _uniform(weights: Tensor) -> bool:
    """Whether weights are spread evenly between two limits, as torch initialises layers."""
    w = weights.flatten().cpu().double()
    std = float(w.std()) if len(w) >= MANY else 0.0
    if not std > 0:
        return False
    limit = float(w.abs().max()) / (std * 3**0.5)
    kurtosis = float(((w - w.mean()) / std).pow(4).mean())
    # fewer weights leave more to chance
    room = (1000 / min(len(w), 1000)) ** 0.5
    return abs(limit - 1) <= UNIFORM * room and abs(kurtosis - 1.8) <= FLAT * room and abs(float(w.mean())) < 0.2 * std
