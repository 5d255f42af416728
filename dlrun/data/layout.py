"""Where the splits of an image folder are: `dlrun train dataset=image_folder dataset.root=photos` (D4).

Splits by their usual names and in any case (`Train`, `valid`, `dev`, `evaluation`, `seg_train/seg_train`), one folder
around everything, what archives and servers add, and dlrun's own outputs/ are understood; `dataset.train_dir=` and
its like name others. A folder that is nearly a split, or a split without class folders, is refused: made a class, it
would be learned.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

from dlrun.data.listing import BESIDE, EMPTY, HIDDEN, NO_CLASS, Account, Folders, printable
from dlrun.errors import UserError

__all__ = ["PARTS", "ROLES", "UNLABELLED", "by_table", "class_folders", "role_of", "splits"]

NAMES = {
    "train": ("train", "training", "trainset"),
    "val": ("val", "valid", "validation", "dev", "valset"),
    "test": ("test", "testing", "evaluation", "eval", "testset"),
}
AROUND = {"set", "images", "imgs", "data", "dataset", "folder", "dir", "split"}  # words after the name of a split
ROLES = {name: role for role, names in NAMES.items() for name in names}
PARTS = {"image", "images", "img", "imgs", "mask", "masks", "annotation", "annotations", "label", "labels"}
DOCUMENTS = {".cfg", ".csv", ".doc", ".docx", ".html", ".ipynb", ".json", ".mat", ".md", ".pdf", ".py", ".rst", ".sh"}
DOCUMENTS |= {".tex", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml", "without an extension"}
WRAPPED = 3  # folders around the one with the classes
NEAR = 0.75  # of difflib: "tain" and "tests" are nearly "train" and "test"; "trail" is too, and says so
UNLABELLED = "if its images have no labels, type dataset.test=none and classify them with `dlrun predict`"


def splits(
    top: Path, look: Folders, account: Account, given: Mapping[str, Path] | None = None, test: str = "auto"
) -> tuple[dict[str, Path], list[Path]]:
    """Return the folders that hold the class folders: `train` and perhaps `val` and `test`, or "" if all is one.

    The list has the folders beside classes that are none. `given` are those that are known; the others are found by
    their names. With `test` none a test folder is left out. Raises UserError for two folders of one split, for val or
    test without train, for splits that hold images and no class folders, and for a folder of classes beside train whose
    name is nearly a split's.
    """
    given = given or {}
    for _ in range(0 if given else WRAPPED):
        here = [place for place in class_folders(top, look) if not _documents(place, look)]
        if len(here) != 1 or not class_folders(here[0], look) or role_of(here[0]):
            break
        _leave_out(top, look, account, here)
        top = here[0]
    taken = {os.path.realpath(place) for place in given.values()}
    here = [place for place in class_folders(top, look) if os.path.realpath(place) not in taken]
    unused = [place for place in here if test == "none" and role_of(place) == "test"]
    here = [place for place in here if place not in unused]
    divided = [place for place in here if class_folders(place, look) and role_of(place) not in given]
    found = _named(top, [place for place in divided if look.holds_images(place)])
    if not found.keys() - given.keys() and "train" not in given:
        _refuse_flat(top, here, look)
        for place in unused:
            account.add(NO_CLASS, place)
        return {"": top, **given}, unused
    places = {**found, **given}
    if "train" not in places:
        other = next(iter(found.values())).name
        raise UserError(
            f"{top}: found {other}/ and no train/; expected train/<class>/<image> beside it, "
            "or type dataset.train_dir=FOLDER"
        )
    if os.path.realpath(places["train"]) != os.path.realpath(top):  # whose folders are classes
        _refuse_near([place for place in here if place not in found.values() and look.holds_images(place)], places)
    if "train" not in given:  # else root may hold anything
        inside = [place for place in places.values() if top in place.parents]
        _leave_out(top, look, account, [top / place.relative_to(top).parts[0] for place in inside])
    return {role: given.get(role) or _inner(place, look, account) for role, place in places.items()}, unused


def class_folders(folder: Path, look: Folders) -> list[Path]:
    """Return the folders in a folder, sorted."""
    return [folder / name for name in look(folder).folders]


def by_table(top: Path, look: Folders, images: Path) -> str:
    """Return what to type if a table beside images has their labels, with a semicolon before it; "" without a table."""
    tables = [name for _, name in look(top).others if name.lower().endswith((".csv", ".tsv", ".parquet"))]
    first = sorted(tables, key=lambda name: (not name.lower().startswith(("train", "label")), name))[:1]
    words = (
        f"dataset=table {quote(f'dataset.csv={top / first[0]}')} {quote(f'dataset.images={images}')}" if first else ""
    )
    return f"; for labels in a table type {words}" if words else ""


def role_of(folder: Path) -> str:
    """Return the split of which a folder has the name: by its last word, as in seg_train, before those of AROUND.

    Numbers are ignored, as in train2017. "" for other folders.
    """
    words = _words(folder)
    return ROLES.get(words[-1], "") if words else ""


def _words(folder: Path) -> list[str]:
    """The words of a folder's name without those of AROUND at its end."""
    words = re.findall(r"[^\W\d_]+", folder.name.lower())
    while words and words[-1] in AROUND:
        words.pop()
    return words


def _documents(folder: Path, look: Folders) -> bool:
    """Whether a folder holds documents and no image, such as annotations/ beside images/."""
    if look.holds_images(folder):
        return False
    list(look.below(folder, account := Account()))
    kinds = account.counts.keys() - {HIDDEN, EMPTY}
    return bool(kinds) and kinds <= DOCUMENTS


def _leave_out(folder: Path, look: Folders, account: Account, taken: Sequence[Path]) -> None:
    """Count everything in a folder but those that are taken."""
    entries = look(folder)
    for reason, name in entries.others:
        account.add(reason, folder / name)
    for name in entries.images:
        account.add(BESIDE, folder / name)
    for place in class_folders(folder, look):
        if place not in taken:
            account.add(NO_CLASS, place)


def _named(top: Path, divided: Sequence[Path]) -> dict[str, Path]:
    """The folders of class folders that have the name of a split."""
    found: dict[str, Path] = {}
    for place in divided:
        role = role_of(place)
        if role in found:
            raise UserError(
                f"{top}: both {found[role].name}/ and {place.name}/ look like {role}; keep one of them, "
                f"or type dataset.{role}_dir={place.name}"
            )
        if role:
            found[role] = place
    return found


def _inner(place: Path, look: Folders, account: Account) -> Path:
    """The folder with the class folders of a split that was packed twice, as in seg_train/seg_train."""
    inner = class_folders(place, look)
    if len(inner) == 1 and role_of(inner[0]) == role_of(place) and class_folders(inner[0], look):
        _leave_out(place, look, account, inner)
        return inner[0]
    return place


def _refuse_flat(top: Path, here: Sequence[Path], look: Folders) -> None:
    """Raise UserError if the folders with the images are splits, or parts of a segmentation set, and not classes."""
    names = [printable(place.name) for place in here]
    listed = " and ".join(f"{name}/" for name in names[:3])
    alike: defaultdict[tuple[str, ...], dict[str, Path]] = defaultdict(dict)
    for place in here:
        if role := role_of(place):
            alike[tuple(_words(place)[:-1])][role] = place
    # seg_train and seg_test are splits; bullet train and crash test are classes
    roles = alike.get(()) or next((found for found in alike.values() if len(found) > 1), {})
    if "train" in roles and (len(roles) > 1 or len(here) == 1):
        listed = " and ".join(f"{printable(place.name)}/" for place in roles.values())
        raise UserError(
            f"{top}: {listed} {'hold' if len(roles) > 1 else 'holds'} images and no class folders; "
            f"expected train/<class>/<image>{by_table(top, look, roles['train'])}; "
            "images without labels are for `dlrun predict`"
        )
    if len(names) > 1 and all(name.lower() in PARTS for name in names):
        raise UserError(f"{top}: {listed} are no classes; expected <class>/<image>, one folder per class")
    for role in {"test", "val"} & roles.keys():
        how = UNLABELLED if role == "test" else "move it elsewhere"
        raise UserError(
            f"{roles[role]} has the name of a split and no class folders; {how}; if it is a class, rename it"
        )


def _refuse_near(others: Sequence[Path], found: Mapping[str, Path]) -> None:
    """Raise UserError for a folder beside train/ that would be silently ignored although it looks like a split."""
    known = [name for name, role in ROLES.items() if role not in found]
    for place in others:
        role = role_of(place)
        if role in found:
            continue  # another one was typed
        if role:
            how = f"; {UNLABELLED}" if role == "test" else ", or move it elsewhere"
            raise UserError(f"{place} holds no class folders; expected {place.name}/<class>/<image>{how}")
        if near := difflib.get_close_matches(place.name.lower(), known, 1, NEAR):
            role = ROLES[near[0]]
            raise UserError(
                f"{place} is no split; is it {role}/? Type dataset.{role}_dir={place.name}, or rename or move it"
            )
