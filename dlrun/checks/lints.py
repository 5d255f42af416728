"""M4, M5, M9: habits that cost a little; they are warnings or information, never failures.

`lint_bias` detects a linear or convolution layer whose bias the batch (or instance) norm right after it
cancels. `lint_activation` detects sigmoid and tanh in hidden layers, in modules and in functional code, except
gates: outputs that are multiplied with something, as in squeeze-and-excitation. `lint_width` lists widths that
are not powers of two, for information only. Each watches one forward pass, so none detects layers that this pass
does not use, or functional norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from dlrun.checks.advice import advice
from dlrun.checks.check import check
from dlrun.checks.exempt import judged
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, samples
from dlrun.training.copies import copied
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["lint_activation", "lint_bias", "lint_width"]


@check(order=140, needs_outputs=True, by_module=True, labels=False)
def lint_bias(exp: Experiment) -> Verdict:
    """Find biases that the norm right after their layer cancels (M5)."""
    model = copied(exp.model).train()
    makers: dict[int, str] = {}
    alive: list[Tensor] = []  # an id is valid only while its tensor exists
    redundant: list[str] = []

    def made(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            makers[id(output)] = name
            alive.append(output)

        return hook

    def used(module: nn.Module, args: Any) -> None:
        if args and id(args[0]) in makers:
            redundant.append(makers[id(args[0])])

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, _ConvNd)) and module.bias is not None:
            module.register_forward_hook(made(name))
        elif isinstance(module, (_BatchNorm, _InstanceNorm)):
            module.register_forward_pre_hook(used)
    with torch.no_grad():
        model(samples(exp, 4)[0])
    if redundant := judged(exp, "lint_bias", redundant):
        message = f"the norm after {named(redundant)} cancels its bias: build the layer with bias=False"
        return Verdict(Outcome.WARN, f"{len(redundant)} redundant", "none", message)
    return Verdict(Outcome.PASS, "none redundant", "none", "no bias is cancelled by a norm")


SATURATING = {"sigmoid": "sigmoid", "sigmoid_": "sigmoid", "tanh": "tanh", "tanh_": "tanh"}
GATING = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"}


class _Saturating(TorchFunctionMode):
    """Collects the outputs of sigmoid and tanh, without those that are multiplied with something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, str] = {}
        self.alive: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in GATING:
            for argument in args:
                self.found.pop(id(argument), None)
        output = func(*args, **(kwargs or {}))
        if name in SATURATING and isinstance(output, Tensor):
            self.found[id(output)] = SATURATING[name]
            self.alive.append(output)
        return output


@check(order=150, needs_outputs=True, labels=False)
def lint_activation(exp: Experiment) -> Verdict:
    """Find sigmoid and tanh in hidden layers, which saturate there (M4)."""
    model = copied(exp.model).train()
    x, _ = samples(exp, 4)
    with torch.no_grad(), _Saturating() as watch:
        output = model(x)
    watch.found.pop(id(output), None)  # on the logits it is a different mistake (C10)
    if watch.found:
        kinds = " and ".join(sorted(set(watch.found.values())))
        message = f"{kinds} saturates in hidden layers, so gradients vanish; ReLU does not"
        message += advice(exp, "model.activation=relu")
        return Verdict(Outcome.WARN, f"{len(watch.found)} hidden {kinds}", "none", message)
    return Verdict(Outcome.PASS, "none saturating", "none", "no hidden layer has a saturating activation")


@check(order=160, labels=False)
def lint_width(exp: Experiment) -> Verdict:
    """List layers with a width that is not a power of two (M9); information only."""
    widths = {
        name: int(getattr(m, "out_features", 0) or getattr(m, "out_channels", 0))
        for name, m in exp.model.named_modules()
        if isinstance(m, (nn.Linear, _ConvNd))
    }
    hidden = dict(list(widths.items())[:-1])  # the last one returns the logits
    off = [f"{name} {width}" for name, width in hidden.items() if width & (width - 1)]
    shown = f"{len(off)} of {len(hidden)} off"
    if off:
        message = f"widths that are not powers of two (information only): {named(off)}; 32, 64 or 128 suit the hardware"
        return Verdict(Outcome.PASS, shown, "powers of two", message)
    return Verdict(Outcome.PASS, shown, "powers of two", "all widths are powers of two")
