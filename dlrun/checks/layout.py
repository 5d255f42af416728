"""C8, M1: axes keep their meaning on the way through the network; `dlrun check`.

Watches every reshape and mean of one forward pass. Detects: a view where axes had to be moved (permute), as
between channels first and last, in patches, heads of attention and space to depth, so that neighbours or channels are
scrambled; a mean over the channels before the classifier where one over positions was meant. Axes are told apart by
their sizes. Cannot detect: axes of equal size exchanged, or what a function outside torch does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, combinations, pairwise
from math import isqrt, prod
from operator import mul
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from dlrun.checks.advice import line_now
from dlrun.checks.check import check
from dlrun.checks.result import Verdict
from dlrun.checks.sandbox import replica, samples
from dlrun.training.experiment import Experiment
from dlrun.vocabulary import Outcome

__all__ = ["layout", "scrambled"]

COUNT = 7  # samples: a prime that few other axes have
Shape = tuple[int, ...]
VIEWS = {"view", "reshape", "unflatten", "flatten", "view_as", "reshape_as"}
MEANS = {"mean", "sum", "amax", "max", "logsumexp", "nanmean"}
LAST, SECOND = {"linear", "layer_norm", "embedding"}, {"batch_norm", "group_norm", "instance_norm"}
POOLS = ("pool1d", "pool2d", "pool3d")


@check(order=68, needs_outputs=True, labels=False)
def layout(exp: Experiment) -> Verdict:
    """Watch a forward pass for reshapes that scramble axes, and for means over the wrong one."""
    expected = "axes are moved by permute, not by view"
    x, _ = samples(exp, COUNT)
    if len(x) < COUNT:
        return Verdict(Outcome.SKIP, "not run", expected, "too few samples")
    model, watch = replica(exp), _Watch(x)
    with torch.no_grad(), watch:
        model(x)
    shown = f"{watch.views} reshapes"
    if watch.found:
        return Verdict(Outcome.WARN, shown, expected, watch.found[0])
    return Verdict(Outcome.PASS, shown, expected, "no axis is taken for another")


class _Watch(TorchFunctionMode):
    """Follows which axis holds the features of a tensor, and keeps sentences on what looks wrong."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.found: list[str] = []
        self.views = 0
        self.features, self.pooled = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()  # an axis; a sentence
        self.features[x] = 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, before = getattr(func, "__name__", ""), args[0] if args else None
        value = out[0] if name == "max" and isinstance(out, tuple) else out
        if isinstance(before, Tensor) and isinstance(value, Tensor):
            self._look(name, before, value, args[1:], kwargs or {})
        return out

    def _look(self, name: str, before: Tensor, out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if name in VIEWS:
            self.views += 1
            word = scrambled(tuple(before.shape), tuple(out.shape), COUNT)
            # heads of attention joined and positions divided can have the sizes of a wrong space to depth
            judged = before in self.features or not _as_they_stand(tuple(before.shape[1:]), tuple(out.shape[1:]))
            if word is not None and judged and before.is_floating_point():
                self.found.append(
                    f"{word}: {_shown(before)} becomes {_shown(out)} by {name}(){line_now()}, which keeps the order of "
                    "values, so that they are scrambled; move the axes first: x.permute(…).reshape(…)"
                )
        if name == "linear" or (name in VIEWS and out.ndim == 2):
            self.found += [self.pooled[before]] if before in self.pooled else []
        if name in MEANS:
            self._averaged(name, before, out, args, kwargs)
        elif (name.startswith("conv") and out.ndim > 2) or name in SECOND or name.endswith(POOLS):
            self.features[out] = 1
        elif name in LAST and out.ndim > 1:
            self.features[out] = out.ndim - 1
        elif out.shape == before.shape and name not in ("permute", "transpose"):
            for known in (self.features, self.pooled):
                if before in known and out not in known:
                    known[out] = known[before]

    def _averaged(self, name: str, before: Tensor, out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        axis = kwargs.get("dim", args[0] if args else None)
        features: int | None = self.features.get(before)  # type: ignore[no-untyped-call]
        axes = [axis] if isinstance(axis, int) else list(axis) if isinstance(axis, (tuple, list)) else []
        if not axes or not all(isinstance(a, int) for a in axes) or features is None or before.ndim not in (3, 4):
            return
        axes = [a % before.ndim for a in axes]
        if axes == [features] and out.ndim == before.ndim - 1 and before.shape[features] > 4:
            self.pooled[out] = (
                f"{name}() over axis {axes[0]} of {_shown(before)}{line_now()} averages the channels and keeps the "
                f"positions, which the classifier then gets; average positions: "
                f"dim={tuple(a for a in range(1, before.ndim) if a != features)}"
            )


def _shown(x: Tensor) -> str:
    return "(" + ", ".join(["B", *map(str, x.shape[1:])]) + ")"


def scrambled(before: Shape, after: Shape, batch: int) -> str | None:
    """Return what a reshape from one shape to another was meant to do, if that takes a permute; None if it is sound.

    The first axis of both is the batch, or windows of it.
    """
    if before[:1] != after[:1] or not before or before[0] % batch or prod(before) != prod(after):
        return None
    a, b = (tuple(n for n in shape[1:] if n > 1) for shape in (before, after))
    edges = [set(accumulate(shape[:-1], mul)) for shape in (a, b)]
    if min(len(a), len(b)) < 2 or edges[0] <= edges[1] or edges[1] <= edges[0]:
        return None  # axes are merged or divided as they stand
    if any(sorted(m) == sorted(b) for m in _merged(a)) or any(sorted(m) == sorted(a) for m in _merged(b)):
        return "axes change places by a view"
    if len(a) == 2 and len(b) == 3 and b[1] == a[0] and b[0] * b[2] == a[1]:
        return "heads of attention are divided by a view"
    if len(a) == 3 and len(b) == 2 and b == (a[1], a[0] * a[2]):
        return "axes change places by a view"
    if len(a) == 5 and len(b) == 2 and b == (a[1] * a[2], a[0] * a[3] * a[4]):
        return "patches are joined by a view"
    if _patches(a, b) or _windows(a, b):
        return "patches are cut by a view"
    if len(a) == len(b) == 3 and (_unshuffled(a, b) or _unshuffled(b, a)):
        return "pixels and channels change places by a view (torch.nn.functional.pixel_unshuffle, pixel_shuffle)"
    return None


def _as_they_stand(a: Shape, b: Shape) -> bool:
    """Whether a reshape only joins whole neighbouring axes and divides single ones."""
    edges = [list(accumulate((n for n in shape if n > 1), mul)) for shape in (a, b)]
    common = [0, *sorted(set(edges[0]) & set(edges[1]))]
    parts = [[sum(low < e <= high for e in part) for part in edges] for low, high in pairwise(common)]
    return all(min(counts) == 1 for counts in parts)


def _merged(shape: Shape) -> Iterator[Shape]:
    """Yield a shape of three or more axes with neighbouring ones merged in every way, down to two axes."""
    yield shape
    inner = range(1, len(shape))
    for count in range(1, len(shape) - 1):
        for cuts in combinations(inner, count):
            ends = [0, *cuts, len(shape)]
            yield tuple(prod(shape[s:e]) for s, e in pairwise(ends))


def _patches(a: Shape, b: Shape) -> bool:
    """Whether images (C, H, W) or (H, W) become (patches, values of a patch)."""
    if len(a) not in (2, 3) or len(b) != 2:
        return False
    channels, (height, width) = (a[0] if len(a) == 3 else 1), a[-2:]
    side = isqrt(b[1] // channels)
    if side < 2 or side * side * channels != b[1] or height % side or width % side:
        return False
    return b[0] == (height // side) * (width // side) and b != (height, width * channels)


def _windows(a: Shape, b: Shape) -> bool:
    """Whether (…, H, W, …) becomes (…, H / p, W / p, p, p, …)."""
    for first in range(len(a) - 1):
        left, right = a[:first], a[first + 2 :]
        middle = b[first : len(b) - len(right)]
        fits = len(middle) == 4 and b[:first] == left and b[len(b) - len(right) :] == right
        if (
            fits
            and middle[2] == middle[3] > 1
            and (middle[0] * middle[2], middle[1] * middle[3]) == a[first : first + 2]
        ):
            return True
    return False


def _unshuffled(a: Shape, b: Shape) -> bool:
    """Whether (C, H, W) becomes (C r², H / r, W / r)."""
    by = a[1] // b[1]
    return by > 1 and b == (a[0] * by * by, a[1] // by, a[2] // by) and a[1] % by == a[2] % by == 0
