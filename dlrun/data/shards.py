"""Images in tar files: `dlrun train dataset=shards dataset.urls='train-{000..099}.tar' dataset.image_size=224` (D4).

Tar files as webdataset makes and reads them, `pip install 'dlrun[shards]'`. They are never unpacked: dlrun/data/tars.py
lists where each image lies, and each is read at its place, in any order; the cache keeps the lists (tar_lists.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlrun.data.bad import Bad, BadData
from dlrun.data.cache import cache_at
from dlrun.data.form import Form
from dlrun.data.groups import by_pattern
from dlrun.data.labels import Labels, class_names, numbered
from dlrun.data.listing import Account, printable
from dlrun.data.members import TarMember
from dlrun.data.splits import Raw, Split
from dlrun.data.tar_lists import TarLists
from dlrun.data.tars import LABELS, Sample
from dlrun.errors import UserError
from dlrun.vocabulary import tars_of

__all__ = ["shards"]

KEYS = ("label", "cls", "class", "class_id", "target")  # of a .json, the first one first
NO_LABEL = "expected a label in .cls, .txt or .json"


@dataclass
class _Read:
    """The usable samples of a split: the file of each, its label and id; the others are `bad`."""

    files: list[TarMember] = field(default_factory=list)
    labels: list[str | int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)


def shards(
    urls: str | Sequence[str],
    val_urls: str | Sequence[str] | None = None,
    test_urls: str | Sequence[str] | None = None,
    *,
    image: str = "auto",
    label: str = "auto",
    labels: str = "auto",
    num_classes: int = 0,
    group_pattern: str | None = None,
    on_bad: str = "error",
    cache: str = "none",
    cache_gb: float = 20.0,
    **form: Any,
) -> Raw:
    """The images in tar files, `{000..099}` and `*` in their names expanded. Nothing is decoded here.

    `image` is the ending of the images if samples have several, such as left.jpg; `label` is the member with the label:
    cls, txt or json.KEY. `labels` and `num_classes` are those of dlrun/data/arrays.py, `form` has the keys of
    `Form.of`; where the images lie is kept in the `cache`. Raises UserError in one line for what is no tar of labelled
    images, and BadData for unusable samples.
    """
    made = Form.of(**form)
    typed = {"train": urls, "val": val_urls, "test": test_urls}
    places = {role: _places(role, names) for role, names in typed.items() if names}
    top = Path(os.path.commonpath([path.parent.absolute() for paths in places.values() for path in paths]))
    account, chosen = Account(), _Choice(image, label)
    lists = TarLists(cache_at(cache, cache_gb), [path for paths in places.values() for path in paths])
    found = {role: _read(role, paths, top, chosen, account, lists) for role, paths in places.items()}
    lists.close()
    bad = [one for part in found.values() for one in part.bad]
    if bad and on_bad == "error":
        raise BadData(bad, sum(len(part.files) + len(part.bad) for part in found.values()))
    for role, part in found.items():
        if not part.files:
            why = f"; the first of {len(part.bad):,}, {part.bad[0].id}, {part.bad[0].reason}" if part.bad else ""
            raise UserError(f"dataset.{_key(role)}={typed[role]}: no usable images{why}")
    truth = {role: _labels(part.labels) for role, part in found.items()}
    what = f"dataset.urls: the label in .{chosen.label}"
    classes, note = class_names(truth["train"], what, num_classes, each=labels == "names")
    stream = made.stream(found["train"].files, top)

    def split(role: str) -> Split:
        part = found[role]
        numbers = numbered(truth[role], classes, f"dataset.{_key(role)}")
        return Split(
            stream(part.files), torch.from_numpy(numbers), part.ids, groups=by_pattern(group_pattern, part.ids)
        )

    account.images, account.classes = sum(len(part.files) for part in found.values()), len(classes)
    tars = sum(map(len, places.values()))
    counted = f"{tars:,} tar {'files' if tars > 1 else 'file'}"
    notes = [f"{counted}: {len(found['train'].files):,} training images, labels by .{chosen.label}"]
    notes += [note] if note else []
    notes += [str(account)] if account else []
    test = (lambda: split("test")) if "test" in found else None
    val = split("val") if "val" in found else None
    return Raw(split("train"), test, classes, val, (*notes,), tuple(bad), account)


def _places(role: str, names: str | Sequence[str]) -> list[Path]:
    try:
        return tars_of(names)
    except ValueError as error:
        raise UserError(f"dataset.{_key(role)}={names}: {error}") from None


def _key(role: str) -> str:
    return "urls" if role == "train" else f"{role}_urls"


@dataclass
class _Choice:
    """The ending of images and the member with labels; those that are auto are those of the first sample."""

    image: str
    label: str

    def settle(self, sample: Sample, where: str) -> None:
        """Choose by a sample what is still open. Raises UserError if that is unclear."""
        if self.image == "auto" and sample.images:
            if len(sample.images) > 1:
                names = " and ".join(sample.images)
                raise UserError(f"{where}: has several images, {names}; type dataset.image={next(iter(sample.images))}")
            self.image = next(iter(sample.images))
        if self.label == "auto" and sample.labels:
            kind = next(kind for kind in LABELS if kind in sample.labels)
            self.label = kind if kind != "json" else f"json.{self._key(sample, where)}"
        kind, _, key = self.label.partition(".")
        if self.label != "auto" and (kind not in LABELS or bool(key) != (kind == "json")):
            raise UserError(f"dataset.label={self.label}: must be auto, cls, txt or json.KEY, such as json.label")

    @staticmethod
    def _key(sample: Sample, where: str) -> str:
        for key in KEYS:
            try:
                sample.label(f"json.{key}")
            except ValueError:
                continue
            return key
        raise UserError(f"{where}: its .json has none of {', '.join(KEYS)}; type dataset.label=json.KEY")


def _read(role: str, paths: Sequence[Path], top: Path, chosen: _Choice, account: Account, lists: TarLists) -> _Read:
    """The samples of a split, in the order of the files."""
    read = _Read()
    for path in paths:
        place = printable(os.path.relpath(path.absolute(), top))
        for sample in lists.samples(path, account):
            name = f"{place}/{printable(sample.key)}"
            chosen.settle(sample, name)
            try:
                file, label = _chosen(sample, chosen)
            except ValueError as error:
                read.bad.append(Bad(name, role, str(error)))
                continue
            read.files.append(file)
            read.labels.append(label)
            read.ids.append(f"{place}/{printable(file.inside)}")
    return _numbers(role, read) if chosen.label == "cls" else read


def _chosen(sample: Sample, chosen: _Choice) -> tuple[TarMember, str | int]:
    """The image and the label of a sample. Raises ValueError that says why it has none."""
    if sample.bad:
        raise ValueError(sample.bad)
    if len(sample.images) == 1:
        file = next(iter(sample.images.values()))  # .jpg and .png may take turns
    elif chosen.image not in sample.images:
        what = f"no image .{chosen.image}" if sample.images else "no image"
        raise ValueError(f"has {what}")
    else:
        file = sample.images[chosen.image]
    label = sample.label(chosen.label) if chosen.label != "auto" else ""
    if label == "":
        raise ValueError(f"has no label: {NO_LABEL}" if chosen.label == "auto" else f"has an empty .{chosen.label}")
    return file, label


def _numbers(role: str, read: _Read) -> _Read:
    """The samples whose .cls is a number, as webdataset reads it, unless none is: then they are names."""
    whole = [_whole(label) for label in read.labels]
    if not any(whole):
        return read
    kept = _Read(bad=read.bad)
    for file, label, name, number in zip(read.files, read.labels, read.ids, whole, strict=True):
        if not number:
            kept.bad.append(Bad(name, role, f"has {str(label)[:40]!r} in .cls, expected a number like the others"))
            continue
        kept.files.append(file)
        kept.labels.append(int(label))
        kept.ids.append(name)
    return kept


def _whole(label: str | int) -> bool:
    text = str(label)
    return text.isascii() and text.removeprefix("-").isdigit() and len(text) < 10


def _labels(found: Sequence[str | int]) -> Labels:
    if found and all(isinstance(label, int) for label in found):
        return Labels(np.array(found, dtype=np.int64))
    return Labels(np.array([str(label) for label in found]))
