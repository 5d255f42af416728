"""Whether loaded weights get the input that they were trained on (D3), for the check `inputs`.

Two signs: mean and std that the weights are known to expect, and the statistics that their first batch norm kept of its
input. The second one tells, of a file alone, by which mean and std its images were normalised: with ImageNet's in the
place of 0.5 and 0.5 the variance before the first norm is four times what it was. It decides only if another usual mean
and std would fit much better. Cannot detect: channels in another order (BGR).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dlrun.checks.sandbox import replica, samples
from dlrun.models.loading import loaded
from dlrun.training.experiment import Experiment
from dlrun.training.statistics import expected

__all__ = ["disagreement"]

OFF = 0.1  # D3, in units of the std that the weights expect
# distance of a norm's input from what its running statistics hold: the median over channels of |ln variance ratio| plus
# that of |mean difference| in std. EfficientNet-Lite0 on photographs: 0.3 with its own mean and std, 1.5 with others
FAR, CLOSER = 0.8, 0.5
COUNT = 64
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
USUAL = {"ImageNet's": IMAGENET, "0.5 and 0.5": ((0.5,) * 3, (0.5,) * 3), "none": ((0.0,) * 3, (1.0,) * 3)}


class _Seen(Exception):
    """Ends a forward pass at the first norm."""


def disagreement(exp: Experiment) -> str:
    """Return a sentence if the loaded weights expect other mean and std than they get; empty if not, or unknown."""
    if loaded(exp.model) is None or exp.data.units.white is None:
        return ""
    white, channels = exp.data.units.white, exp.data.shape[2]
    mean, std = ([v / white for v in part] for part in (exp.data.mean, exp.data.std))
    distance, found = _by_norm(exp, mean, std, channels)
    known = expected(exp.cfg)
    confirmed = distance <= FAR and exp.data.own is not None  # typed, and right: the file is not the known one
    if found or confirmed or known is None or channels != len(known.mean):
        return found
    shift = max(abs(a - b) / s for a, b, s in zip(mean, known.mean, known.std, strict=True))
    ratio = max(abs(a / b - 1) for a, b in zip(std, known.std, strict=True))
    if max(shift, ratio) <= OFF:
        return ""
    theirs = f"mean {_row(known.mean)}, std {_row(known.std)}"
    return (
        f"the weights of {known.of} expect {theirs}, and get {_row(mean)}, {_row(std)}: type dataset.normalize=weights"
    )


def _by_norm(exp: Experiment, mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[float, str]:
    """The distance of the first batch norm, and a sentence if it is far and another usual mean and std fit better."""
    model = replica(exp).eval()
    norm = next((m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_var is not None), None)
    if norm is None or norm.running_var is None or bool((norm.running_var == 1).all()):
        return math.inf, ""
    x, _ = samples(exp, COUNT)
    now = _distance(model, norm, x)
    if now <= FAR:
        return now, ""
    own = exp.data.own or (exp.data.mean, exp.data.std)
    white = exp.data.units.white or 1.0
    tried = {**USUAL, "the data's own": tuple(tuple(v / white for v in part) for part in own)}
    distances = {}
    for name, (other, scale) in tried.items():
        m, s, to, by = (_channels(part, channels, x) for part in (mean, std, other, scale))
        distances[name] = _distance(model, norm, (x * s + m - to) / by)
    best = min(distances, key=lambda name: distances[name])
    if distances[best] > CLOSER * now:
        return now, ""
    other, scale = tried[best]
    words = f"{now:.2g} from what its first batch norm has kept, with {best} {distances[best]:.2g}"
    fix = "data" if best == "the data's own" else f"[[{_row(other)}],[{_row(scale)}]]"
    what = f"the loaded weights were trained on inputs of another mean and std ({words})"
    return now, f"{what}: type dataset.normalize={fix}"


def _channels(values: Sequence[float], channels: int, x: Tensor) -> Tensor:
    part = [*values] if len(values) == channels else [sum(values) / len(values)] * channels
    return torch.tensor(part, device=x.device, dtype=x.dtype).view(1, -1, 1, 1)


def _distance(model: nn.Module, norm: _BatchNorm, x: Tensor) -> float:
    """How far the input of a norm is from its running statistics; inf if the forward pass does not reach it."""
    kept: list[Tensor] = []

    def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        kept.append(args[0].detach().float())
        raise _Seen

    handle = norm.register_forward_pre_hook(look)
    try:
        with torch.no_grad():
            model(x)
    except _Seen:
        pass
    finally:
        handle.remove()
    if not kept or norm.running_mean is None or norm.running_var is None:
        return math.inf
    dims = [d for d in range(kept[0].ndim) if d != 1]
    mean, variance = kept[0].mean(dims), kept[0].var(dims)
    there = (norm.running_var > 1e-8) & (variance > 1e-12)
    if not bool(there.any()):
        return math.inf
    ratio = (variance[there] / norm.running_var[there]).log().abs().median()
    shift = ((mean - norm.running_mean)[there].abs() / norm.running_var[there].sqrt()).median()
    return float(ratio + shift)


def _row(values: Sequence[float]) -> str:
    return ",".join(f"{v:.3g}" for v in values)
