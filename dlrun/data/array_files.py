"""Arrays in .npz and .npy files, found by their names and not read: `dlrun train dataset=arrays dataset.path=mine.npz`.

Only headers are read here, so that a file with a wrong name or shape is refused at once. Pickles are never read (D4).
"""

from __future__ import annotations

import difflib
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dlrun.data.mapped import register
from dlrun.errors import UserError
from dlrun.vocabulary import array_slot

__all__ = ["PART", "Stored", "chosen", "converted", "held_as", "stored_arrays"]

PART = 1 << 24  # values read at a time
EXACT = 2**24  # float32 holds all whole numbers up to this
Array = NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """An array in a file, of which only the header was read; `member` of an .npz, "" for an .npy."""

    file: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.file}: {self.member}" if self.member else str(self.file)

    @property
    def short(self) -> str:
        """The name alone."""
        return self.member or self.file.name

    def read(self) -> Array:
        """Return the array; an .npy is mapped copy-on-write. Raises UserError."""
        try:
            if not self.member:
                mapped: Array = np.load(self.file, mmap_mode="c", allow_pickle=False)
                register(mapped)
                return mapped
            with np.load(self.file, allow_pickle=False) as file:
                array: Array = file[self.member]
                return array
        except Exception as error:
            raise UserError(f"{self.file}: array {self.short!r} cannot be read ({error})") from error


def stored_arrays(path: str) -> dict[str, Stored]:
    """Return the arrays of an .npz, or of a folder of .npy files, by name. Raises UserError if it is neither."""
    place = Path(path).expanduser()
    try:
        if place.exists() and not (place.is_dir() or place.is_file()):  # it would be waited for
            raise UserError(f"dataset.path={path}: expected a file or a folder, found a pipe or a device")
        if place.is_dir():
            return {file.stem: _npy(file) for file in sorted(place.glob("*.npy"))}
        with zipfile.ZipFile(place) as archive:
            found = {}
            for name in archive.namelist():
                if name.endswith(".npy"):
                    with archive.open(name) as member:
                        short = name.removesuffix(".npy")
                        found[short] = Stored(Path(path), short, *_header(member))
            return found
    except FileNotFoundError:
        raise UserError(f"dataset.path={path}: no such file") from None
    except UserError:
        raise
    except Exception as error:
        hint = "; type dataset.x=X.npy dataset.y=Y.npy" if place.suffix == ".npy" else "; write it with numpy.savez"
        raise UserError(f"dataset.path={path}: not an .npz ({error}){hint}") from error


def _npy(file: Path) -> Stored:
    try:
        with open(file.expanduser(), "rb") as opened:
            return Stored(file.expanduser(), "", *_header(opened))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except Exception as error:
        raise UserError(f"{file}: not an .npy ({error}); write it with numpy.save") from error


def _header(opened: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    old = np.lib.format.read_magic(opened) == (1, 0)
    shape, _, dtype = (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(opened)
    return shape, dtype


def chosen(path: str | None, named: Mapping[str, str | None]) -> tuple[dict[str, Stored], list[str]]:
    """Return the array of each slot (x, y, x_val …), and a note if they have names other than their slots'.

    `named`: by slot the name that the user gave, "none" to omit it, or None for the usual names. Raises UserError with
    what to type if an array is missing or its name is unclear.
    """
    if not path and not (named["x"] and named["y"]):
        raise UserError("dataset=arrays: type dataset.path=FILE.npz, or dataset.x=X.npy dataset.y=Y.npy")
    there = stored_arrays(path) if path else {}
    slots: dict[str, Stored] = {}
    for slot, name in named.items():
        if name and name != "none":
            slots[slot] = there[name] if name in there else _elsewhere(slot, name, path, there)
    usual: dict[str, list[str]] = {}
    for name, one in there.items():
        if one not in slots.values() and (slot := array_slot(name)) and not named[slot]:
            usual.setdefault(slot, []).append(name)
    for slot, names in usual.items():
        exact = slot if slot in names else names[0]
        if len(names) > 1 and exact != slot:
            raise UserError(f"{path}: {' and '.join(names)} may both be {slot}; type dataset.{slot}={names[0]}")
        slots[slot] = there[exact]
    if "x" not in slots and "y" not in slots and len(there) == 2:
        slots |= _by_shape([*there.values()])
    for slot in ("x", "y"):
        if slot not in slots:
            found = ", ".join(sorted(there)) or "none"
            first = next(iter(there), "NAME")
            raise UserError(f"{path}: expected an array {slot!r}, found {found}; type dataset.{slot}={first}")
    for end in ("_val", "_test"):
        if "x" + end in slots and "y" + end not in slots:
            raise UserError(
                f"{path or slots['x' + end]}: found {slots['x' + end].short} but no y{end}; type dataset.y{end}=NAME, "
                f"or dataset.x{end}=none to omit it"
            )
        if "x" + end not in slots:
            slots.pop("y" + end, None)
    for one in slots.values():
        if one.dtype.hasobject:
            raise UserError(
                f"{path or one}: array {one.short!r} cannot be read: its Python objects would have to be unpickled; "
                "save it with .astype(str), or images as numbers"
            )
    usual_names = [f"{slot} is {one.short}" for slot, one in slots.items() if not named[slot] and slot != one.short]
    return slots, [", ".join(usual_names)] if usual_names else []


def _elsewhere(slot: str, name: str, path: str | None, there: Mapping[str, Stored]) -> Stored:
    if name.endswith(".npy"):
        return _npy(Path(name))
    if not path:
        raise UserError(f"dataset.{slot}={name}: expected an .npy file, or dataset.path=FILE.npz that contains it")
    near = difflib.get_close_matches(name, there, 1)
    hint = f"did you mean {near[0]}?" if near else f"found {', '.join(sorted(there)) or 'none'}"
    raise UserError(f"dataset.{slot}={name}: no such array in {path}; {hint}")


def _by_shape(found: Sequence[Stored]) -> dict[str, Stored]:
    """x and y of a file with two arrays, if one can only be images and the other labels; else nothing."""
    one, other = sorted(found, key=lambda stored: len(stored.shape))
    fits = len(one.shape) in (1, 2) and len(other.shape) in (3, 4) and one.shape[0] == other.shape[0]
    return {"x": other, "y": one} if fits else {}


def held_as(x: Array, name: str) -> tuple[np.dtype[Any], str]:
    """Return the type that holds all values of images x, and a note if it is not the obvious one.

    bool becomes uint8; other integers than uint8 and uint16 the smallest of uint8, uint16 and float32 that is exact.
    Raises UserError, beginning with `name`, for what may mean two things.
    """
    kind, size = x.dtype.kind, x.dtype.itemsize
    if kind == "f":
        return np.dtype(np.float32), ""
    if kind == "u" and size <= 2:
        return np.dtype(x.dtype.newbyteorder("=")), ""
    if kind == "b":
        return np.dtype(np.uint8), "bool, False is black and True is white (255)"
    if kind not in "iu":
        raise UserError(f"{name} is {x.dtype}; expected numbers: uint8, uint16 or float")
    step = max(1, PART // math.prod(x.shape[1:]))
    parts = [x[at : at + step] for at in range(0, len(x), step)]
    low, high = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
    if size == 1 and low < 0:
        raise UserError(
            f"{name} is int8 from {low} to {high}; if these are bytes read as signed, save x.view('uint8'), "
            "else x.astype('float32')"
        )
    if low < -EXACT or high > EXACT:
        raise UserError(f"{name} is {x.dtype} from {low} to {high}, too large for float32; scale it first")
    fits = "float32" if low < 0 or high > 65535 else "uint8" if high <= 255 else "uint16"
    return np.dtype(fits), f"{x.dtype} from {low} to {high}, held as {fits}"


def converted(x: Array, dtype: np.dtype[Any]) -> Array:
    """Return images as the type that `held_as` chose: C-contiguous, of bool 0 and 255."""
    found: Array = np.array(x, dtype=dtype, order="C")
    return found * np.uint8(255) if x.dtype.kind == "b" else found
