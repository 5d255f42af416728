"""Statistics of the network while it trains, one row per layer and epoch: layers.csv of `dlrun train` (B3, B4, B6, R4).

A layer is a module that owns weights of two or more dimensions, and has the name of the module. Watching changes no
weight, gradient, buffer or random state, and needs no state in a checkpoint: the measured steps and epochs follow from
their numbers. dlrun/analysis/verdicts.py draws conclusions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlrun.training import sharded
from dlrun.training.bends import Bend, bend_of, nonlinear
from dlrun.training.experiment import Experiment
from dlrun.training.random_state import rng_state, set_rng_state

__all__ = ["Look", "Watch", "sparsity"]

SAMPLES = 64  # validation images that the activations are measured on
CONV_SAMPLES = 32  # the same for convolutions, whose channels have a value at every pixel
STEPS = 3  # steps of an epoch whose update is measured
BINS = 50
HISTOGRAM_VALUES = 20_000  # drawn from a layer's activations, gradients or weights: enough for BINS bins
RIDGES = 12  # epochs, evenly spread, of which histograms of the weights are kept: with 60 layers 0.3 MB (B6)
TINY = 1e-3  # a weight below this share of its layer's largest counts as zero (R4)


@dataclass
class Look:
    """The statistics of an epoch: rows of layers.csv, columns of metrics.csv, and histograms in a few epochs."""

    rows: list[dict[str, Any]]
    update_ratio: float | None  # median over layers
    dead_fraction: float | None  # over the units of all layers that can die
    nonlinear: float | None  # share of a change of the logits that no affine map explains
    histograms: dict[str, NDArray[Any]] | None  # of each kind counts (L, BINS), edges (L, BINS + 1); weights most often


class Watch:
    """Watches the model of an experiment: wrap each optimizer step in `step`, and `look` after each epoch.

    With trainer.diagnostics=false it does nothing.
    """

    def __init__(self, exp: Experiment) -> None:
        self._exp, self._on = exp, exp.cfg.trainer.diagnostics
        if not self._on:
            return
        self._weights = _weights_by_layer(exp.model)
        self._parts = _weights_by_layer(sharded.of(exp).model)  # of this process, if several divide the weights
        self._tensors = [*chain(*self._parts.values())]
        self._modules = dict(exp.model.named_modules())
        # the output of a layer that contains others is not measured
        self._leaves = {n for n in self._weights if not any(o.startswith(f"{n}.") for o in self._weights)}
        self._norms: list[Tensor] = []
        epochs = exp.cfg.trainer.epochs
        self._histogram_epochs = {1, math.ceil(epochs / 4), math.ceil(epochs / 2), epochs}
        self._weight_epochs = {1, *(math.ceil(epochs * k / RIDGES) for k in range(1, RIDGES + 1))}
        # spread over the split, since a folder's samples are sorted by class
        convolves = any(p.ndim > 2 for p in self._tensors)
        split = exp.data.val if len(exp.data.val) else exp.data.train
        count = min(CONV_SAMPLES if convolves else SAMPLES, len(split))
        index = torch.linspace(0, len(split) - 1, count).long()
        self._images, _, _ = next(exp.batches(split.subset(index), batch_size=count).epoch(0))

    def step(self, i: int, steps: int) -> AbstractContextManager[None]:
        """Measure the optimizer step `i` (from 0) of `steps` in the `with` block, if it is one of the few to measure.

        Norms stay on the device of the weights, so that no step waits for an accelerator.
        """
        return self._measured() if self._on and i in _few(steps) else _UNMEASURED

    @contextmanager
    def _measured(self) -> Iterator[None]:
        with torch.no_grad():
            before = [p.detach().clone() for p in self._tensors]
        yield
        with torch.no_grad():
            sizes = _norms(before)
            torch._foreach_sub_(before, [p.detach() for p in self._tensors])
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._tensors]
            self._norms.append(torch.stack([sizes, _norms(before), _norms(gradients)]))

    def look(self, epoch: int) -> Look:
        """Return the statistics of the last epoch's steps and of the activations now; call it once after each epoch."""
        if not self._on:
            return Look([], None, None, None, None)
        wanted = epoch in self._histogram_epochs
        kept = self._parts if wanted else {}
        gradients = {name: [_draw(sharded.whole(p.grad)) for p in kept[name] if p.grad is not None] for name in kept}
        steepness, ratios = self._read_norms()
        if self._exp.group is not None and self._exp.group.rank:  # all have measured, the first one looks
            return Look([], None, None, None, None)
        seen = self._activations(keep=wanted)
        sizes = _by_layer(self._weights, _norms([p.detach() for p in chain(*self._weights.values())]).tolist())
        rows = []
        for k, (name, tensors) in enumerate(self._weights.items()):
            learns = bool(ratios) and not _frozen(tensors)
            row: dict[str, Any] = {"epoch": epoch, "layer": name, "weight_norm": sizes[k]}
            row.update(grad_norm=steepness[k] if learns else None, update_ratio=ratios[k] if learns else None)
            rows.append(row | seen.columns(name))
        moving = [row["update_ratio"] for row in rows if row["update_ratio"] is not None]
        return Look(
            rows=rows,
            update_ratio=median(moving) if moving else None,
            dead_fraction=seen.dead_fraction({row["layer"] for row in rows if _frozen(self._weights[row["layer"]])}),
            nonlinear=seen.nonlinear,
            histograms=self._histograms(seen, gradients) if wanted or epoch in self._weight_epochs else None,
        )

    def _activations(self, keep: bool) -> _Seen:
        """Pass the images through in evaluation mode and return the statistics of the layers."""
        model, listener, handles = self._exp.model, _Listener(keep), []
        random, training = rng_state(), [m for m in self._modules.values() if m.training]
        try:
            for name, module in self._modules.items():
                if isinstance(module, _NORM_MODULES):
                    handles.append(module.register_forward_hook(listener.norm))
                elif name in self._leaves:
                    features_last = self._weights[name][0].ndim == 2
                    handles.append(module.register_forward_hook(listener.layer(name, features_last)))
            if training:
                model.eval()
            with torch.no_grad(), self._exp.autocast(), listener:
                model(self._images)
            seen = listener.result()
            while handles:
                handles.pop().remove()
            with torch.no_grad():
                seen.nonlinear = nonlinear(model, self._images)
            return seen
        finally:
            for handle in handles:
                handle.remove()
            for module in training:
                module.training = True
            set_rng_state(random)

    def _read_norms(self) -> tuple[list[float], list[float]]:
        """Gradient norm and update : weight ratio of each layer, medians over the measured steps (B3)."""
        if not self._norms:
            return [], []
        steps = torch.stack(self._norms).tolist()
        self._norms.clear()
        weights, updates, gradients = (
            list(zip(*(_by_layer(self._weights, step[kind]) for step in steps), strict=True)) for kind in range(3)
        )
        ratios = [map(_ratio, u, w) for u, w in zip(updates, weights, strict=True)]
        return [median(g) for g in gradients], [median(r) for r in ratios]

    def _histograms(self, seen: _Seen, gradients: dict[str, list[Tensor]]) -> dict[str, NDArray[Any]]:
        """Histograms of the weights, and those of activations and gradients if they were drawn."""
        names = list(self._weights)
        kinds = {"weights": [[_draw(p.detach()) for p in self._weights[n]] for n in names]}
        if gradients:
            kinds["activations"] = [seen.values.get(name, []) for name in names]
            kinds["gradients"] = [gradients[name] for name in names]
        found: dict[str, NDArray[Any]] = {"layers": np.array(names)}
        for kind, layers in kinds.items():
            pairs = [_histogram(values) for values in layers]
            found[f"{kind}_counts"] = np.array([counts for counts, _ in pairs], dtype=np.int32)
            found[f"{kind}_edges"] = np.array([edges for _, edges in pairs], dtype=np.float32)
        return found


def _frozen(tensors: Iterable[Tensor]) -> bool:
    """Whether none of these weights trains: a unit of a frozen layer may be silent, but did not die (B4)."""
    return not any(p.requires_grad for p in tensors)


def sparsity(model: nn.Module) -> tuple[float | None, dict[str, float]]:
    """Return the share of weights below 1e-3 of the largest of their layer, of all and by layer (R4)."""
    found, zeros, total = {}, 0, 0
    for name, tensors in _weights_by_layer(model).items():
        flat = torch.cat([p.detach().abs().flatten() for p in tensors])
        small = int((flat <= TINY * flat.max()).sum())
        found[name] = small / len(flat)
        zeros, total = zeros + small, total + len(flat)
    return zeros / total if total else None, found


def _weights_by_layer(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    layers: dict[str, list[nn.Parameter]] = {}
    norms = {name for name, module in model.named_modules() if isinstance(module, _NORM_MODULES)}
    for name, parameter in model.named_parameters():
        # parametrizations such as weight_norm keep the weights of `conv` in conv.parametrizations.weight
        owner = name.rpartition(".")[0].partition(".parametrizations")[0]
        if parameter.ndim >= 2 and owner not in norms:
            layers.setdefault(owner or "model", []).append(parameter)
    return layers


_NORM_MODULES = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@cache
def _few(steps: int) -> frozenset[int]:
    """The steps of an epoch that are measured: spread over it, the last among them."""
    return frozenset((k + 1) * steps // STEPS - 1 for k in range(STEPS))


_UNMEASURED = nullcontext()


def _ratio(update: float, weight: float) -> float:
    if weight > 0:
        return update / weight
    return 1.0 if update else 0.0  # a layer that starts at zero: its update is its whole weight


def _norms(tensors: list[Tensor]) -> Tensor:
    return sharded.whole(torch.stack(torch._foreach_norm(tensors))).float() if tensors else torch.zeros(0)


def _by_layer(layers: dict[str, list[nn.Parameter]], norms: Any) -> list[float]:
    """The norms of layers from those of their tensors, in order."""
    found, start = [], 0
    for tensors in layers.values():
        found.append(math.hypot(*(float(n) for n in norms[start : start + len(tensors)])))
        start += len(tensors)
    return found


@dataclass
class _Seen:
    """Statistics before the activation of each layer: tensors during the forward pass, then numbers."""

    tensors: dict[str, list[Tensor]] = field(default_factory=dict)  # mean, std, dead units, saturated share
    bends: dict[str, Bend] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    values: dict[str, list[Tensor]] = field(default_factory=dict)  # for the histograms
    numbers: dict[str, list[float]] = field(default_factory=dict)
    nonlinear: float | None = None

    def columns(self, layer: str) -> dict[str, float | None]:
        """Return the columns of layers.csv that came from the activations."""
        mean, std, dead, saturated = self.numbers.get(layer, [None] * 4)
        bend = self.bends.get(layer, Bend())
        return {
            "act_mean": mean,
            "act_std": std,
            "dead_fraction": None if dead is None or bend.dead is None else dead / self.units[layer],
            "saturated_fraction": None if bend.saturated is None else saturated,
        }

    def dead_fraction(self, without: Collection[str] = ()) -> float | None:
        """Return the share of dead units among all that can die, `without` some layers."""
        mortal = [name for name, bend in self.bends.items() if bend.dead is not None and name not in without]
        units = sum(self.units[name] for name in mortal)
        return sum(self.numbers[name][2] for name in mortal) / units if units else None


class _Listener(TorchFunctionMode):
    """Intercepts each activation function, in a module or not, and measures its input.

    The input belongs to the layer that ran last. A layer without an activation function before the next layer is
    measured at its own output, or after the norm that follows it.
    """

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.seen, self._keep = _Seen(), keep
        self._layer, self._features_last = "", False
        self._output: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (bend := bend_of(func, args, kwargs)) is not None and self._output is not None:
            self._measure(args[0] if args else kwargs["input"], bend)
        return func(*args, **kwargs)

    def layer(self, name: str, features_last: bool) -> Callable[..., None]:
        """Return the forward hook of a layer."""

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.settle()
            if isinstance(output, Tensor):
                self._layer, self._features_last, self._output = name, features_last, output

        return hook

    def norm(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """The forward hook of a norm."""
        if self._output is not None and isinstance(output, Tensor):
            self._output = output

    def result(self) -> _Seen:
        """Return the statistics, in one transfer from the accelerator."""
        self.settle()
        seen = self.seen
        if seen.tensors:
            numbers = torch.stack([t for four in seen.tensors.values() for t in four]).view(-1, 4).tolist()
            seen.numbers = dict(zip(seen.tensors, numbers, strict=True))
        return seen

    def settle(self) -> None:
        """Measure a layer without an activation function."""
        if self._output is not None:
            self._measure(self._output, Bend())

    def _measure(self, x: Tensor, bend: Bend) -> None:
        self._output, name, seen = None, self._layer, self.seen
        if not x.is_floating_point() or x.ndim < 2:
            return
        x = x.detach().float()
        unit = x.ndim - 1 if self._features_last else 1
        mean, dead, saturated = x.mean(), x.new_zeros(()), x.new_zeros(())
        # on the processor Tensor.std takes ten times as long
        std = torch.linalg.vector_norm(x - mean) / math.sqrt(x.numel())
        if bend.dead is not None:
            dead = (_highest(x, unit) <= bend.dead).sum().float()
        if bend.saturated is not None:
            saturated = (x.abs() > bend.saturated).float().mean()
        seen.tensors[name] = [mean, std, dead, saturated]
        seen.bends[name], seen.units[name] = bend, x.shape[unit]
        if self._keep:
            seen.values[name] = [_draw(x)]


def _highest(x: Tensor, unit: int) -> Tensor:
    """The largest value of each unit, in an order of reduction that suits channels-last memory."""
    return x.movedim(unit, -1).reshape(len(x), -1).amax(0).view(-1, x.shape[unit]).amax(0)


def _draw(x: Tensor) -> Tensor:
    """Up to HISTOGRAM_VALUES of the values, the same places each time, on the processor."""
    x = x.detach()
    if x.numel() > HISTOGRAM_VALUES:
        # random places: even steps would meet the same column of every image
        places = torch.randint(x.numel(), (HISTOGRAM_VALUES,), generator=torch.Generator().manual_seed(0))
        x = torch.take(x, places.to(x.device))
    return x.flatten().float().cpu()


def _histogram(values: list[Tensor]) -> tuple[NDArray[Any], NDArray[Any]]:
    finite = np.concatenate([v.numpy()[np.isfinite(v.numpy())] for v in values] or [np.zeros(0, np.float32)])
    return np.histogram(finite, bins=BINS)
