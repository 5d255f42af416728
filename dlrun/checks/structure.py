"""M3, M4, R2: which parts of the network do their work; `dlrun check`.

Watches forward passes of copies. Detects: modules that are registered and never run, one module standing under several
names ([block] * 6), a network that is affine in its input since no activation is called, one that sees patches without
their positions. Each may be meant, so these are warnings. Cannot detect: an activation missing in one place among
others; see `flow`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from dlrun.checks.check import check
from dlrun.checks.exempt import judged
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, settle
from dlrun.checks.smaller import small_samples
from dlrun.training.copies import copied
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["structure"]

COUNT = 6
AFFINE = 1e-4  # of the spread of the logits: rounding leaves less, the least bent activation more
SLIGHT = 1e-3  # of a weight: ConvNeXt scales its branches by 1e-6, CaiT by 1e-5 (Touvron et al. 2021)
MOVED = 1e-5  # of the spread of the logits, for images whose parts were exchanged


@check(order=68, needs_outputs=True, by_module=True, labels=False)
def structure(exp: Experiment) -> Verdict:
    """Look for parts that do not run, run twice by accident, or do nothing."""
    model = copied(exp.model).train()
    x, _ = small_samples(exp, COUNT)
    ran: Counter[int] = Counter()
    for module in model.modules():
        module.register_forward_hook(lambda m, *_: ran.update([id(m)]))
    with torch.no_grad(), _Attention() as attention:
        model(x)
    count = sum(1 for _ in model.modules())
    for value, message in (
        _shared(model, ran),
        _idle(exp, model, ran, attention.rates),
        _affine(exp, x),
        _positions(exp, x),
    ):
        if message:
            return Verdict(Outcome.WARN, value, "every part works", message)
    return Verdict(Outcome.PASS, f"{count} modules", "every part works", "each runs, and bends what it should")


Found = tuple[str, str]
FINE = ("", "")


def _shared(model: nn.Module, ran: Counter[int]) -> Found:
    """A module with weights that stands under several names and runs several times; under one name it is meant.

    Another name for a module that runs once, such as self.trunk = backbone.features, is no second one.
    """
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if ran[id(module)] > 1 and any(True for _ in module.parameters()):
            names.setdefault(id(module), []).append(name)
    for same in names.values():
        if len(same) > 1:
            message = (
                f"{named(same)} are one module, so they share their weights and running statistics: build each "
                "anew, [block() for _ in range(n)] instead of [block()] * n"
            )
            return f"one module {len(same)} times", message
    return FINE


class _Attention(TorchFunctionMode):
    """Collects the rates at which attention drops within its one kernel, taken from a dropout that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = {0.0}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "scaled_dot_product_attention":
            self.rates.add(float(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)))
        return func(*args, **kwargs)


def _idle(exp: Experiment, model: nn.Module, ran: Counter[int], rates: set[float]) -> Found:
    """Modules without weights, such as activations, that the forward pass leaves out; for others see `parameters`."""
    routed = [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.MultiheadAttention)
        or (isinstance(m, (nn.ModuleList, nn.ModuleDict)) and any(ran[id(part)] for part in m.modules()))
    ]
    idle = [
        name
        for name, m in model.named_modules()
        if not ran[id(m)]
        and not any(True for _ in m.parameters())
        and not any(True for _ in m.children())
        and type(m).__module__.startswith("torch.nn.")  # others may be called if there is a use for them
        and not isinstance(m, (nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict))
        and not (isinstance(m, _DropoutNd) and m.p in rates)
        and not any(name.startswith(f"{prefix}.") or name == prefix or not prefix for prefix in routed)
    ]
    if not (idle := judged(exp, "structure", idle)):
        return FINE
    shown = named([f"{name} ({type(model.get_submodule(name)).__name__})" for name in idle])
    return (
        f"{len(idle)} never run",
        f"{shown} is part of the model, but forward() never calls it: use or remove it",
    )


def _affine(exp: Experiment, x: Tensor) -> Found:
    """Whether f(a) + f(b) - f(c) = f(a + b - c): then several layers are worth no more than one."""
    model = copied(exp.model)
    layers = sum(p.ndim > 1 for p in model.parameters())
    if layers < 2 or len(x) < COUNT:
        return FINE
    settle(model, x)
    model.eval()
    with torch.no_grad():
        a, b, c = (model(part).float() for part in (x[:2], x[2:4], x[4:6]))
        sums = model(x[:2] + x[2:4] - x[4:6]).float()
        spread = float(torch.cat([a, b, c]).std(0).max())
    if not float((a + b - c - sums).abs().max()) <= AFFINE * spread or spread == 0:
        return FINE
    message = (
        f"the network is affine in its input: its {layers} layers of weights are worth no more than one, since no "
        "activation is called between them; call it in forward()"
    )
    return "affine", message


def _positions(exp: Experiment, x: Tensor) -> Found:
    """Whether the logits stay the same if two quarters of the images are exchanged."""
    model = copied(exp.model)
    for p in model.parameters():
        if p.numel() and float(p.detach().abs().max()) < SLIGHT:
            nn.init.normal_(
                p, std=0.02
            )  # positions may start at zero, and the scale of a branch that sees them near it
    settle(model, x)
    model.eval()
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    moved = x.clone()
    moved[:, :, :rows, :columns], moved[:, :, -rows:, -columns:] = (
        x[:, :, -rows:, -columns:],
        x[:, :, :rows, :columns],
    )
    with torch.no_grad():
        before, after = (model(one.clone()).float() for one in (x, moved))
    spread = float(before.std(0).max())
    if not float((before - after).abs().max()) <= MOVED * spread or spread == 0 or torch.equal(x, moved):
        return FINE
    message = (
        "the logits stay the same if two quarters of an image are exchanged, so the network does not know where its "
        "parts are: add the embedding of positions to the patches, or convolve with a kernel that overlaps them"
    )
    return "positions unknown", message
