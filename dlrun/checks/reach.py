"""D3, C8: what of the input reaches the network; `dlrun check`.

Watches what the first layer with weights is fed, and the gradient of the logits by the pixels over a batch. Detects:
inputs that are divided by 255 or normalised a second time, clipped or rounded on the way, channels that are cut off or
hardly count, regions that never count, and images of which only the mean along an axis counts. Cannot detect: pixels in
another order that all count (`layout` and `splits` do), a region that counts for other images alone.
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
BIG, SOME = 128, 6  # fewer images if they have more pixels a side
SCALE = 0.25, 4.0  # times the scale of what the network is given: normalising by ImageNet's numbers makes it 4.4
SHIFT = 1.5  # of that scale, by which a mean may move: by ImageNet's numbers it moves by 2
CLIPPED = 0.2  # of the values of the first layer's input that lie at its ends, beyond the share in the images
LOST = 0.3  # of the values of an image that have no gradient
FEW = 16  # values that are told apart after rounding
FAINT = 0.01  # of the influence of the strongest channel
UNSEEN, LARGE = (0.4, 0.2), 24  # of the pixels, of small images and of a side LARGE: strides may leave out a border
EVEN = 1e-4  # of the gradient, within which it is alike along an axis


@check(order=67, needs_outputs=True)
def reach(exp: Experiment) -> Verdict:
    """Compare the scale of the first layer's input with that of the images, and look for pixels without influence."""
    model = replica(exp)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.02)  # behind a head that starts at zero nothing has an influence yet
    x, _ = samples(exp, COUNT if max(exp.data.shape[:2]) <= BIG else SOME)
    x = x.clone().requires_grad_()
    first = _First(model)
    logits = logits_of(model(x))
    expected = "the scale of the images, every pixel"
    ratio, message = _fed(x.detach(), first)
    shown = f"{ratio:.3g} of the scale"
    if message:
        return Verdict(Outcome.WARN, shown, expected, message)
    if not logits.requires_grad:
        return Verdict(Outcome.PASS, shown, expected, "the first layer is fed what the model is")
    # random signs, so that the influences on different logits do not cancel
    sign = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    (slope,) = torch.autograd.grad((logits.float() * sign).sum(), x, allow_unused=True)
    if (clipped := _changed(x.detach(), slope, first)) is not None:
        return Verdict(Outcome.WARN, shown, expected, clipped)
    return _reached(exp, slope, shown, expected)


class _First:
    """The first layer that runs: its name, what it is fed, and whether it is no norm, which scales by itself."""

    def __init__(self, model: nn.Module) -> None:
        self.name, self.plain = "", False
        self.fed: Tensor | None = None
        for name, module in model.named_modules():
            layer = isinstance(module, (nn.Linear, _ConvNd))
            if layer or not any(True for _ in module.children()):
                weights = any(True for _ in module.parameters(recurse=False))
                if weights or "Norm" in type(module).__name__:
                    module.register_forward_pre_hook(self._look(name, layer))

    def _look(self, name: str, layer: bool) -> Any:
        def hook(_module: nn.Module, args: Any) -> None:
            if self.fed is None and args and isinstance(args[0], Tensor):
                self.name, self.fed, self.plain = name or "the first layer", args[0].detach().float(), layer

        return hook


def _fed(x: Tensor, first: _First) -> tuple[float, str]:
    """The scale of what the first layer is fed in that of the images, and a sentence if it is another."""
    given = float(x.std())
    if first.fed is None or not first.plain or not given > 0:
        return 1.0, ""
    std, shift = float(first.fed.std()), float(first.fed.mean() - x.mean()) / given
    ratio = std / given
    if SCALE[0] <= ratio <= SCALE[1] and abs(shift) <= SHIFT:
        return ratio, ""
    how = "scaling (/ 255?)" if ratio < 1 else "normalisation ((x - mean) / std?)"
    return ratio, (
        f"{first.name} is fed values with mean {float(first.fed.mean()):.2g} and standard deviation {std:.2g}, "
        f"{ratio:.2g} times that of the images that the model gets, which are normalised already: remove the {how} "
        "from forward()"
    )


def _changed(x: Tensor, slope: Tensor | None, first: _First) -> str | None:
    """A sentence if values are clipped or rounded before the first layer."""
    if first.fed is None or not first.plain:
        return None
    if slope is None or not slope.any():
        levels = [len(torch.unique(part.flatten()[:4096])) for part in (x, first.fed)]
        if levels[1] <= FEW and levels[0] > 2 * levels[1]:
            return (
                f"{first.name} is fed {levels[1]} different values, the images have {levels[0]} or more: they are "
                "rounded on the way; normalised images are fractions between -3 and 3, so remove round(), .long() or "
                ".byte() from forward()"
            )
        return None
    ends = [float(((part == part.min()) | (part == part.max())).float().mean()) for part in (x, first.fed)]
    lost = float((slope == 0).float().mean())
    if ends[1] - ends[0] < CLIPPED or lost < LOST:
        return None
    low, high = float(first.fed.min()), float(first.fed.max())
    return (
        f"{ends[1]:.0%} of the values that {first.name} is fed are {low:.3g} or {high:.3g}, and {lost:.0%} of the "
        "values of an image do not count: they are clipped on the way. Normalised images have mean 0 and values from "
        "-3 to 3; remove clamp(0, 1), relu or sqrt before the first layer"
    )


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
    sizes = slope.square().mean((0, 2, 3)).sqrt()
    faint = [str(c) for c in (sizes < FAINT * sizes.max()).nonzero().flatten().tolist() if str(c) not in constant]
    if faint:
        weakest = float(sizes.min() / sizes.max())
        message = (
            f"channel {named(faint)} of the images hardly counts: its influence on the logits is {weakest:.1g} of that "
            "of the strongest; look for a factor by channel in forward()"
        )
        return Verdict(Outcome.WARN, f"{len(faint)} channels hardly used", expected, message)
    if (axis := _averaged(slope)) is not None:
        message = (
            f"only the mean over the {axis} of an image reaches the logits: its gradient is the same all along; look "
            "for a mean or a pooling of the input in forward()"
        )
        return Verdict(Outcome.WARN, f"mean over {axis}", expected, message)
    share = float((~used.any(0)).float().mean())
    if share > UNSEEN[min(used.shape[1:]) >= LARGE]:
        message = (
            f"{share:.0%} of the pixels never reach the logits, over several images{_border(used.any(0))}: look for a "
            "crop or a slice in forward(), or a stride or patch that the size is no multiple of"
        )
        return Verdict(Outcome.WARN, f"{share:.0%} of the pixels unused", expected, message)
    return Verdict(Outcome.PASS, shown, expected, "the first layer is fed what the model is, and every region counts")


def _averaged(slope: Tensor) -> str | None:
    """The axis along which all gradients (N, C, H, W) are alike."""
    scale = float(slope.abs().amax())
    for axis, word in ((2, "rows"), (3, "columns")):
        if slope.shape[axis] > 2 and float((slope - slope.mean(axis, keepdim=True)).abs().amax()) < EVEN * scale:
            return word
    return None


def _border(used: Tensor) -> str:
    """Which rows and columns of used pixels (H, W) are left out as a whole, in words."""
    rows, columns = ((~used.any(axis)).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows and not columns:
        return ""
    parts = [f"{len(found)} {word}" for found, word in ((rows, "rows"), (columns, "columns")) if found]
    return f", {' and '.join(parts)} whole"
