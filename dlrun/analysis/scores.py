"""Scores in words, with counts and intervals, and the model that a command uses (S9, S10).

`dlrun compare`, the reports, and the first line of `dlrun predict`, `dlrun export` and `dlrun ensemble`. Nothing here
imports torch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrun.folders import ensemble as ensemble_folder
from dlrun.folders import reading
from dlrun.vocabulary import is_accuracy

__all__ = [
    "FEW",
    "beside",
    "counted",
    "images",
    "margin",
    "margins",
    "noise",
    "said",
    "share",
    "short",
    "short_names",
    "split_of",
]
__all__ += ["used", "wilson"]

FEW = 1000  # images below which an accuracy is shown with its counts: 1 % is 10 of them (S9)
DATE = re.compile(r"(?<![0-9])[0-9]{8}-[0-9]{6}-")  # of a new folder
Z = 1.96  # of a normal distribution, for 95 %


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share of `count` images (Wilson 1927, J. Am. Stat. Assoc. 22).

    Unlike share ± 1.96 standard errors it stays within 0 and 1, and is not empty at 0 and 1.
    """
    spread = Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(max(share * (1 - share), 0.0) / count + spread / (4 * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def margin(share: float, count: int) -> float:
    """Return half the width of the interval of `wilson`, for a cell with ±."""
    low, high = wilson(share, count)
    return (high - low) / 2


def noise(one: float, other: float, count: int) -> float:
    """Return how far two accuracies on `count` images may be apart by chance alone: a lead above it is real.

    The lead at which the 95 % interval of the difference of two independent shares begins above zero (Newcombe 1998,
    Stat. Med. 17, method 10; never zero, unlike 1.96 standard errors). On the same images models err alike, so the
    true value is smaller.
    """
    high, low = max(one, other), min(one, other)
    return math.hypot(high - wilson(high, count)[0], wilson(low, count)[1] - low)


def split_of(column: str) -> str:
    """Return the split that a score such as val_acc, ema_val_acc or plain_test_acc rests on; val if it names none."""
    return next((split for split in ("train", "test") if split in column.split("_")), "val")


def images(result: Mapping[str, Any], split: str) -> int:
    """Return the number of images that the scores of `train`, `val` or `test` are shares of; 0 if it is unknown.

    It is 0 as well with several targets, whose scores are means over them.
    """
    data = result.get("data")
    if isinstance(data, dict) and data.get("tasks"):
        return 0
    found = result.get("test_samples") if split == "test" else None
    if not isinstance(found, int):
        found = data.get(split) if isinstance(data, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


def counted(column: str, value: Any, result: Mapping[str, Any]) -> str:
    """Return a score in words: an accuracy on fewer than 1,000 images with how many are right."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "unknown"
    return share(value, images(result, split_of(column)) if is_accuracy(column) else 0)


def share(value: float, count: int) -> str:
    """Return an accuracy on `count` images in words, with how many are right if there are fewer than 1,000."""
    return f"{value:.3f} ({round(value * count)} of {count})" if 0 < count < FEW else f"{value:.4f}"


def said(result: Mapping[str, Any]) -> str:
    """Return one more line with the bootstrap intervals of the test scores; "" for a result without them."""
    found = result.get("bootstrap")
    if not isinstance(found, dict):
        return ""
    parts = [
        f"{name} {result[name]:.4f} ({ends[0]:.4f} to {ends[1]:.4f})"
        for name, ends in found.items()
        if isinstance(ends, (list, tuple)) and len(ends) == 2 and isinstance(result.get(name), float)
    ]
    return f"\n{', '.join(parts)}: 95 % intervals, bootstrap of {found.get('resamples')} resamples" if parts else ""


def margins(result: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return the column beside each accuracy on fewer than 1,000 images in a row of a table: half of its interval."""
    found = {}
    for column in filter(is_accuracy, row):
        if 0 < (count := images(result, split_of(column))) < FEW:
            found[column] = [(f"{column} ±", _margin(row[column], count))]
    return found


def beside(result: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a table with the columns of `margins` in their places."""
    more = margins(result, row)
    return {name: cell for c, value in row.items() for name, cell in ((c, value), *more.get(c, ()))}


def _margin(value: Any, count: int) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ""
    return f"{margin(number, count):.3f}" if 0 <= number <= 1 else ""


def short(path: Path | str) -> str:
    """Return the name of a run for reading: its folder, of a trial that of the sweep as well."""
    above, name = os.path.split(path)
    if not above or name in ("", ".", "..") or os.path.islink(path):  # the rest takes a twentieth of a large table
        above, name = os.path.split(os.path.realpath(path) if os.path.islink(path) else os.path.abspath(path))
    return f"{os.path.basename(above)}/{name}" if name.isdigit() else name or above


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the names of runs without their common parts: the folders above, the date, the first letters.

    Whatever would make two of them equal stays.
    """
    unique = len(set(paths))
    names = [short(path) for path in paths]
    if len(set(names)) < unique:
        names = [os.path.relpath(path, os.path.commonpath(list(map(os.path.abspath, paths)))) for path in paths]
    bare = [DATE.sub("", name) for name in names]
    names = bare if len(set(bare)) == unique and all(bare) else names
    if len(set(names)) > 1:
        low, high = min(names), max(names)  # sorted, so all names begin with what these two have in common
        same = next((k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
        start = low[: max(low.rfind("-", 0, same), low.rfind("/", 0, same)) + 1]
        names = [name[len(start) :] for name in names]
    return names


def used(path: Path) -> str:
    """Return which model a command uses: the run, the epoch of its weights, its validation score."""
    result = reading.stored(path)
    parts = [f"with {short(path)}"]
    if ensemble_folder.is_ensemble(path):
        parts.append(f"{len(ensemble_folder.read(path)['members'])} members by {result.get('vote')}")
    elif (epoch := result.get("tested_epoch", result.get("best_epoch"))) is not None:
        parts.append(f"epoch {epoch}")
    if isinstance(value := result.get("val_acc"), (int, float)):
        parts.append(f"val {counted('val_acc', value, result)}")
    return ", ".join(parts)
