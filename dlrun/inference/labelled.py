"""Labelled images to score a model on: class folders, a table, arrays, the run's own test split (`dlrun evaluate`).

They are read as training reads them. Classes are matched with those of the model by name, whatever their order.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrun.data import arrays, files, shards, table
from dlrun.data.bad import Bad, BadData, bad_labels
from dlrun.data.images import Images
from dlrun.data.layout import class_folders, role_of
from dlrun.data.listing import Folders
from dlrun.data.splits import Raw, Split
from dlrun.errors import UserError
from dlrun.folders import reading
from dlrun.inference.predictor import Predictor, rebuilt

__all__ = ["Labelled", "own", "read"]

TABLES = (".csv", ".tsv", ".parquet")
SPLITS = ("train", "val", "test")
NAMED = 5  # classes named in a message


@dataclass(frozen=True)
class Labelled:
    """Images with labels (N,) that number the classes of the model, and an id for each.

    `stored` are the logits (N, K) that the end of training stored for these images, if they are the run's own.
    """

    images: Images
    labels: NDArray[np.int64]
    ids: list[str]
    split: str
    notes: list[str] = field(default_factory=list)
    stored: NDArray[Any] | None = None
    own: bool = False


def read(predictor: Predictor, path: Path, split: str, images: str | None, level: str | None = None) -> Labelled:
    """Return the images of a folder, a table or arrays; of several splits those of `split`, or of test.

    `images` is the folder of the images of a table; `level` is dataset.class_level, by default that of the run. Raises
    UserError in one line for a split that is not there, a class that the model does not know, and arrays of another
    shape.
    """
    path, wanted = _alone(path, split)
    try:
        raw = _raw(predictor, path, images, level)
    except BadData as error:
        raise _unusable(path, error.bad) from None
    there = {"train": raw.train, "val": raw.val, "test": raw.test}
    names = [name for name in SPLITS if there[name] is not None and (name != "train" or len(raw.train))]
    chosen = _chosen(path, names, wanted)
    found = there[chosen]
    part = found if isinstance(found, Split) else found() if found is not None else raw.train
    if not len(part):
        raise UserError(f"{path}: no labelled images in {chosen}; images without labels are for `dlrun predict`")
    if bad := bad_labels(part, chosen, raw.tasks or len(raw.classes)):
        raise _unusable(path, bad)
    if part.images.shape != predictor.shape:
        shapes = ["×".join(map(str, shape)) for shape in (part.images.shape, predictor.shape)]
        raise UserError(f"{path}: images of {shapes[0]}, expected {shapes[1]} like those of {predictor.path}")
    labels, notes = _matched(predictor, path, part, raw)
    return Labelled(part.images, labels, part.ids, chosen if len(names) > 1 else split, [*raw.notes, *notes])


def own(predictor: Predictor, trust: list[str]) -> Labelled:
    """Return the test split of the run, or of the first member, from its source, as the run recorded it."""
    first = (predictor.members or (predictor.path,))[0]
    held = rebuilt(first, trust).data.test().split
    stored = reading.arrays(predictor.path, "predictions")
    ids, logits = stored.get("test_ids"), stored.get("test_logits")
    same = ids is not None and logits is not None and [str(one) for one in ids.tolist()] == held.ids
    return Labelled(held.images, held.labels.numpy(), held.ids, "", [], logits if same else None, own=True)


def _alone(path: Path, split: str) -> tuple[Path, str]:
    """A folder that holds val or test and no train, which training would refuse, is the folder of that split."""
    if not path.is_dir():
        return path, split
    look = Folders()
    roles = {role_of(place): place for place in class_folders(path, look) if class_folders(place, look)}
    there = {role: place for role, place in roles.items() if role}
    if not there or "train" in there or len(there) < len(roles):
        return path, split
    chosen = _chosen(path, [name for name in SPLITS if name in there], split)
    return there[chosen], ""


def _raw(predictor: Predictor, path: Path, images: str | None, level: str | None) -> Raw:
    height, width, channels = predictor.shape
    suffix = path.suffix.lower()
    if predictor.tasks is not None and suffix not in TABLES:
        expected = f"a table ({', '.join(TABLES)})"
        expected += "" if predictor.tasks.sets else f" with the columns {', '.join(predictor.tasks.names)}"
        raise UserError(f"{path}: expected {expected}; omit it for the run's own test split")
    if images is not None and suffix not in TABLES:
        raise UserError(f"--images={images}: expected with a table ({', '.join(TABLES)}) alone; omit it")
    if path.is_dir() and not any(path.glob("*.npy")):
        source = reading.config((predictor.members or (predictor.path,))[0]).get("dataset") or {}
        level = level or source.get("class_level", "auto")  # classes are where they were in training
        return files.image_folder(str(path), [height, width], channels, class_level=level)
    if suffix in TABLES:
        tasks = predictor.tasks
        how = {"multilabel": True} if tasks and tasks.sets else {"targets": tasks.names} if tasks else {}
        return table.table(str(path), images, [height, width], channels, **how)
    if suffix == ".tar":
        return _tar(predictor, path)
    if path.is_dir() or suffix in (".npz", ".npy"):
        return arrays.arrays(str(path), **_numbering(predictor))
    expected = f"a folder of class folders, a table ({', '.join(TABLES)}), a .tar, an .npz with x and y"
    raise UserError(f"{path}: expected {expected}; images without labels are for `dlrun predict`")


def _tar(predictor: Predictor, path: Path) -> Raw:
    """The images of a tar, with labels where the run has them."""
    source = reading.config((predictor.members or (predictor.path,))[0]).get("dataset") or {}
    own = str(source.get("_target_", "")).startswith("dlrun.data.shards.")
    where = {key: str(source[key]) for key in ("image", "label") if own and key in source}
    height, width, channels = predictor.shape
    how = _numbering(predictor) | where
    return shards.shards([str(path)], **how, image_size=[height, width], channels=channels)


def _numbering(predictor: Predictor) -> dict[str, Any]:
    """How labels become classes: the run knows which there are, so that some of them may be missing here."""
    count = len(predictor.classes)
    return {"num_classes": count} if predictor.classes == [str(k) for k in range(count)] else {"labels": "names"}


def _chosen(path: Path, names: Sequence[str], split: str) -> str:
    if split and split not in names:
        there = " and ".join(names) if len(names) > 1 else "one part"
        hint = f"type --split {names[-1]}" if len(names) > 1 else "omit --split"
        raise UserError(f"--split {split}: {path} has {there}; {hint}")
    if split or len(names) == 1:
        return split or names[0]
    if "test" not in names:
        raise UserError(f"{path} has {' and '.join(names)} and no test; type --split {names[-1]}")
    return "test"


def _unusable(path: Path, bad: Sequence[Bad]) -> UserError:
    """What is wrong with images or labels: all are refused, since a score without them would be another one."""
    shown = "; ".join(f"{one.id}: {one.reason}" for one in bad[:NAMED])
    more = f" and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    return UserError(f"{path}: {shown}{more}; repair them, or remove them from {path.name}")


def _matched(predictor: Predictor, path: Path, part: Split, raw: Raw) -> tuple[NDArray[np.int64], list[str]]:
    """The labels (N,) as numbers of the model's classes, and notes on classes without an image."""
    tasks = predictor.tasks
    if tasks is None or raw.tasks is None:
        return _renumbered(predictor, path, part.labels.numpy(), raw.classes, predictor.classes)
    columns = raw.tasks.columns(part.labels).numpy()
    if tasks.sets:
        numbers, notes = _renumbered(predictor, path, np.arange(len(raw.classes)), raw.classes, tasks.names)
        found = np.zeros((len(columns), len(tasks.names)), dtype=np.int64)
        found[:, numbers] = columns
        return tasks.codes(found).numpy(), notes
    pairs = zip(columns.T, raw.tasks.classes, tasks.classes, strict=True)
    each = [_renumbered(predictor, path, column, given, known) for column, given, known in pairs]
    return tasks.codes(np.stack([numbers for numbers, _ in each], 1)).numpy(), [n for _, notes in each for n in notes]


def _renumbered(
    predictor: Predictor, path: Path, given: NDArray[np.int64], classes: Sequence[str], names: Sequence[str]
) -> tuple[NDArray[np.int64], list[str]]:
    """Numbers (N,) of `classes` as those of `names`, which the model knows, and a note on those without an image."""
    known = {name: number for number, name in enumerate(names)}
    there = [classes[k] for k in np.unique(given).tolist()]
    if unknown := [name for name in there if name not in known]:
        near = difflib.get_close_matches(unknown[0], names, 1, 0.7)
        hint = f"is {unknown[0]!r} {near[0]!r}? Rename it" if near else "rename them, or evaluate without them"
        what = f"{_some(unknown)}: {predictor.path} does not know {'it' if len(unknown) == 1 else 'them'}"
        raise UserError(f"{path}: class {what}; it knows {_some(names)}; {hint}")
    numbers = np.array([known.get(name, -1) for name in classes], dtype=np.int64)
    missing = [name for name in names if name not in there]
    notes = [f"no image of {len(missing)} of {len(known)} classes: {_some(missing)}"] if missing else []
    return numbers[given], notes


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more
