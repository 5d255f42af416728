"""What the gradient check differentiates: a float64 copy of the model and a loss that is reproducible (C4).

Reached by `dlrun check check.only=[gradient]`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from dlrun.checks.gradient.differences import NotComparable, gradients
from dlrun.checks.gradient.kinks import Winners
from dlrun.checks.sandbox import samples
from dlrun.checks.smaller import shrunk
from dlrun.data.batches import Batch
from dlrun.training.copies import copied
from dlrun.training.experiment import Experiment
from dlrun.training.random_state import seed_everything

__all__ = ["burn_in", "doubled", "float64", "hold_outputs", "holds_constant", "off_zero"]

SAMPLES = 4
LARGE, SMALL = 5_000_000, 16  # one sample less above so many parameters, unless images have so few pixels a side
BURN_IN, RATE = 10, 3e-4


@contextmanager
def float64() -> Iterator[None]:
    """Let a forward pass create tensors as float64 as well."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def doubled(exp: Experiment, side: int = 0) -> tuple[nn.Module, Callable[[], Tensor], int]:
    """Return a float64 copy of the model in training mode, its loss on a few samples, and their number.

    Images are reduced to `side` pixels if that is not 0. The loss is the same each time: it restores buffers and seeds
    all generators. Raises NotComparable.
    """
    device = torch.device("cpu") if exp.device.type == "mps" else exp.device  # which has no float64
    try:
        model = copied(exp.model).to(device, torch.float64).train()
    except (RuntimeError, TypeError) as error:
        raise NotComparable(f"the model cannot be copied ({error})") from error
    for module in model.modules():
        if type(module).__name__ == "_SpectralNorm":
            module.eval()  # its power iteration blocks gradients
        for hook in module._forward_pre_hooks.values():
            if type(hook).__name__ == "SpectralNorm":  # the older form
                hook.n_power_iterations = 0  # type: ignore[attr-defined]
    # the last maps of small images have one pixel, and batch norm needs every sample
    large = sum(p.numel() for p in model.parameters()) > LARGE and max(exp.data.shape[:2]) > SMALL
    x, y = (t.to(device) for t in samples(exp, SAMPLES - large))
    x, loss, objective = (
        shrunk(x, side).double(),
        copy.deepcopy(exp.loss).to(device).double(),
        copy.deepcopy(exp.objective),
    )
    for inner in vars(objective).values():
        if isinstance(inner, nn.Module):
            inner.to(device).double()
    # layers may initialise themselves from the first batch; what does not run at all is reported by Slopes
    with torch.no_grad(), suppress(RuntimeError, TypeError, ValueError):
        objective(model, loss, Batch(x, y))
    owned = [(m, n, b) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    before = [b.clone() for _, _, b in owned]

    def value() -> Tensor:
        with torch.no_grad():
            for (module, name, buffer), saved in zip(owned, before, strict=True):
                module._buffers[name] = buffer.copy_(saved)
        seed_everything(0)
        found: Tensor = objective(model, loss, Batch(x, y))[0]
        return found

    return model, value, len(y)


def holds_constant(exp: Experiment) -> bool:
    """Whether the loss, on purpose, differentiates a part of itself only: a focal loss with a detached weight.

    Its gradient by the logits then is not the derivative, and still points uphill. Call it within `float64`.
    """
    loss, generator = copy.deepcopy(exp.loss).to("cpu").double(), torch.Generator().manual_seed(0)
    logits = torch.randn(SAMPLES, exp.num_classes, generator=generator, requires_grad=True)
    y = torch.arange(SAMPLES) % exp.num_classes
    try:
        value = loss(logits, y)
        (slope,) = torch.autograd.grad(value, logits)
        numeric = []
        with torch.no_grad():
            for direction in (slope / slope.norm(), torch.randn(slope.shape, generator=generator)):
                ahead, behind = (float(loss(logits + h * direction, y)) for h in (1e-5, -1e-5))
                numeric.append(((ahead - behind) / 2e-5, float((slope * direction).sum())))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False
    uphill = numeric[0][0] > 0.1 * numeric[0][1] > 0
    return uphill and any(abs(found - own) > 1e-3 * max(abs(found), abs(own)) for found, own in numeric)


def hold_outputs(model: nn.Module, names: Iterable[str]) -> None:
    """Let modules answer every forward pass of the model with the outputs of the first, as constants.

    What lies before them then neither has a gradient through them nor changes the loss through them.
    """
    for name in names:
        kept: list[Any] = []
        calls = [0]
        model.register_forward_pre_hook(lambda *_, calls=calls: calls.__setitem__(0, 0))

        def hold(_module: nn.Module, _args: Any, output: Any, kept: list[Any] = kept, calls: list[int] = calls) -> Any:
            if calls[0] == len(kept):
                with torch.no_grad():
                    kept.append(tree_map_only(Tensor, torch.clone, output))
            calls[0] += 1
            return kept[calls[0] - 1]

        model.get_submodule(name).register_forward_hook(hold)


@torch.no_grad()
def off_zero(parameters: Mapping[str, Tensor]) -> None:
    """Change every weight by about a thousandth: on constant regions a bias of 0 puts a ReLU on its kink."""
    generator = torch.Generator().manual_seed(0)
    for p in parameters.values():
        r = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p)
        p.add_(r * torch.where(p == 0, torch.ones_like(p), p.abs()), alpha=1e-3)


def burn_in(loss: Callable[[], Tensor], parameters: Mapping[str, Tensor], deadline: float = float("inf")) -> None:
    """Take a few steps, until the loss has halved: the loss of memorised samples is mostly rounding."""
    start = float("inf")
    for step in range(BURN_IN):
        if step > 1 and time.perf_counter() > deadline:
            return
        with Winners():
            value = loss()
        now = float(value.detach())
        start = now if step == 0 else start
        if now < start / 2:
            return
        with torch.no_grad():
            # the sign, as in the first steps of Adam: of similar size in every layer
            for name, gradient in gradients(value, parameters).items():
                parameters[name].sub_(gradient.sign(), alpha=RATE)
