"""D3, C8: what of the input reaches the network; `dlrun check`.

Watches what the first layer with weights is fed, and the gradient of the logits by the pixels over a batch. Detects:
inputs that are divided by 255 or normalised a second time, channels that are cut off, and large regions that never
count. Cannot detect: pixels in another order that all count (`splits` does for whole images), a region that counts for
other images alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import named, replica, samples
from dlrun.models.outputs import logits_of
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["reach"]

COUNT = 16
SCALE = 0.05, 20.0  # times the scale of what the network is given
UNSEEN = 0.4  # of the pixels: strided first layers may leave out a border


@check(order=67, needs_outputs=True)
def reach(exp: Experiment) -> Verdict:
    """Compare the scale of the first layer's input with that of the images, and look for pixels without influence."""
    model = replica(exp)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.02)  # behind a head that starts at zero nothing has an influence yet
    x, _ = samples(exp, COUNT)
    x = x.clone().requires_grad_()
    seen: list[tuple[str, float, bool]] = []

    def look(name: str, layer: bool) -> Any:
        def hook(_module: nn.Module, args: Any) -> None:
            if not seen and args and isinstance(args[0], Tensor):
                seen.append((name, float(args[0].detach().float().std()), layer))

        return hook

    for name, module in model.named_modules():
        layer = isinstance(module, (nn.Linear, _ConvNd))
        if layer or not any(True for _ in module.children()):
            weights = any(True for _ in module.parameters(recurse=False))
            if weights or "Norm" in type(module).__name__:
                module.register_forward_pre_hook(look(name, layer))
    logits = logits_of(model(x * 1))  # a leaf could not be changed in place
    expected = "the scale of the images, every pixel"
    given, ratio = float(x.detach().std()), 1.0
    if seen and seen[0][2] and given > 0:
        ratio = seen[0][1] / given
    shown = f"{ratio:.3g} of the scale"
    if not SCALE[0] <= ratio <= SCALE[1]:
        name = seen[0][0] or "the first layer"
        message = (
            f"{name} is fed values with a standard deviation of {seen[0][1]:.2g}, {ratio:.2g} times that of the images "
            "that the model gets, which are normalised already: remove the scaling (/ 255?) from forward()"
        )
        return Verdict(Outcome.WARN, shown, expected, message)
    if not logits.requires_grad:
        return Verdict(Outcome.PASS, shown, expected, "the first layer is fed what the model is")
    # random signs, so that the influences on different logits do not cancel
    sign = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    (logits.float() * sign).sum().backward()
    return _reached(exp, x.grad, shown, expected)


def _reached(exp: Experiment, slope: Tensor | None, shown: str, expected: str) -> Verdict:
    if slope is None or not slope.any():
        return Verdict(Outcome.SKIP, shown, expected, "no gradient reaches the input; see `independence`")
    used = slope.abs().amax(0) > 0  # (C, H, W)
    cut = [str(c) for c in (~used.flatten(1).any(1)).nonzero().flatten().tolist()]
    constant = {str(c) for c, std in enumerate(exp.data.std) if not std > 0}
    if lost := [c for c in cut if c not in constant]:
        message = (
            f"channel {named(lost)} of the images never reaches the logits: look for an index or slice in forward()"
        )
        return Verdict(Outcome.WARN, f"{len(lost)} channels unused", expected, message)
    share = float((~used.any(0)).float().mean())
    if share > UNSEEN:
        message = (
            f"{share:.0%} of the pixels never reach the logits, over {COUNT} images: look for a crop, a slice or a "
            "stride larger than its kernel in forward()"
        )
        return Verdict(Outcome.WARN, f"{share:.0%} of the pixels unused", expected, message)
    return Verdict(Outcome.PASS, shown, expected, "the first layer is fed what the model is, and every region counts")
