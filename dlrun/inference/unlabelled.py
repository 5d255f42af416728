"""Images without labels that join training: `dlrun train objective=pseudo_label objective.unlabelled=new/`.

Folders, tables and arrays are read and resized as `dlrun predict` does, to the images of the training split (D8).
Copies of images that have a place in the run (train, val, test) are omitted: by the bytes of the files and by their
pixels. Labels are read if the names of folders or a column have them, and used to count how many guesses are right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlrun.data import Data, Split
from dlrun.data.array_files import stored_arrays
from dlrun.data.columns import choose, choose_id, labels
from dlrun.data.decoding import Decoding
from dlrun.data.identity import contents, keys_of
from dlrun.data.images import Images, InMemory, Marks, Streamed, mark
from dlrun.data.origin import ARRAY
from dlrun.data.places import Places
from dlrun.data.sheet import is_table
from dlrun.data.sheet import read as read_sheet
from dlrun.data.units import Units, decoding_of
from dlrun.errors import UserError
from dlrun.inference.classify import BATCH, Outcome, Sources, batches
from dlrun.inference.predictor import decoding_for, scale_of_files

__all__ = ["Unlabelled", "read"]

KEPT = 4e9  # bytes of pixels in memory, the default of dataset.memory_gb; more files are decoded when they are needed
NAMED = 3  # files in a message


@dataclass(frozen=True)
class Unlabelled:
    """The images as a split, whose labels are -1 if they are not known, and what was omitted: how many, by reason."""

    split: Split
    omitted: dict[str, int]
    note: str


@dataclass(frozen=True)
class _Input:
    """What images become: those of the training split."""

    shape: tuple[int, int, int]
    decoding: Decoding
    units: Units
    data: Mapping[str, object]
    seen: Mapping[bytes, str] = field(default_factory=dict)  # copies are found by pixels as well, see `_copies`

    def scale_of_files(self) -> float:
        return scale_of_files(self.data, self.decoding, self.units)


def read(unlabelled: str, data: Data) -> Unlabelled:
    """Return the images of a folder, a table or an array.

    Raises UserError in one line if there is nothing, if nothing can be read, or if all are copies of images of the run.
    """
    path = Path(unlabelled).expanduser()
    key = f"objective.unlabelled={unlabelled}"
    if not path.exists():
        raise UserError(f"{key}: no such file or folder; expected a folder of images, or a table that names them")
    try:
        sources = Sources([str(path)], hint="expected them in the folder of the table")
        found = _read(sources, data)
    except UserError as error:
        raise UserError(f"objective.unlabelled: {error}", error.code) from error
    if not found.names:
        reasons = "; ".join(f"{name}: {why}" for name, why in [*found.unreadable.items()][:NAMED])
        raise UserError(f"{key}: no image can be read: {reasons}")
    seen = _seen(data)
    held = [one for one in map(seen.get, _originals(path)) if one in ("val", "test")]
    if held:
        what = f"{len(held):,} of its images were made of images of {held[0]}, which score the model"
        raise UserError(f"{key}: {what}; make them of training images")
    copies = _copies(found, seen)
    index = torch.tensor([k for k, one in enumerate(copies) if not one], dtype=torch.int64)
    omitted = {"unreadable": len(found.unreadable), **Counter(f"copies of {one}" for one in copies if one)}
    omitted = {why: count for why, count in omitted.items() if count}
    if not len(index):
        raise UserError(f"{key}: nothing is left: {_listed(omitted)}; expected images that the run does not have")
    known = _known(path, sources, data.classes)
    of_each = torch.tensor([known.get(name, -1) for name in found.names])
    split = Split(found.images, of_each, found.names).subset(index)
    told = int((split.labels >= 0).sum())
    parts = [f"{len(split):,} unlabelled images join training"]
    parts += [f"the labels of {told:,} are known, and used only to count right guesses"] if told else []
    parts += [f"omitted: {_listed(omitted)}"] if omitted else []
    if found.unreadable:
        parts.append("such as {}: {}".format(*next(iter(found.unreadable.items()))))
    return Unlabelled(split, omitted, "; ".join(parts))


def _listed(omitted: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in omitted.items())


@dataclass(frozen=True)
class _Found:
    """What was read: images with a name each, their digests (of the pixels, and of files by name), and what was not."""

    images: Images
    names: list[str]
    pixels: list[bytes]
    files: dict[str, bytes]
    unreadable: dict[str, str]


def _read(sources: Sources, data: Data) -> _Found:
    """Decode everything once; what does not fit into memory stays in its files."""
    about = {"shape": data.shape, **decoding_of(data.train.images, data.units)}
    like = _Input(data.shape, decoding_for(None, about, data.units), data.units, about)
    done, by_name = Outcome(unreadable=dict(sources.missing)), {sources.name(file): file for file in sources.files}
    size = int(np.prod(data.shape)) * np.dtype(like.decoding.dtype).itemsize
    streamed = bool(len(sources.files) * size > KEPT and not sources.arrays and like.decoding.dtype == "uint8")
    names, kept, found = list[str](), list[Tensor](), list[Marks]()
    for some, pixels in batches(like, sources, BATCH, done):
        names += some
        found.append(mark(pixels.numpy()))
        if not streamed or done.scaled:
            kept.append(pixels)
    constant = np.concatenate([one.constant for one in found] or [np.zeros(0, dtype=np.bool_)])
    marks = Marks([digest for one in found for digest in one.digests], constant)
    images: Images = InMemory(torch.cat(kept) if kept else torch.empty((0, *data.shape)), known=marks)
    if streamed and not done.scaled:
        images = Streamed([by_name[name] for name in names], data.shape, True, marks, like.decoding)
    there = [name for name in names if name in by_name]
    of_files = contents(Streamed([by_name[name] for name in there], data.shape, resize=True), there)
    return _Found(images, names, marks.digests, dict(zip(there, keys_of(of_files), strict=True)), done.unreadable)


def _originals(path: Path) -> list[bytes]:
    """The digests of the images that adversarial ones were made of, if a file of arrays has them (D9)."""
    if path.suffix.lower() != ".npz":
        return []
    there = stored_arrays(str(path))
    if ARRAY not in there or "original" not in there or there["original"].dtype.hasobject:
        return []
    return mark(there["original"].read()).digests


def _seen(data: Data) -> dict[bytes, str]:
    """The split of each image of the run, by the digests of its pixels and of its file."""
    seen: dict[bytes, str] = {}
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test().split)):
        digests = contents(split.images, split.ids) if split.digests is None else split.digests
        seen.update(dict.fromkeys(keys_of(digests), name))
        if split.images.marks is not None:
            seen.update(dict.fromkeys(split.images.marks.digests, name))
    return seen


def _copies(found: _Found, seen: Mapping[bytes, str]) -> list[str]:
    """The split of the run that has a copy of each image; "" if none has."""
    pairs = zip(found.names, found.pixels, strict=True)
    return [seen.get(digest) or seen.get(found.files.get(name, b""), "") for name, digest in pairs]


def _known(path: Path, sources: Sources, classes: list[str]) -> dict[str, int]:
    """The number of the class of each image by its name, if a folder or a column of the table has a class's name."""
    numbers = {name: number for number, name in enumerate(classes)}
    if path.is_file():
        return _of_table(path, numbers) if is_table(path) else {}
    found = {}
    for file in sources.files:
        folders = (part for part in reversed(Path(file).relative_to(path).parts[:-1]) if part in numbers)
        if (name := next(folders, None)) is not None:
            found[sources.name(file)] = numbers[name]
    return found


def _of_table(path: Path, numbers: Mapping[str, int]) -> dict[str, int]:
    sheet, places = read_sheet(path), Places(path.parent)
    column = choose_id(sheet, None, lambda name: bool(places.find(name)))
    try:
        columns = choose(sheet, column, label=None, split=None, group=None, weight=None)
        of_rows = labels(sheet, columns)
    except UserError:
        return {}  # no column is unmistakably the label: they are unlabelled
    return {name: numbers[label] for name, label in zip(sheet.column(column), of_rows, strict=True) if label in numbers}
