"""Labels as people store them, read as class numbers: `dlrun train dataset=arrays dataset.path=mine.npz` (D4).

One-hot rows, columns (N, 1), bool, bytes, whole floats, labels from 1 and names are understood, with a note. What may
mean two things is refused with what to type: a wrong label must not become a class, nor a class a wrong label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrun.errors import UserError

__all__ = ["Labels", "class_names", "numbered", "plain"]

MISSING = ("", "nan", "None", "NaN", "<NA>", "null")  # what pandas writes for a missing value
MANY = 20  # labels: of so many, half being different are no classes
Array = NDArray[Any]


class Labels(NamedTuple):
    """One integer or string per image (N,); `width` of one-hot rows, else 0; how they were read, or ""."""

    values: Array
    width: int = 0
    note: str = ""


def plain(y: Array, what: str) -> Labels:
    """Return labels in one of the usual forms as integers or strings.

    Raises UserError that begins with `what` for soft labels, several labels per image, missing values, numbers that are
    not whole, and types that cannot be labels.
    """
    if y.ndim > 1 and y.size == len(y):
        y = y.reshape(-1)  # (N, 1), as in MedMNIST and Keras
    if y.ndim == 2 and y.dtype.kind in "biuf":
        return Labels(*_one_hot(y, what))
    if y.ndim != 1:
        raise UserError(f"{what} has shape {y.shape}; expected one label per image, (N,)")
    kind = y.dtype.kind
    if kind == "b":
        return Labels(np.where(y, "True", "False"), note="bool, classes False and True")
    if kind in "iu":
        return Labels(y.astype(np.int64))
    if kind == "f":
        wrong = np.flatnonzero(~(np.isfinite(y) & (y == np.rint(y))))
        if len(wrong):
            raise UserError(
                f"{what} is {y.dtype} with {y[wrong[0]]:g} at index {wrong[0]}; expected class numbers or names"
            )
        return Labels(y.astype(np.int64), note=f"{y.dtype} of whole numbers")
    if kind == "S":
        try:
            return Labels(np.char.decode(y, "utf-8"), note="bytes as UTF-8 text")
        except UnicodeDecodeError:
            raise UserError(f"{what} has bytes that are not UTF-8; save np.char.decode(y, 'latin-1')") from None
    if kind == "U":
        return Labels(y)
    raise UserError(f"{what} is {y.dtype} {y.shape}; expected class numbers or strings")


def _one_hot(y: Array, what: str) -> tuple[Array, int, str]:
    ones, rows = y == 1, y.sum(1)
    if bool((ones | (y == 0)).all()) and bool((ones.sum(1) == 1).all()):
        return ones.argmax(1), y.shape[1], f"one-hot rows of {y.shape[1]} classes"
    if y.dtype.kind == "f" and bool((y >= 0).all()) and bool((np.abs(rows - 1) < 1e-3).all()):
        raise UserError(f"{what} has probabilities of {y.shape[1]} classes; save y.argmax(1) to use the most probable")
    if bool((ones | (y == 0)).all()):
        row = int(np.argmax(ones.sum(1) != 1))
        raise UserError(f"{what} has {int(ones[row].sum())} classes at index {row}; expected one, such as y[:, 0]")
    raise UserError(f"{what} has shape {y.shape}; expected one label per image, (N,), such as y[:, 0]")


def class_names(labels: Labels, what: str, num_classes: int = 0, *, each: bool = False) -> tuple[list[str], str]:
    """Return the classes of the training labels, and a line on them if they are not 0, 1, 2 … or names.

    `num_classes`: integers from 0 to this, others are bad labels; 0: those that are there. With `each` every value is a
    class. Raises UserError if that is unclear.
    """
    values = labels.values
    if not len(values):
        raise UserError(f"{what} is empty; expected one label per image")
    there = np.unique(values)
    if not num_classes and not each and len(there) > MANY and 2 * len(there) > len(values):
        raise UserError(f"{what} has {len(there)} different values for {len(values)} images; expected classes")
    if values.dtype.kind == "U":
        names = [str(name) for name in there]
        if not each:
            _refuse_blank(names, values, what)
        return names, ""
    if num_classes or labels.width:
        return [str(number) for number in range(num_classes or labels.width)], ""
    found = [int(number) for number in there]
    names = [str(number) for number in found]
    low, high = found[0], found[-1]
    if low == 0 and high == len(found) - 1:
        return names, ""
    if each or (low >= 0 and high == low + len(found) - 1) or low > 1 or found == [-1, 1]:
        shown = f"{low} to {high}" if high == low + len(found) - 1 else _listed(names)
        return names, f"{len(names)} classes with the names {shown}"
    low = min(low, 1) if low >= 0 else 0
    gap = next(number for number in range(low, high + 2) if number not in set(found))
    where = int(np.argmax((values > gap) | (values < 0)))
    less = f" and dataset.num_classes={gap} makes bad labels of those outside 0 to {gap - 1}" if low == 0 < gap else ""
    raise UserError(
        f"{what} has no {gap}, but {int(values[where])} at index {where} ({found[0]}..{high}); expected class numbers "
        f"without gaps; dataset.labels=names makes a class of each value{less}"
    )


def numbered(labels: Labels, classes: Sequence[str], what: str) -> NDArray[np.int64]:
    """Return class numbers (N,); integers may be out of range if the classes are 0, 1, 2 …, names must be known."""
    values = labels.values
    if values.dtype.kind != "U" and list(classes) == [str(number) for number in range(len(classes))]:
        return values.astype(np.int64)
    numbers = {name: number for number, name in enumerate(classes)}
    there, inverse = np.unique(values, return_inverse=True)
    if unknown := [str(name) for name in there if str(name) not in numbers]:
        raise UserError(f"{what} has classes that train lacks: {_listed([*map(repr, unknown)])}; add them to train")
    return np.array([numbers[str(name)] for name in there], dtype=np.int64)[inverse.reshape(-1)]


def _refuse_blank(names: Sequence[str], values: Array, what: str) -> None:
    """Raise UserError for missing values, and for names that differ by spaces alone."""
    if empty := [name for name in names if name.strip() in MISSING]:
        where = int(np.argmax(values == empty[0]))
        raise UserError(f"{what} is {empty[0]!r} at index {where}: a missing label; leave these images out")
    by_text: dict[str, str] = {}
    for name in names:
        if (other := by_text.setdefault(name.strip(), name)) != name:
            raise UserError(f"{what} has {other!r} and {name!r}; save np.char.strip(y), or dataset.labels=names")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
