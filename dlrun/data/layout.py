"""Where the splits of an image folder are: `dlrun train dataset=image_folder dataset.root=photos` (D4).

Splits by their usual names and in any case (`Train`, `valid`, `dev`, `evaluation`, `seg_train/seg_train`), one folder
around everything, what archives and servers add, and dlrun's own outputs/ are understood. A folder that is nearly a
split, or a split without class folders, is refused: made a class, it would be learned.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dlrun.errors import UserError

__all__ = ["ROLES", "folders", "splits"]

NAMES = {
    "train": ("train", "training", "trainset"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "evaluation", "eval", "testset"),
}
ROLES = {name: role for role, names in NAMES.items() for name in names}
PARTS = {"image", "images", "img", "imgs", "mask", "masks", "annotation", "annotations", "label", "labels"}
ADDED = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}  # by archives and file servers
WRAPPED = 3  # folders around the one with the classes
NEAR = 0.75  # of difflib: "tain" and "tests" are nearly "train" and "test"; "trail" is too, and says so


def splits(top: Path) -> dict[str, Path]:
    """Return the folders that hold the class folders: `train` and perhaps `val` and `test`, or "" if all is one.

    Raises UserError for two folders of one split, for val or test without train, for splits that hold images and no
    class folders, and for a folder of classes beside train whose name is nearly a split's.
    """
    for _ in range(WRAPPED):
        here = folders(top)
        if len(here) != 1 or not folders(here[0]) or _role(here[0]):
            break
        top = here[0]
    here = folders(top)
    divided = [place for place in here if folders(place)]
    found: dict[str, Path] = {}
    for place in divided:
        role = _role(place)
        if role in found:
            raise UserError(f"{top}: both {found[role].name}/ and {place.name}/ look like {role}; keep one of them")
        if role:
            found[role] = place
    if not found:
        _refuse_flat(top, here)
        return {"": top}
    if "train" not in found:
        other = next(iter(found.values()))
        raise UserError(f"{top}: found {other.name}/ and no train/; expected train/<class>/<image> beside it")
    _refuse_near(top, [place for place in here if place not in found.values()], found)
    return {role: _inner(place) for role, place in found.items()}


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones, what archives and servers add, and dlrun's outputs/."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".") and e.name not in ADDED)
    return [folder / name for name in names if not _outputs(folder / name)]


def _outputs(folder: Path) -> bool:
    """Whether dlrun writes its runs there."""
    return folder.name == "outputs" and any(os.path.lexists(folder / name) for name in ("runs", "sweeps", "latest"))


def _role(folder: Path) -> str:
    """Return the split of which a folder has the name; the last word decides, as in seg_train. "" for others."""
    return ROLES.get(re.split(r"[\W_]+", folder.name.lower())[-1], "")


def _inner(place: Path) -> Path:
    """The folder with the class folders of a split that was packed twice, as in seg_train/seg_train."""
    inner = folders(place)
    again = len(inner) == 1 and _role(inner[0]) == _role(place) and folders(inner[0])
    return inner[0] if again else place


def _refuse_flat(top: Path, here: Sequence[Path]) -> None:
    """Raise UserError if the folders with the images are splits, or parts of a segmentation set, and not classes."""
    names = [place.name for place in here]
    listed = " and ".join(f"{name}/" for name in names[:3])
    roles = {role for place in here if (role := _role(place))}
    if "train" in roles and len(roles) > 1:
        raise UserError(
            f"{top}: {listed} hold images and no class folders; expected train/<class>/<image>, "
            "or <class>/<image>; images without labels are for `dlrun predict`"
        )
    if len(names) > 1 and all(name.lower() in PARTS for name in names):
        raise UserError(f"{top}: {listed} are no classes; expected <class>/<image>, one folder per class")


def _refuse_near(top: Path, others: Sequence[Path], found: dict[str, Path]) -> None:
    """Raise UserError for a folder beside train/ that would be silently ignored although it looks like a split."""
    known = [name for name, role in ROLES.items() if role not in found]
    for place in others:
        if role := _role(place):
            raise UserError(
                f"{place} holds no class folders; expected {place.name}/<class>/<image>, or move it elsewhere"
            )
        if near := difflib.get_close_matches(place.name.lower(), known, 1, NEAR):
            role = ROLES[near[0]]
            raise UserError(f"{place} is no split; is it {role}/? Rename it to {role}, or move it elsewhere")
