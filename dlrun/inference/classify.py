"""Predictions for any number of images, written to a CSV: files, folders and arrays in batches (`dlrun predict`)."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.console import Screen
from dlrun.data.array_files import Stored, converted, held_as, stored_arrays
from dlrun.data.decoding import Decoding
from dlrun.data.headers import scaled
from dlrun.data.identity import contents, keys_of
from dlrun.data.ids import located
from dlrun.data.images import Streamed, Unreadable, mark, run_ahead
from dlrun.data.listing import SUFFIXES, Account, Folders, printable
from dlrun.data.members import File
from dlrun.data.sheet import is_table
from dlrun.data.tars import samples
from dlrun.data.units import Unfit, Units, factor, values_of
from dlrun.errors import UserError
from dlrun.folders.disk import replacing
from dlrun.folders.formats import cell
from dlrun.inference.predictor import Predictor
from dlrun.vocabulary import Exit, array_slot

__all__ = ["BATCH", "Input", "Outcome", "Sources", "batches", "divided", "predict", "votes"]

BATCH_BYTES = 32e6  # of decoded images: three batches are in memory at once
BATCH = 256


class Input(Protocol):
    """What images become: a Predictor, or the training data of a run."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def decoding(self) -> Decoding: ...

    @property
    def units(self) -> Units | None: ...

    @property
    def seen(self) -> Mapping[bytes, str]: ...

    def scale_of_files(self) -> float:
        """Return by what pixels decoded from files are multiplied. Raises Unfit."""


@dataclass
class Outcome:
    """The number of predicted images, why others were not predicted, and how values were scaled, by file."""

    predicted: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    scaled: dict[str, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)  # how many images are in `train` or `val` of the run


class Sources:
    """The image files and arrays at or below `paths`, in order; images are decoded only when predicted.

    Folders are read as those of training are; `account` counts what they hold besides images. Images named by a table
    of ids are in the folder `images`, and have the ids as names; those that are not there are `missing`. `paths` must
    exist. `held` are arrays in memory by name. Raises UserError for a folder without images, a table that names none,
    and a path that is no file and no folder. `hint`: what to type if a table names images that are not there.
    """

    def __init__(
        self,
        paths: Sequence[str],
        images: Path | None = None,
        held: Mapping[str, NDArray[Any]] | None = None,
        hint: str = "type --images FOLDER",
    ) -> None:
        self.held, self._hint = dict(held or {}), hint
        self.files: list[File] = []
        self.missing: dict[str, str] = {}  # why, by id
        self._ids: dict[File, str] = {}
        self.arrays: list[Path] = []
        self.account = Account()
        look = Folders()
        for name in paths:
            path = Path(name).expanduser()
            if path.is_dir():
                found = list(look.below(path, self.account))
                if not found:
                    left = f"; left out: {self.account.left_out()}" if self.account else ""
                    raise UserError(f"{name}: no images below this folder ({', '.join(sorted(SUFFIXES))}){left}")
                self.files += found
            elif not path.is_file():
                raise UserError(f"{name}: a pipe or a device; expected a file or a folder")
            elif path.suffix.lower() in (".npy", ".npz"):
                self.arrays.append(path)
            elif path.suffix.lower() == ".tar":
                inside = [one for found in samples(path, self.account) for one in found.images.values()]
                if not inside:
                    raise UserError(f"{name}: no images in this tar")
                self.files += inside
            elif is_table(path):
                self._listed(path, path.parent if images is None else images)
            else:
                self.files.append(path)

    def _listed(self, table: Path, folder: Path) -> None:
        """Add the images that a table names."""
        there = located(table, folder, self._hint)
        self.missing |= {name: why for name, why in there.missing.items() if name not in self.missing}
        for name, file in there.files.items():
            if self._ids.setdefault(file, name) == name:
                self.files.append(file)

    def name(self, file: File) -> str:
        """Return the id that a table gives a file, or its path."""
        return self._ids.get(file) or printable(file)


def predict(predictor: Predictor, sources: Sources, out: Path, screen: Screen) -> Outcome:
    """Write one row per image to `out`: file, class, confidence, and the probability of each class.

    With several targets class and confidence are columns of every target, named after it; of sets there is one column
    of classes, those above their thresholds (M11).
    Unreadable images are listed in the outcome and omitted. Raises UserError, and writes no file, if nothing was
    predicted.
    """
    done = Outcome(unreadable=dict(sources.missing))
    with replacing(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", *_answered(predictor), *(cell(f"p_{name}") for name in predictor.classes)])
        for name, p, k in votes(predictor, sources, screen, done):
            writer.writerow([cell(name), *_answers(predictor, p, k), *(f"{value:.6f}" for value in p)])
        text.flush()
        text.detach()
    return done


def _answered(predictor: Predictor) -> list[str]:
    """The names of the columns of the answers."""
    if predictor.tasks is None:
        return ["class", "confidence"]
    if predictor.tasks.sets:
        return ["classes"]
    return [cell(column) for name in predictor.tasks.names for column in (name, f"{name}_confidence")]


def _answers(predictor: Predictor, p: NDArray[np.floating[Any]], chosen: Any) -> Iterator[str]:
    """The class of each target and its probability, of probabilities (K,) and class numbers, or one."""
    if predictor.tasks is not None and predictor.tasks.sets:
        yield cell(predictor.tasks.chosen(chosen))
        return
    first = 0
    kinds = [predictor.classes] if predictor.tasks is None else predictor.tasks.classes
    for classes, k in zip(kinds, np.atleast_1d(chosen), strict=True):
        yield cell(classes[k])
        yield f"{p[first + k]:.6f}"
        first += len(classes)


def votes(
    predictor: Predictor, sources: Sources, screen: Screen, done: Outcome
) -> Iterator[tuple[str, NDArray[np.floating[Any]], Any]]:
    """Yield the name of each image that can be read, its probabilities (K,) and its class, or classes (T,).

    `done` counts.

    Raises UserError at the end if there was none.
    """
    size = max(1, min(BATCH, int(BATCH_BYTES / np.prod(predictor.shape))))
    parts = batches(predictor, sources, size, done)
    total = -(-len(sources.files) // size) + len(sources.arrays) + len(sources.held)
    for names, images in screen.work(parts, total, "predicting", lambda: f"{done.predicted:,} images"):
        vote = predictor(images)
        yield from zip(names, vote.probabilities, vote.classes.tolist(), strict=True)
        done.predicted += len(names)
    _count_seen(predictor, sources, done)
    if not done.predicted:
        reasons = "; ".join(f"{name}: {why}" for name, why in islice(done.unreadable.items(), 3))
        raise UserError(f"no image could be predicted: {reasons}", Exit.FAILED)


def _count_seen(predictor: Predictor, sources: Sources, done: Outcome) -> None:
    """Count the files that the run was trained on or chosen by: predictions of them say little about new images."""
    if predictor.seen and sources.files:
        names = [printable(path) for path in sources.files]
        digests = contents(Streamed(sources.files, predictor.shape, resize=True), names)
        done.seen.update(predictor.seen[key] for key in keys_of(digests) if key in predictor.seen)


def divided(count: int, size: int) -> list[range]:
    """Return the numbers of each batch, as in an evaluation: a single last image joins the batch before it."""
    starts = [*range(0, count, size)]
    if len(starts) > 1 and starts[-1] == count - 1:
        starts.pop()
    return [range(*ends) for ends in pairwise([*starts, count])]


def batches(predictor: Input, sources: Sources, size: int, done: Outcome) -> Iterator[tuple[list[str], Tensor]]:
    """Yield names and images (B, H, W, C), in the units of the run, of all sources that can be read.

    What cannot be read, and how values were scaled, is added to `done`.
    """
    scale = _scale_of_files(predictor, sources, done)
    numbers = divided(len(sources.files), size)
    groups = [[sources.files[k] for k in group] for group in numbers]
    images = Streamed(sources.files, predictor.shape, resize=True, decoding=predictor.decoding)
    tasks = ([partial(_decoded, images, n) for n in group] for group in numbers)
    for group, found in zip(groups, run_ahead(tasks), strict=True):
        read = [(sources.name(f), one) for f, one in zip(group, found, strict=True) if not isinstance(one, str)]
        done.unreadable |= {sources.name(f): one for f, one in zip(group, found, strict=True) if isinstance(one, str)}
        if read:
            pixels = np.stack([one for _, one in read])
            if scale != 1 or pixels.dtype == np.uint16:
                pixels = pixels.astype(np.float32) * np.float32(scale)
            yield [name for name, _ in read], torch.from_numpy(pixels)
    for path in sources.arrays:
        try:
            yield from _from_array(path, predictor, size, done)
        except Exception as error:  # a damaged array fails as ValueError, EOFError, BadZipFile, zlib.error …
            reason = " ".join(str(error).split()).removeprefix("dataset.path=").removeprefix(f"{path}: ")
            done.unreadable[printable(path)] = reason or type(error).__name__
    for name, x in sources.held.items():
        try:
            yield from _of_array(x, name, predictor, size, done)
        except ValueError as error:
            done.unreadable[name] = str(error)


def _scale_of_files(predictor: Input, sources: Sources, done: Outcome) -> float:
    """By what decoded files are multiplied to be in the units of the run. Raises UserError if they cannot be."""
    if not sources.files:
        return 1.0
    try:
        scale = predictor.scale_of_files()
    except Unfit as error:
        raise UserError(f"{sources.files[0]}: {error}, in an .npy") from None
    if deeper := scaled(sources.files, predictor.decoding):
        more = f" and {len(deeper) - 1} more" if len(deeper) > 1 else ""
        done.scaled[f"{printable(deeper[0])}{more}"] = (
            f"has more than 8 bits; 0 to 65535 is scaled to {predictor.units}"
        )
    if scale != 1:
        done.scaled["image files"] = f"0 to 255 multiplied by {scale:.6g}: the training images are {predictor.units}"
    return scale


def _decoded(images: Streamed, number: int) -> NDArray[Any] | str:
    """The image (H, W, C), or why it cannot be read."""
    try:
        return images.decode(number)
    except Unreadable as error:
        return error.reason
    except UserError:
        height, width, _ = images.shape
        return f"expected {width}×{height} pixels like the training images"
    except OSError as error:
        return error.strerror or str(error)


def _stored(path: Path) -> Stored:
    """The array x of an .npz, else the only one that has the name of images, of test if there are several."""
    found = stored_arrays(str(path))
    by_slot = {array_slot(name): one for name, one in found.items() if array_slot(name).startswith("x")}
    images = [found["x"]] if "x" in found else [*(by_slot or found).values()]
    one = images[0] if len(images) == 1 else by_slot.get("x_test")
    if one is None:
        raise ValueError(f"expected an array x, found {', '.join(found) or 'none'}")
    return one


def _from_array(path: Path, predictor: Input, size: int, done: Outcome) -> Iterator[tuple[list[str], Tensor]]:
    """Batches of an .npy, which stays on disk, or of the images of an .npz, read whole."""
    if path.suffix.lower() == ".npz":
        stored = _stored(path)
        x, name = stored.read(), f"{printable(path)}:{stored.short}" if stored.short != "x" else printable(path)
    else:
        x, name = np.load(path, mmap_mode="r", allow_pickle=False), printable(path)
    yield from _of_array(x, name, predictor, size, done)


def _of_array(
    x: NDArray[Any], name: str, predictor: Input, size: int, done: Outcome
) -> Iterator[tuple[list[str], Tensor]]:
    """Batches of images in memory or mapped. Raises ValueError for another shape or kind of values."""
    shape = height, width, channels = predictor.shape
    if channels == 1 and x.shape[1:] in ((height, width), (height * width,)):
        x = x.reshape(len(x), *shape)
    if x.ndim == 4 and x.shape[1:] == (channels, height, width) != shape:
        x = x.transpose(0, 2, 3, 1)
    if x.ndim != 4 or x.shape[1:] != shape or x.dtype.kind not in "buif":
        raise ValueError(f"is {x.dtype} {x.shape}; expected numbers (N, {height}, {width}, {channels})")
    held, starts = held_as(x, "the array")[0], range(0, len(x), size)
    raw = (x[start : start + size] for start in starts)
    found = values_of(converted(part, held) if part.dtype.kind == "b" else part for part in raw)
    scale = factor(found, predictor.units)
    if scale != 1 and predictor.units is not None:
        done.scaled[name] = f"is {found}; multiplied by {scale:.6g}: the training images are {predictor.units}"
    for start in starts:
        part = converted(x[start : start + size], held)
        digests = mark(part).digests if predictor.seen and scale == 1 else []
        if scale != 1 or held != np.uint8:
            part = part.astype(np.float32) * np.float32(scale)
        names = [f"{name}[{start + k}]" for k in range(len(part))]
        fine = np.isfinite(part).reshape(len(part), -1).all(1)
        done.unreadable |= {names[k]: "contains nan or inf" for k in np.flatnonzero(~fine)}
        done.seen.update(predictor.seen[key] for key in digests if key in predictor.seen)
        if fine.any():
            yield [names[k] for k in np.flatnonzero(fine)], torch.from_numpy(part[fine])
