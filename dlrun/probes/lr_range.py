"""The learning-rate range test: one step per batch while the rate rises geometrically (`dlrun lr_range`, O5).

After L. N. Smith, "Cyclical Learning Rates for Training Neural Networks" (2017). The experiment is left unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.batches import Batch
from dlrun.errors import UserError
from dlrun.optim.muon import Muon
from dlrun.probes.untouched import endless, untouched
from dlrun.reports.figures import SHARP, figure_bytes
from dlrun.training import loop
from dlrun.training.experiment import Experiment
from dlrun.training.memory import out_of_memory

__all__ = ["Point", "Verdict", "adaptive", "draw", "judge", "lines", "measure", "normalised", "table"]

LOOKS, HELD = 50, 256  # evaluations of the loss per test, and the images that they use
WIDTH = 0.25  # decades: the standard deviation of the smoothing, over the rate on its log axis
STOP = 4.0  # times the first loss: beyond it the test ends
CAP = 2.0  # times the first loss: larger losses are capped before smoothing
FALL = 0.05  # of the first loss: a smaller fall is flat
LOST = 0.25  # of the fall: a rate that loses so much of it again is too high for weights that cannot grow


@dataclass(frozen=True)
class Point:
    """A step of the test: its rate, the loss of its batch before the step, the smoothed loss of the fixed images."""

    lr: float
    loss: float
    smoothed: float


@dataclass(frozen=True)
class Verdict:
    """`state` is fine, flat, high or open; `lr` is None if the curve gives no suggestion."""

    state: str
    lr: float | None
    text: str


def measure(exp: Experiment, low: float, high: float, steps: int) -> list[Point]:
    """Train `steps` batches at rates from `low` to `high`; ends early if the loss explodes.

    The groups of optimizer.per_layer keep their ratios. Raises UserError if the optimizer has no learning rate,
    or if memory runs out.
    """
    base = float(exp.cfg.optimizer["lr"])
    first = exp.scheduler.state_dict()["base_lrs"]
    if base <= 0 or any("lr" not in group for group in exp.optimizer.param_groups):
        raise UserError(f"optimizer.lr={base:g}: expected more than 0, since the range test scales it")
    steps_done: list[tuple[float, float]] = []  # the rate and the loss of the batch
    looks: list[tuple[float, float]] = []  # the rate and the loss of the fixed images
    with untouched(exp):
        exp.model.train()
        held = _held(exp)
        try:
            for i, (x, y, index) in zip(range(steps), endless(exp.train), strict=False):
                weight = None if exp.train.weights is None else exp.train.weights[index]
                batch = Batch(x, y, index, step=i, seed=exp.cfg.seed, weight=weight)
                lr = low * (high / low) ** (i / (steps - 1))
                for group, own in zip(exp.optimizer.param_groups, first, strict=True):
                    group["lr"] = lr * own / base
                loss = float(loop.step(exp, batch).loss) / len(batch)
                steps_done.append((lr, loss))
                if not loss < STOP * steps_done[0][1]:  # also true of NaN
                    break
                if i % max(1, steps // LOOKS) == 0 or i == steps - 1:
                    looks.append((lr, _loss(exp, held)))
        except Exception as error:
            if out_of_memory(error):
                raise UserError("out of memory: try trainer.accumulate=2 or a smaller trainer.batch_size") from error
            raise
    if looks and len(steps_done) < steps:
        looks.append((steps_done[-1][0], math.inf))
    smooth = _smoothed([lr for lr, _ in steps_done], looks)
    return [Point(lr, loss, value) for (lr, loss), value in zip(steps_done, smooth, strict=True)]


def _held(exp: Experiment) -> list[tuple[Tensor, Tensor]]:
    """Up to HELD fixed training images: on the batch of each step, noise between batches hides a fall of a tenth."""
    size = exp.cfg.trainer.batch_size
    batches = islice(exp.train.epoch(1), max(1, HELD // size))
    return [(x[:HELD], y[:HELD]) for x, y, _ in batches]


def _loss(exp: Experiment, held: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad(), exp.autocast():
        total = sum(float(exp.loss(exp.model(x), y)) * len(y) for x, y in held)
    return total / sum(len(y) for _, y in held)


def _smoothed(rates: list[float], looks: list[tuple[float, float]]) -> list[float]:
    """The mean loss at each rate, weighted by a Gaussian of the distance in decades; NaN without a first loss."""
    if not looks or not math.isfinite(looks[0][1]):
        return [math.nan] * len(rates)
    top = CAP * looks[0][1]
    found = []
    for lr in rates:
        weights = [math.exp(-((math.log10(lr / other) / WIDTH) ** 2) / 2) for other, _ in looks]
        # NaN counts as the highest
        values = [value if value < top else top for _, value in looks]
        total = sum(weights)
        found.append(sum(w * v for w, v in zip(weights, values, strict=True)) / total if total else math.nan)
    return found


def normalised(model: nn.Module) -> bool:
    """Say whether a model has layers that normalise."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    return any(isinstance(module, kinds) for module in model.modules())


def adaptive(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether an optimizer divides the step of each weight by the size of its gradients (Adam, RMSprop …)."""
    return not isinstance(optimizer, (torch.optim.SGD, Muon))


def judge(points: list[Point], low: float, high: float, *, normalised: bool, adaptive: bool) -> Verdict:
    """Suggest a rate: with norm layers from the rate that loses a quarter of the fall, else from the lowest point.

    A norm makes a layer independent of the scale of its weights, which grow under large steps until the relative steps
    are small enough (Arora, Li and Lyu, "Theoretical analysis of auto rate-tuning by batch normalization", 2019), so a
    run with a warm-up and a decaying schedule can start far above the lowest point. Without norms it diverges there.
    Gradients shrink as weights grow, and so do the steps of SGD, but not those of an adaptive optimizer: twice the
    rate leaves half of the units dead, and a tenth of the rate of the lowest point is too low for hard tasks.
    The factors are measured: tests/benchmarks/bench_lr_range.py compares the suggestion with a grid of rates.
    """
    finite = [p for p in points if math.isfinite(p.smoothed)]
    if not finite:
        return Verdict(
            "high", None, f"the loss is not finite from the start: the range is too high, try --low={low / 1e3:g}"
        )
    start, best = finite[0].smoothed, min(finite, key=lambda p: p.smoothed)
    end = finite[-1].smoothed
    if best.smoothed > (1 - FALL) * start:
        if len(finite) < len(points) or end > 1.5 * start:
            text = f"the loss rises without falling first: the range is too high, try --low={low / 1e3:g}"
            return Verdict("high", None, text)
        text = f"the loss stays near {start:.3g}: the range is too low, try --high={high * 1e3:g}"
        return Verdict("flat", None, text)
    level = best.smoothed + LOST * (start - best.smoothed)
    lost = next((p for p in finite if p.lr > best.lr and p.smoothed >= level), None)
    text = f"the loss is lowest ({best.smoothed:.3g}) at lr {best.lr:.2g}"
    if not normalised:
        lr, text = best.lr / 2, f"{text}; half of that is suggested, since the model has no norm layers"
    elif lost:
        lr = lost.lr if adaptive else min(2 * lost.lr, finite[-1].lr)
        much = "that rate is suggested" if adaptive else "twice that rate is suggested"
        text += f" and has lost a quarter of its fall at {lost.lr:.2g}; {much}, since the model has norm layers"
        text += " and the optimizer is adaptive" if adaptive else ""
    else:
        lr, text = math.sqrt(best.lr * finite[-1].lr), f"{text}; the midpoint between it and the end is suggested"
    lr = float(f"{lr:.2g}")
    if best is points[-1]:
        return Verdict("open", lr, f"the loss still falls at the end of the range: try --high={high * 10:g}; {text}")
    return Verdict("fine", lr, text)


def lines(points: Iterable[Point]) -> list[str]:
    """The curve as text: the last smoothed loss of every half decade, as a number and a bar."""
    rows = {math.floor(2 * math.log10(p.lr) + 1e-9): p for p in points}
    shown = [p.smoothed for p in rows.values() if math.isfinite(p.smoothed)]
    top = min(max(shown), 2 * shown[0]) if shown else 1.0
    out = ["      lr  smoothed loss"]
    for p in rows.values():
        bar = "#" * round(40 * min(p.smoothed / top, 1.0)) if math.isfinite(p.smoothed) else ""
        out.append(f"{p.lr:8.1e}  {p.smoothed:8.4f}  {bar}")
    return out


def draw(points: list[Point], verdict: Verdict, title: str) -> bytes:
    """Return a PNG of the loss against the rate on a log axis, with the suggestion marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    finite = [p for p in points if math.isfinite(p.smoothed)]
    rates = [p.lr for p in finite]
    axes.plot(rates, [p.loss for p in finite], color="0.75", lw=1, label="batch of the step")
    axes.plot(rates, [p.smoothed for p in finite], color="#0072B2", lw=2, label=f"the same {HELD} images, smoothed")
    if finite:  # the explosion at the end would flatten the rest of the curve
        top = 2 * max(finite[0].smoothed, finite[0].loss)
        axes.set_ylim(0, min(top, 1.05 * max(p.loss for p in finite)))
    if verdict.lr is not None:
        axes.axvline(verdict.lr, color="#D55E00", ls="--", lw=2, label=f"suggestion: optimizer.lr={verdict.lr:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss (one batch per step)")
    axes.set_title(f"Learning-rate range test: {title}", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure_bytes(figure, SHARP)


def table(points: list[Point]) -> list[dict[str, Any]]:
    """The rows of lr_range.csv, one per step."""
    return [{"step": i, "lr": p.lr, "loss": p.loss, "smoothed": p.smoothed} for i, p in enumerate(points, 1)]
