"""Training the end of a network on features of its frozen part, which are computed once (`model.freeze=backbone`, M3).

`swapped` makes an experiment whose data are features and whose model is the end of the network, with the same
weights, optimizer and schedule; `loop.fit` trains it like any other. A checkpoint stores the whole network. The result
is that of training through the frozen network, up to rounding, as long as no augmented view repeats: of an augmented
split there are trainer.feature_views views, those of the first epochs, which later epochs use in turn.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

import dlrun
from dlrun.config import ranks
from dlrun.console import Screen
from dlrun.data.batches import Batches
from dlrun.data.cache import cache_at
from dlrun.data.features import features_of
from dlrun.data.images import InMemory
from dlrun.data.splits import Split
from dlrun.folders.run import Run
from dlrun.models.outputs import logits_of
from dlrun.training import freezing
from dlrun.training.copies import copied
from dlrun.training.evaluating import logits, spread
from dlrun.training.experiment import Experiment
from dlrun.training.random_state import rng_state, set_rng_state

__all__ = ["End", "refused", "swapped"]

VERSION = 1
SAMPLES = 4
ROUNDING = 1e-3  # of the largest logit: by how much the end may differ from the whole network


class End(nn.Module):
    """The last layers of a network, under their names in it: features (B, F, 1, 1) -> logits (B, K)."""

    def __init__(self, model: nn.Module, names: Sequence[str], shape: Sequence[int], hold: str = "frozen") -> None:
        super().__init__()
        self.names, self.shape = tuple(names), tuple(shape)
        for name in names:
            *around, last = name.split(".")
            place: nn.Module = self
            for part in around:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.add_module(last, model.get_submodule(name))
        if hold == "all":
            freezing.begin(self, freezing.Freezing(hold=hold))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), *self.shape)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x


class _Front(nn.Module):
    """A network that returns the input of one of its layers, flat: images (B, C, H, W) -> features (B, F)."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        return _input(self.model, self.name, x).flatten(1)


class _Views(Batches):
    """Batches of features; epoch n has the view (n - 1) modulo their number, in the order of any epoch n."""

    def __init__(self, split: Split, views: Sequence[InMemory], **options: Any) -> None:
        super().__init__(replace(split, images=views[0]), **options)
        self._others = [Batches(replace(split, images=view), **options) for view in views[1:]]

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield one pass over the split, as Batches does."""
        turn = (number - 1) % (1 + len(self._others))
        return self._others[turn - 1].epoch(number) if turn else super().epoch(number)


def refused(exp: Experiment) -> str | None:
    """Return why a frozen network is run in every epoch; empty if it need not be, None if nothing is frozen."""
    frozen = exp.frozen
    if frozen is None or not frozen.starts or not exp.cfg.trainer.feature_views:
        return None
    if any(map(math.isfinite, frozen.starts.values())):
        return None  # it trains later
    if frozen.hold == "none":
        return "model.hold_norms=none changes its statistics"
    if not getattr(exp.objective, "on_features", False):
        return "the objective needs images"
    if ranks.own() is not None:
        return "several processes share the images"
    if getattr(exp.train.augment, "sides", ()):
        return "augment.progressive changes the size of the images"
    if getattr(exp.train.augment, "repeats", 1) > 1:
        return "augment.repeats omits other images in each epoch"
    return ""


def swapped(exp: Experiment, run: Run, screen: Screen) -> Experiment:
    """Return the experiment that trains the end of the network on features; the run records the seconds they took.

    It is `exp` itself if nothing is frozen, or if the frozen network has to be run in every epoch, which the screen
    shows with the reason.
    """
    why, started = refused(exp), time.perf_counter()
    if why is None:
        return exp
    before = rng_state()
    try:
        names, shape = ([], ()) if why else _end(exp)
        if not names:
            why = why or "what trains is not a sequence of layers at its end"
            screen.say(f"the frozen network is run in every epoch: {why}")
            return exp
        screen.wait("features of the frozen network …")
        made, what = _swapped(exp, names, shape)
    finally:
        set_rng_state(before)
    seconds = time.perf_counter() - started
    screen.say(f"{what}, ready in {seconds:.1f} s")
    run.update_result(feature_seconds=round(seconds, 3))
    return made


def _swapped(exp: Experiment, names: list[str], shape: Sequence[int]) -> tuple[Experiment, str]:
    data, trainer, augmented = exp.data, exp.cfg.trainer, _augments(exp)
    count, size = min(trainer.feature_views, trainer.epochs) if augmented else 1, math.prod(shape)
    front = _Front(exp.model, names[0])
    about = _about(exp, names)
    plain = partial(_plain, exp, front, about, size)
    if augmented:
        views = [_view(exp, front, about, size, number) for number in range(1, count + 1)]
        # not augmented, these images are only evaluated
        index = spread(len(data.train)) if len(data.val) else torch.arange(len(data.train))
        some = plain(data.train.subset(index))
        rows = torch.zeros(len(data.train), dtype=torch.int64)
        rows[index] = torch.arange(len(index))
        train = InMemory(some.take(torch.arange(len(index))), rows)
    else:
        views = [train := plain(data.train)]
    val = plain(data.val) if len(data.val) else train.subset(torch.empty(0, dtype=torch.int64))
    features = replace(
        data,
        train=replace(data.train, images=train),
        val=replace(data.val, images=val),
        shape=(1, 1, size),
        mean=[0.0] * size,
        std=[1.0] * size,
    )
    options = {"batch_size": trainer.batch_size, "balance": data.balance, "seed": exp.cfg.seed, "shuffle": True}
    batches = partial(_Views, data.train, views, mean=features.mean, std=features.std, device=exp.device)
    made = replace(
        exp,
        data=features,
        model=End(exp.model, names, shape, exp.frozen.hold if exp.frozen else ""),
        average=None if exp.average is None else End(exp.average, names, shape).eval(),
        compiled=None,
        train=batches(**options),
        whole=exp,
    )
    made = replace(made, val=made.batches(features.val))
    views_of = f"{count} views of " if augmented else ""
    return made, f"trains {', '.join(names)} on {size:,} features of {views_of}{len(data.train):,} images"


def _augments(exp: Experiment) -> bool:
    """Whether training images differ from epoch to epoch."""
    return exp.train.augment is not None and bool(getattr(exp.train.augment, "active", True))


def _plain(exp: Experiment, front: _Front, about: dict[str, Any], size: int, split: Split) -> InMemory:
    """The features of a split that is not augmented, (N, 1, 1, size)."""

    def compute(numbers: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for x, _, index in exp.batches(split.subset(torch.from_numpy(numbers))).epoch(0):
            yield numbers[index.cpu().numpy()], _forward(exp, front, x)

    marks = split.images.marks
    return features_of(_cache(exp), about, None if marks is None else marks.digests, (len(split), size), compute)


def _view(exp: Experiment, front: _Front, about: dict[str, Any], size: int, number: int) -> InMemory:
    """The features of the training split as epoch `number` augments it."""
    split, batch_size, seed = exp.data.train, exp.cfg.trainer.batch_size, exp.cfg.seed

    def compute(numbers: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        wanted = torch.zeros(len(split), dtype=torch.bool)
        wanted[torch.from_numpy(numbers)] = True
        # all batches are drawn, since the draws of a batch follow those before; not all are passed through
        left = int(wanted.sum())
        batches = exp.batches(split, batch_size=batch_size, augment=exp.train.augment, shuffle=True, seed=seed)
        for x, _, index in batches.epoch(number):
            index = index.cpu()
            if wanted[index].any():
                yield index.numpy(), _forward(exp, front, x)
                left -= int(wanted[index].sum())
            if not left:
                return

    marks = split.images.marks
    order = hashlib.sha256(b"".join(marks.digests)).hexdigest() if marks else ""
    drawn = {"augment": dict(exp.cfg.augment), "seed": seed, "batch_size": batch_size, "epoch": number, "order": order}
    keys = [place.to_bytes(16, "big") for place in range(len(split))] if marks else None
    return features_of(_cache(exp), {**about, "view": drawn}, keys, (len(split), size), compute)


def _cache(exp: Experiment) -> Any:
    node = exp.cfg.dataset
    return cache_at(str(node.get("cache", "none")), float(node.get("cache_gb", 20.0)))


@torch.no_grad()
def _forward(exp: Experiment, front: _Front, x: Tensor) -> NDArray[np.float32]:
    front.eval()
    with exp.autocast():
        return np.asarray(logits(front, x).cpu().numpy())


def _about(exp: Experiment, names: Sequence[str]) -> dict[str, Any]:
    """What determines features besides the image: weights, code versions, precision, preprocessing."""
    total, ends = hashlib.sha256(), tuple(f"{name}." for name in names)
    for name, tensor in exp.model.state_dict().items():
        if not name.startswith(ends):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    model = {key: value for key, value in exp.cfg.model.items() if key not in ("weights", "init", "output_bias")}
    return {
        "version": [VERSION, dlrun.__version__, torch.__version__],
        "weights": total.hexdigest(),
        "model": model,
        "cut": names[0],
        "device": [exp.device.type, str(exp.dtype)],
        "data": [exp.data.shape, exp.val.crop, exp.data.mean, exp.data.std],
    }


def _end(exp: Experiment) -> tuple[list[str], tuple[int, ...]]:
    """The layers that train, in order, and the shape of what they get; none if they are no sequence at the end."""
    split = exp.data.train.subset(torch.arange(min(SAMPLES, len(exp.data.train))))
    x, _, _ = next(exp.batches(split).epoch(0))
    model, hold = copied(exp.model), exp.frozen.hold if exp.frozen else ""
    with torch.no_grad():  # without autocast, whose rounding exceeds ROUNDING
        names = _chain(model.train(), x)
        if not names:
            return [], ()
        features = _input(model.eval(), names[0], x)
        shape, part = tuple(features.shape[1:]), copied(model)
        for mode in (False, True):
            torch.manual_seed(0)  # the same draws of dropout
            expected = logits_of(model.train(mode)(x)).float()
            torch.manual_seed(0)
            found = End(part, names, shape, hold).train(mode)(features).float()
            if not torch.allclose(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max())):
                return [], ()
    return names, shape


def _input(model: nn.Module, name: str, x: Tensor) -> Tensor:
    """What a layer gets when the model is called with x."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        model(x)
    finally:
        handle.remove()
    return seen[0]


def _chain(model: nn.Module, x: Tensor) -> list[str]:
    """The layers from the first that trains or draws to the logits, if each gets what the one before returns."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def look(_: nn.Module, args: Any, output: Any, name: str) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor) and args[0] is not output:
            calls.append((name, args[0], output))

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(partial(look, name=name)) for name, module in named]
    now = model(x)
    for handle in handles:
        handle.remove()
    left = {id(p) for p in model.parameters() if p.requires_grad}
    chain: list[str] = []
    while True:
        ending = sorted((name for name, _, output in calls if output is now), key=len)
        name = next((n for n in ending if all(p.requires_grad for p in model.get_submodule(n).parameters())), None)
        if name is None or name in chain:
            break
        chain.insert(0, name)
        left -= {id(p) for p in model.get_submodule(name).parameters()}
        now = next(given for called, given, _ in calls if called == name)
    while chain and not _draws(module := model.get_submodule(chain[0])) and not any(True for _ in module.parameters()):
        chain.pop(0)  # pooling, for example, which makes features small
    return [] if left else chain


def _draws(module: nn.Module) -> bool:
    return any(isinstance(m, _DropoutNd) and m.p > 0 for m in module.modules())
