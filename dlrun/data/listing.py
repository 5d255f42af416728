"""The image files in folders, and an account of everything else there (`dlrun train dataset=image_folder`, D4).

`dlrun train`, `dlrun check` and `dlrun predict` list folders here, so that they see the same files: by extension in any
case, through links, without what is hidden or added by systems, and without dlrun's own outputs/. Only names and kinds
of entries are looked at; a pipe or a device is never opened.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dlrun.errors import UserError

__all__ = [
    "BESIDE",
    "BROKEN",
    "CYCLE",
    "EMPTY",
    "HIDDEN",
    "MOST",
    "NO_CLASS",
    "SPECIAL",
    "SUFFIXES",
    "Account",
    "Entries",
    "Folders",
    "counted",
    "printable",
]

SUFFIXES = {".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
SUFFIXES |= {".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
HEIC = {".heic", ".heif"}
EXTRA = "(pip install 'dlrun[heic]')"
ADDED = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}  # by archives and file servers
ADDED |= {"Thumbs.db", "thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "Icon\r"}
HIDDEN, SPECIAL, BROKEN, CYCLE = "hidden", "pipes or devices", "links to nothing", "links to a folder around them"
BESIDE, NO_CLASS, EMPTY = "beside the class folders", "other folders", "without images"
ONE = {
    SPECIAL: "pipe or device",
    NO_CLASS: "other folder",
    BROKEN: "link to nothing",
    CYCLE: "link to a folder around it",
}
FIRST = (BESIDE, NO_CLASS, BROKEN, CYCLE, SPECIAL, EMPTY)  # in the line, after images of a missing format
NAMED = {BROKEN, CYCLE, NO_CLASS, EMPTY, SPECIAL}  # reasons whose first names are in the line
SHOWN = 3  # of these names
KINDS = 4  # extensions in the line; of the others the total
MOST = 1000  # paths kept for each reason


class Entries(NamedTuple):
    """What a folder holds, sorted by name: images, folders (or links to either), and the others with the reason."""

    images: list[str]
    folders: list[str]
    others: list[tuple[str, str]]  # reason, name


@dataclass
class Account:
    """What was read, and how many files and folders were left out for each reason, with the first MOST paths of each.

    `lacking`: for a split the classes of train that it has no image of. `alike`: classes that differ in case alone.
    """

    images: int = 0
    classes: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    paths: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    lacking: dict[str, list[str]] = field(default_factory=dict)
    alike: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.counts or self.lacking or self.alike)

    def __str__(self) -> str:
        parts = [f"read {self.images:,} images of {self.classes} classes"]
        if self.counts:
            parts.append(f"left out: {self.left_out()}")
        for split, names in self.lacking.items():
            parts.append(f"{split} has no images of {_some(names)}")
        if self.alike:
            parts.append(f"some classes differ in case alone: {_some(self.alike)}")
        return "; ".join(parts)

    def add(self, reason: str, path: Path) -> None:
        """Count a file or folder that is left out."""
        self.counts[reason] += 1
        if len(self.paths[reason]) < MOST:
            self.paths[reason].append(printable(path))

    def join(self, other: Account, place: Path) -> None:
        """Add what another account, whose paths are within a place, has left out."""
        for reason, count in other.counts.items():
            self.counts[reason] += count
            room = MOST - len(self.paths[reason])
            self.paths[reason] += [f"{printable(place)}/{name}" for name in other.paths[reason][:room]]

    def left_out(self) -> str:
        """Return how many were left out for each reason: what may be images first, what is hidden last."""
        known = [reason for reason in FIRST if reason in self.counts]
        ranked = [reason for reason, _ in self.counts.most_common() if reason not in (*known, HIDDEN)]
        images, others = ([r for r in ranked if r.endswith(EXTRA) == may] for may in (True, False))
        parts = [self._part(reason) for reason in (*images, *known, *others[:KINDS])]
        if rest := sum(self.counts[reason] for reason in others[KINDS:]):
            parts.append(f"{rest:,} more")
        return ", ".join([*parts, *([self._part(HIDDEN)] if HIDDEN in self.counts else [])])

    def _part(self, reason: str) -> str:
        count, places = self.counts[reason], {Path(path).parent.name for path in self.paths[reason]}
        if reason not in (*FIRST, HIDDEN) and len(places) == 1 and count > 1:  # perhaps of one class alone
            kind, note, extra = reason.partition(" (")
            return f"{count:,} {kind} in {places.pop()}/{note}{extra}"
        names = f" ({_some([Path(path).name for path in self.paths[reason]], count)})" if reason in NAMED else ""
        return f"{count:,} {ONE.get(reason, reason) if count == 1 else reason}{names}"

    def record(self) -> dict[str, object]:
        """Return counts by reason, as JSON types."""
        return dict(self.counts)


class Folders:
    """Looks into each folder once; formats whose package is missing are images only if `unreadable`."""

    def __init__(self, *, unreadable: bool = False) -> None:
        self._known: dict[Path, Entries] = {}
        self._heic = unreadable or importlib.util.find_spec("pillow_heif") is not None

    def __call__(self, folder: Path) -> Entries:
        """Return what a folder holds. Raises UserError for a folder that may not be listed."""
        if folder not in self._known:
            self._known[folder] = _entries(folder, self._heic)
        return self._known[folder]

    def holds_images(self, folder: Path) -> bool:
        """Whether there is an image in a folder or below it, be its format one that is missing."""
        found = next(self.below(folder, account := Account()), None)
        return found is not None or any(reason.endswith(EXTRA) for reason in account.counts)

    def below(self, folder: Path, account: Account) -> Iterator[Path]:
        """Yield the images in a folder and in those below, and count the others; folders around it are not entered.

        Links inside of linked folders are followed once to each place: folders that all link to each other would have
        more paths than there is time.
        """
        here = os.path.realpath(folder)
        # those above the first one as well: a link to one of them would lead through the whole disk
        around = frozenset(map(str, Path(here).parents)) | {here}
        return self._below(folder, here, account, around, False, set())

    def _below(
        self, folder: Path, here: str, account: Account, around: frozenset[str], linked: bool, entered: set[str]
    ) -> Iterator[Path]:
        found = self(folder)
        for reason, name in found.others:
            account.add(reason, folder / name)
        yield from (folder / name for name in found.images)
        for name in found.folders:
            inner, real = folder / name, os.path.realpath(folder / name)
            link = real != os.path.join(here, name)
            if real in around or (link and linked and real in entered):
                account.add(CYCLE, inner)
                continue
            if link and linked:
                entered.add(real)
            if not (self(inner).images or self(inner).folders):
                account.add(EMPTY, inner)
            yield from self._below(inner, real, account, around | {real}, link or linked, entered)


def printable(path: os.PathLike[str] | str) -> str:
    """Return a path in which bytes that are not UTF-8 are written as \\xe9, for tables and messages."""
    text = os.fspath(path)
    return text if text.isascii() else os.fsencode(text).decode("utf-8", "backslashreplace")


def counted(others: list[tuple[str, str]]) -> str:
    """Return how many entries were not taken for each reason, for a message; "" for none."""
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(reason for reason, _ in others).most_common(3))


def _some(names: list[str], total: int = 0) -> str:
    total = max(total, len(names))
    return ", ".join(names[:SHOWN]) + (f" and {total - SHOWN:,} more" if total > SHOWN else "")


def _entries(folder: Path, heic: bool) -> Entries:
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        why = f"{printable(folder)}: this folder cannot be listed ({error.strerror}); check its permissions, or move it"
        raise UserError(why) from None
    images, folders, others = [], [], []
    for entry in entries:
        name = entry.name
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith(".") or name in ADDED:
            others.append((HIDDEN, name))
        elif (kind := _kind(entry)) == "folder":
            if not (name == "outputs" and _ours(entry.path)):
                folders.append(name)
        elif suffix in HEIC and not heic:
            others.append((f"{suffix} {EXTRA}", name))
        elif suffix in SUFFIXES and kind != SPECIAL:
            images.append(name)  # a link to nothing too: decoding reports an image that is missing
        elif kind:
            others.append((kind, name))
        else:
            others.append((printable(suffix) or "without an extension", name))
    return Entries(images, folders, others)


def _ours(folder: str) -> bool:
    """Whether dlrun writes its runs there."""
    return any(os.path.lexists(f"{folder}/{name}") for name in ("runs", "sweeps", "latest"))


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "folder", SPECIAL, BROKEN, or "" for a file; links are followed."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return ""
        return SPECIAL if os.path.exists(entry.path) else BROKEN
    except OSError:  # a link to itself
        return BROKEN
