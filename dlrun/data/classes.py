"""The class of each image of a folder: `dlrun train dataset=image_folder dataset.class_level=auto|1|leaf|none` (D4).

auto: class folders hold images only. 1: a class folder holds its images at any depth. leaf: every folder that holds
images is a class, named after itself, or by its path if another has the same name. A folder that holds images beside
folders with images is refused, unless the level is 1. none: all images are of one class without a name (M10).
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from shlex import quote

from dlrun.data.layout import PARTS, UNLABELLED, by_table, class_folders, role_of
from dlrun.data.listing import BESIDE, BROKEN, EMPTY, HIDDEN, Account, Folders, counted, printable
from dlrun.errors import UserError

__all__ = ["NAMELESS", "NONE", "Labelled", "class_names", "labelled_files", "require_known"]

LEVELS = ("auto", "1", "leaf")
NONE, NAMELESS = "none", "(no label)"  # the level of images without labels, and their only class
Labelled = list[tuple[Path, str]]  # a file, and the path of its class folder below that of the split


def labelled_files(
    place: Path, level: str, look: Folders, account: Account, apart: Collection[Path] = (), *, training: bool = False
) -> Labelled:
    """Return the images of a folder of class folders, each with the path of its class; folders `apart` are splits.

    Raises UserError for a class folder that has other files but no image, when `training` also for an empty one, for
    folders that `level` does not allow, and for a place without class folders.
    """
    if level not in LEVELS:
        raise UserError(f"dataset.class_level={level}: must be auto, 1, leaf or none")
    entries = look(place)
    for reason, name in entries.others:
        if reason == BROKEN and not os.path.splitext(name)[1]:
            to = os.readlink(place / name)
            raise UserError(f"{place / name}: a link to {to}, which does not exist; restore that, or remove the link")
        account.add(reason, place / name)
    for name in entries.images:
        account.add(BESIDE, place / name)
    found: Labelled = []
    others = {os.path.realpath(split) for split in apart}
    folders = [folder for folder in class_folders(place, look) if os.path.realpath(folder) not in others]
    if level == "auto":
        _refuse_alike(place, folders, look)
    for folder in folders:
        files = list(look.below(folder, account))
        if not files:
            _refuse_empty(folder, look, account, training)
        labels = {parent: parent.relative_to(place).as_posix() for parent in {file.parent for file in files}}
        _refuse_nested(folder, labels, level)
        found += [(file, labels[file.parent] if level == "leaf" else folder.name) for file in files]
    if not found:
        beside = f"; it holds {len(entries.images):,} images without a class" if entries.images else ""
        beside += by_table(place, look, place) if entries.images else ""
        raise UserError(f"{place} has no class folders; expected {place}/<class>/<image>{beside}")
    return found


def _refuse_empty(folder: Path, look: Folders, account: Account, training: bool) -> None:
    """Raise UserError for a class folder without images, unless it is an empty one of another split than train."""
    others = [(reason, name) for reason, name in look(folder).others if reason != HIDDEN]
    if others:
        raise UserError(
            f"class folder {folder} has no images that dlrun reads, but {counted(others)}; "
            "convert them, or move the folder"
        )
    if training:
        raise UserError(f"class folder {folder} has no images; add some or remove it")
    account.add(EMPTY, folder)


def _refuse_alike(place: Path, folders: Sequence[Path], look: Folders) -> None:
    """Raise UserError if two folders in place of classes hold the same folders: then those are the classes."""
    inner = [(folder, look(folder).folders) for folder in folders]
    for (one, names), (other, same) in pairwise((folder, names) for folder, names in inner if len(names) > 1):
        if names == same and not any(map(role_of, map(Path, names))):
            a, b = printable(one.name), printable(other.name)
            raise UserError(
                f"{place}: {a}/ and {b}/ hold the same folders, {', '.join(map(printable, names[:3]))}; "
                f"if these are the classes, name the splits, such as dataset.train_dir={a} dataset.test_dir={b}; "
                f"if {a} and {b} are, type dataset.class_level=1"
            )


def _refuse_nested(folder: Path, parents: Collection[Path], level: str) -> None:
    """Raise UserError if the folders that hold the images of a class folder are not those that a level allows."""
    inner = sorted(parent for parent in parents if parent != folder)
    if not inner or level == "1":
        return
    names = ", ".join(repr(printable(parent.relative_to(folder))) for parent in inner[:3])
    one = f"dataset.class_level=1 to make all images below it one class, {printable(folder.name)}"
    if any(role_of(Path(parent.relative_to(folder).parts[0])) and parent.parent != folder for parent in inner):
        raise UserError(f"{folder} holds splits, {names}; type {quote(f'dataset.root={folder}')} to take it alone")
    if any(role_of(parent) or parent.name.lower() in PARTS for parent in inner):
        raise UserError(
            f"class folder {folder}: found splits or parts inside, {names}; expected train/<class>/<image>; "
            f"move them, or type {one}"
        )
    if level == "auto":
        raise UserError(
            f"class folder {folder}: expected images only, found folders of images, {names}; "
            f"type {one}, or dataset.class_level=leaf to make each folder of images a class"
        )
    for parent in inner:
        if mixed := [above for above in parent.parents if above in parents]:
            raise UserError(
                f"{mixed[0]} holds images and a folder of images, {parent.relative_to(mixed[0])}; "
                f"dataset.class_level=leaf needs either; move some, or type {one}"
            )


def class_names(labels: Sequence[str]) -> dict[str, str]:
    """Return the class of each path of a class folder: the folder's name, or the path if another has that name."""
    paths = sorted(set(labels))
    times = Counter(Path(path).name for path in paths)
    return {path: printable(Path(path).name if times[Path(path).name] == 1 else path) for path in paths}


def require_known(found: Sequence[str], names: dict[str, str], role: str, where: Path, account: Account) -> list[str]:
    """Return the class of each image of another split, by its path or else its name. Raises UserError for unknown ones.

    The classes of train that it lacks are noted in the account.
    """
    classes = {*names.values()}
    there = {path: names.get(path) or printable(Path(path).name) for path in sorted(set(found))}
    if unknown := [(path, name) for path, name in there.items() if name not in classes]:
        listed = ", ".join(repr(name) for _, name in unknown[:10])
        same = {_plain(name): name for name in classes}
        alike = [f"train has {same[_plain(name)]!r}" for _, name in unknown[:1] if _plain(name) in same]
        how = "; ".join([*alike, "remove them, or add them to train"])
        unlabelled = f"; {UNLABELLED}" if role == "test" and len(unknown) == len(there) else ""
        raise UserError(f"{where} has classes that train lacks: {listed}; {how}{unlabelled}")
    if lacking := sorted(classes - set(there.values())):
        account.lacking[role] = lacking
    return [there[path] for path in found]


def _plain(name: str) -> str:
    """A name without differences that the eye overlooks: case, composed or decomposed accents, signs between words."""
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum())
