"""M3, M4, R2: which parts of the network do their work; `dlrun check`.

Watches forward passes of copies. Detects: modules that are registered and never run, one module standing under several
names ([block] * 6), a network that is affine in its input since no activation is called, dropout of 0.7 and more or on
the logits, and in-place modules that change what is read again. Each may be meant, so these are warnings. Cannot
detect: an activation missing in one place among others, or in-place functions outside of modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, samples, settle
from dlrun.models.outputs import logits_of
from dlrun.training.copies import copied
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["structure"]

COUNT = 6
MUCH = 0.7  # of the units dropped: essays take 0.2 to 0.5 (R2)
AFFINE = 1e-4  # of the spread of the logits: rounding leaves less, the least bent activation more
DROPS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
ROUTES = (nn.ModuleList, nn.ModuleDict, nn.MultiheadAttention)


@check(order=68, needs_outputs=True)
def structure(exp: Experiment) -> Verdict:
    """Look for parts that do not run, run twice by accident, or do nothing."""
    model = copied(exp.model).train()
    x, _ = samples(exp, COUNT)
    ran: set[int] = set()
    for module in model.modules():
        module.register_forward_hook(lambda m, *_: ran.add(id(m)) or None)  # type: ignore[func-returns-value]
    with torch.no_grad(), _Drops() as drops:
        logits = logits_of(model(x))
    count = sum(1 for _ in model.modules())
    for value, message in (
        _shared(model),
        drops.judged(logits),
        _idle(model, ran),
        _affine(exp, x),
        _in_place(exp, x),
    ):
        if message:
            return Verdict(Outcome.WARN, value, "every part works", message)
    return Verdict(Outcome.PASS, f"{count} modules", "every part works", "each runs, and bends what it should")


Found = tuple[str, str]
FINE = ("", "")


def _shared(model: nn.Module) -> Found:
    """Modules with weights that are children of one parent under several names."""
    for name, parent in model.named_modules():
        places: dict[int, list[str]] = {}
        for child, module in parent._modules.items():
            if module is not None and any(True for _ in module.parameters()):
                places.setdefault(id(module), []).append(child)
        for same in places.values():
            if len(same) > 1:
                full = [".".join(filter(None, (name, child))) for child in same]
                message = (
                    f"{named(full)} are one module, so they share their weights and running statistics: build each "
                    "anew, [block() for _ in range(n)] instead of [block()] * n"
                )
                return f"one module {len(same)} times", message
    return FINE


class _Drops(TorchFunctionMode):
    """Records the rate and the output of every dropout that is on, in modules and in functional code."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in DROPS and isinstance(result, Tensor):
            rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            if kwargs.get("training", args[2] if len(args) > 2 else True):
                self.found.append((float(rate), result))
        return result

    def judged(self, logits: Tensor) -> Found:
        """Return what is wrong with the rates, or with the place of the last one."""
        high = max((rate for rate, _ in self.found), default=0.0)
        if high >= MUCH:
            message = f"dropout of {high:g} drops {high:.0%} of the units: p is the share that is dropped, not kept"
            return f"dropout {high:g}", f"{message}; if {1 - high:.2g} was meant, use nn.Dropout({1 - high:.2g})"
        if any(rate > 0 and result is logits for rate, result in self.found):
            return "dropout on the logits", "dropout sets logits to 0 at random: move it before the last layer"
        return FINE


def _idle(model: nn.Module, ran: set[int]) -> Found:
    """Modules without weights, such as activations, that the forward pass leaves out; for others see `parameters`."""
    routed = [name for name, m in model.named_modules() if isinstance(m, ROUTES)]
    idle = [
        f"{name} ({type(m).__name__})"
        for name, m in model.named_modules()
        if id(m) not in ran
        and not any(True for _ in m.parameters())
        and not any(True for _ in m.children())
        and type(m).__module__.startswith("torch.nn.")  # others may be called if there is a use for them
        and not isinstance(m, (nn.Identity, nn.Sequential))
        and not any(name.startswith(f"{prefix}.") or name == prefix or not prefix for prefix in routed)
    ]
    if not idle:
        return FINE
    return (
        f"{len(idle)} never run",
        f"{named(idle)} is part of the model, but forward() never calls it: use or remove it",
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


def _in_place(exp: Experiment, x: Tensor) -> Found:
    """Whether modules with inplace=True change a tensor that is read again, such as that of a skip connection."""
    model = copied(exp.model)
    acting = [(n, m) for n, m in model.named_modules() if getattr(m, "inplace", False) is True]
    if not acting:
        return FINE
    settle(model, x)
    model.eval()
    with torch.no_grad():
        before = model(x.clone()).float()
        for _, module in acting:
            module.inplace = False
        after = model(x.clone()).float()
        if torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.std())):
            return FINE
    message = f"inplace=True of {named([n for n, _ in acting])} changes a tensor that is read again, so a skip "
    return "changed in place", message + "connection carries other values than it was given: use inplace=False"
