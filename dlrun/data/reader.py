"""The splits and classes of an image folder, and an account of what is left out: `dlrun train dataset=image_folder
dataset.root=photos dataset.test_dir=holdout` (D4).
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrun.data.classes import NAMELESS, NONE, Labelled, class_names, labelled_files, require_known
from dlrun.data.layout import splits
from dlrun.data.listing import Account, Folders, printable
from dlrun.errors import UserError

__all__ = ["ImageFolder", "read_folder"]


@dataclass(frozen=True)
class ImageFolder:
    """The files of each split with their class and id; `classes` are sorted."""

    splits: dict[str, list[tuple[Path, str, str]]]
    classes: list[str]
    account: Account


def read_folder(root: Path, typed: Mapping[str, str | None], test: str, level: str) -> ImageFolder:
    """Return the image files of a folder; `typed` are the folders of splits that keys name, or None.

    `test` and `level` are dataset.test and dataset.class_level. Raises UserError in one line for everything that is no
    folder of class folders.
    """
    if test not in ("auto", "none"):
        raise UserError(f"dataset.test={test}: must be auto or none; a folder is named by dataset.test_dir={test}")
    if test == "none" and typed.get("test"):
        raise UserError(f"dataset.test=none and dataset.test_dir={typed['test']} contradict each other; omit one")
    if not root.is_dir():
        what = "is a file; unpack it, and name the folder" if root.is_file() else "no such folder"
        raise UserError(f"dataset.root={root}: {what}")
    if level == NONE:
        return _unlabelled(root, typed)
    given = _given(root, typed)
    look, account = Folders(), Account()
    places, unused = splits(root, look, account, given, test)
    found: dict[str, Labelled] = {}
    for role, place in places.items():
        apart = [*unused, *(other for other in places.values() if other != place)]
        found[role or "train"] = labelled_files(place, level, look, account, apart, training=role in ("", "train"))
    if "" in places:
        places["train"] = places.pop("")
    train = [label for _, label in found["train"]]
    names = class_names(train)
    read = {}
    for role, files in found.items():
        labels = [label for _, label in files]
        if role == "train":
            known = [names[label] for label in labels]
        else:
            known = require_known(labels, names, role, places[role], account)
        ids = _ids([file for file, _ in files], root, places[role], role)
        read[role] = [*zip([file for file, _ in files], known, ids, strict=True)]
    classes = sorted({*names.values()})
    times = Counter(unicodedata.normalize("NFC", name).casefold() for name in classes)
    account.alike = [name for name in classes if times[unicodedata.normalize("NFC", name).casefold()] > 1]
    account.images, account.classes = sum(map(len, read.values())), len(classes)
    return ImageFolder(read, classes, account)


def _unlabelled(root: Path, typed: Mapping[str, str | None]) -> ImageFolder:
    """All images at or below a folder, as one class. Raises UserError if there is none, and for folders of splits."""
    if role := next((role for role, name in typed.items() if name), ""):
        raise UserError(f"dataset.{role}_dir={typed[role]}: dataset.class_level=none takes all images of root; omit it")
    account = Account()
    files = list(Folders().below(root, account))
    if not files:
        left = f"; left out: {account.left_out()}" if account else ""
        raise UserError(f"dataset.root={root}: no images at or below this folder{left}")
    ids = _ids(files, root, root, "train")
    account.images, account.classes = len(files), 1
    return ImageFolder({"train": [*zip(files, [NAMELESS] * len(files), ids, strict=True)]}, [NAMELESS], account)


def _given(root: Path, typed: Mapping[str, str | None]) -> dict[str, Path]:
    """The folders that keys name. Raises UserError for one that is missing, and for one that two keys name."""
    given: dict[str, Path] = {}
    for role, name in typed.items():
        if not name:
            continue
        place = root / Path(name).expanduser()
        if not place.is_dir():
            raise UserError(f"dataset.{role}_dir={name}: no such folder; expected one in {root}, or a path from /")
        for other, known in given.items():
            if os.path.samefile(place, known):
                raise UserError(f"dataset.{role}_dir={name} and dataset.{other}_dir name the same folder")
        given[role] = place
    return given


def _ids(files: Sequence[Path], root: Path, place: Path, role: str) -> list[str]:
    """The paths of files below root; of a split that lies elsewhere below its folder, after the name of the split."""
    inside = place == root or root in place.parents
    # as text, since Path takes most of the time of listing 50,000 files
    start, cut = ("", len(str(root / "x")) - 1) if inside else (f"{role}/", len(str(place / "x")) - 1)
    return [printable(start + str(file)[cut:]) for file in files]
