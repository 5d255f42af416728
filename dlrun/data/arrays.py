"""A user's own arrays: `dlrun train dataset=arrays dataset.path=mine.npz`, or `dataset.x=x.npy dataset.y=y.npy` (D4).

Arrays are found by their usual names (Keras, MedMNIST, X/Y, images/labels) or named by `dataset.x= dataset.y=`. Pickles
are never read. An .npy of uint8, uint16 or float32 is mapped, not read: it may be larger than memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.data.array_files import PART, Stored, chosen, converted, held_as
from dlrun.data.bad import BadData, bad_labels
from dlrun.data.images import InMemory
from dlrun.data.labels import class_names, numbered, plain
from dlrun.data.origin import made_of
from dlrun.data.splits import Raw, Split
from dlrun.errors import UserError

__all__ = ["arrays"]

CHANNELS = 4  # at most, of photos: more in the second or last axis are rows or columns
Array = NDArray[Any]


def arrays(
    path: str | None = None,
    layout: Literal["auto", "NHWC", "NCHW"] = "auto",
    num_classes: int = 0,
    on_bad: str = "error",
    *,
    x: str | None = None,
    y: str | None = None,
    x_val: str | None = None,
    y_val: str | None = None,
    x_test: str | None = None,
    y_test: str | None = None,
    labels: Literal["auto", "names"] = "auto",
    reshape: Sequence[int] | None = None,
    memory_gb: float = 4.0,
) -> Raw:
    """Images and labels of train and optionally val and test, from an `.npz`, a folder of `.npy` files, or single ones.

    Images: (N, H, W) gray, or four axes in the order of `layout`, or flat rows with `reshape`. uint8, uint16 and float
    are taken as they are, bool as 0 and 255, other integers in the smallest of these types that holds them all. Labels
    are those of `dlrun.data.labels`. Images of test are read when the split is; its labels are checked now. Raises
    UserError that names the array and what to type.
    """
    named = {"x": x, "y": y, "x_val": x_val, "y_val": y_val, "x_test": x_test, "y_test": y_test}
    slots, notes = chosen(path, named)
    _require_alike(slots["x"], slots["y"], slots["x"])
    train = plain(slots["y"].read(), str(slots["y"]))
    classes, note = class_names(train, str(slots["y"]), num_classes, each=labels == "names")
    notes += [f"{slots['y'].short}: {one}" for one in (train.note, note) if one]
    shape, order = _axes(slots["x"], layout, reshape)
    if order == "NCHW" and layout == "auto":
        notes.append(f"{slots['x'].short} {slots['x'].shape} has its channels first")

    def split(name: str, end: str, pixels: bool = True) -> Split:
        images, truth = slots["x" + end], slots["y" + end]
        _require_alike(images, truth, slots["x"])
        values = train if not end else plain(truth.read(), str(truth))
        held = InMemory(torch.empty((0, 1, 1, 1), dtype=torch.uint8))
        if pixels:
            held, how = _pixels(images, shape, order, memory_gb)
            notes.extend([f"{images.short}: {how}"] if how and not end else [])
        numbers = torch.from_numpy(numbered(values, classes, str(truth)))
        return Split(held, numbers, [f"{name}/{number}" for number in range(len(numbers))])

    made = split("train", "")
    val = split("val", "_val") if "x_val" in slots else None
    about = (*([f"{path or slots['x'].file}: {'; '.join(notes)}"] if notes else ()), *made_of(path, slots))
    if "x_test" not in slots:
        return Raw(made, None, classes, val, about)
    # report bad labels of test now, not after training
    unseen = split("test", "_test", pixels=False)
    if (bad := bad_labels(unseen, "test", len(classes))) and on_bad == "error":
        raise BadData(bad, len(unseen))
    return Raw(made, partial(split, "test", "_test"), classes, val, about)


def _require_alike(images: Stored, labels: Stored, train: Stored) -> None:
    """Raise UserError if images and labels differ in number, or images from those of train in size."""
    (first, *size), count = images.shape or (0,), (labels.shape or (0,))[0]
    if first != count:
        last = size and size[-1] == count
        why = f"; save np.moveaxis(x, -1, 0), which puts the {count} images first" if last else ""
        shapes = f"{labels} has shape {labels.shape}, {images.short} {images.shape}"
        raise UserError(f"{shapes}; expected one label per image{why}")
    if tuple(size) != train.shape[1:]:
        raise UserError(f"{images} has shape {images.shape}, {train.short} {train.shape}; expected the same size")


def _axes(x: Stored, layout: str, reshape: Sequence[int] | None) -> tuple[tuple[int, ...], str]:
    """The shape (N, …) of images of three or four axes, and their order. Raises UserError if it is unclear."""
    if layout not in ("auto", "NHWC", "NCHW"):
        raise UserError(f"dataset.layout={layout}: must be auto, NHWC or NCHW")
    shape = x.shape
    if reshape and len(shape) >= 2:
        if math.prod(shape[1:]) != math.prod(reshape):
            sides = "×".join(map(str, reshape))
            raise UserError(f"{x} has {math.prod(shape[1:])} values per image, dataset.reshape {sides}; change it")
        shape = (shape[0], *reshape)
    if len(shape) == 2:
        raise UserError(f"{x} has shape {shape}; expected images, (N, H, W) or (N, H, W, C); {_unflattened(shape[1])}")
    if len(shape) == 5:
        raise UserError(f"{x} has shape {shape}, volumes or videos; expected (N, H, W, C); choose a slice of each")
    if len(shape) not in (3, 4):
        raise UserError(f"{x} has shape {shape}; expected (N, H, W) or four axes, NHWC or NCHW")
    if not all(shape):
        raise UserError(f"{x} has shape {shape}; expected at least one image and pixel")
    return shape, "NHWC" if len(shape) == 3 else _order(x, shape, layout)


def _order(x: Stored, shape: tuple[int, ...], layout: str) -> str:
    first, last = shape[1] <= CHANNELS, shape[3] <= CHANNELS
    if layout == "NHWC" and first and not last:
        raise UserError(f"{x} has shape {shape}, which looks like channels first; type dataset.layout=NCHW")
    if layout == "NCHW" and last and not first:
        raise UserError(f"{x} has shape {shape}, which looks like channels last; type dataset.layout=NHWC")
    if layout != "auto":
        return layout
    if first == last:  # a few channels at both ends, or at neither: the other two axes may tell
        first, last = shape[2] == shape[3] != shape[1], shape[1] == shape[2] != shape[3]
    if first == last:
        raise UserError(f"{x} has shape {shape}: its channels may be first or last; type dataset.layout=NCHW or NHWC")
    return "NCHW" if first else "NHWC"


def _unflattened(width: int) -> str:
    """What to type for flat rows of so many values."""
    side, third = math.isqrt(width), math.isqrt(width // 3)
    if width % 3 == 0 and 3 * third**2 == width:
        return (
            f"for rows of {width} type dataset.reshape=[{third},{third},3], or [3,{third},{third}] "
            "if they hold one colour after the other, as CIFAR's files do"
        )
    sides = f"{side},{side}" if side**2 == width else "HEIGHT,WIDTH"
    return f"for rows of {width} type dataset.reshape=[{sides}]"


def _pixels(stored: Stored, shape: Sequence[int], order: str, memory_gb: float) -> tuple[InMemory, str]:
    """The images as uint8, uint16 or float32 (N, H, W, C), mapped if stored so; and how they were converted."""
    x = stored.read()
    x = x.reshape(len(x), *shape[1:])
    x = x[..., None] if x.ndim == 3 else x.transpose(0, 2, 3, 1) if order == "NCHW" else x
    wanted, how = held_as(x, str(stored))
    mapped = not stored.member
    if x.dtype == wanted and mapped:
        return InMemory(torch.from_numpy(x), mapped=True), ""
    if mapped and x.size * wanted.itemsize > memory_gb * 1e9:
        raise UserError(
            f"{stored} is {x.dtype}, {x.size * wanted.itemsize / 1e9:.1f} GB as {wanted}, more than dataset.memory_gb; "
            f"save it as {wanted}, which is read from disk"
        )
    if x.dtype == wanted:
        return InMemory(torch.from_numpy(np.ascontiguousarray(x))), ""
    out, step = np.empty(x.shape, wanted), max(1, PART // math.prod(x.shape[1:]))
    for at in range(0, len(x), step):
        out[at : at + step] = converted(x[at : at + step], wanted)
    return InMemory(torch.from_numpy(out)), how
