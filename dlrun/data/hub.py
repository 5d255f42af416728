"""What the library `datasets` finds at dataset.path: a table for each split, or why there is none in one line (D4).

Behind `dlrun train dataset=huggingface dataset.path=photos`. Code in a data set is never run: the library refuses it
since version 4, and formats other than Parquet, Arrow and image folders are refused here.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dlrun.errors import UserError

__all__ = ["SPLITS", "chosen", "no_such", "require_same_classes", "tables"]

FORMATS = ("arrow", "imagefolder", "parquet")  # of the library's own readers
SPLITS = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}
EXTRA = "pip install 'dlrun[huggingface]'"
EXPECTED = "expected Parquet, Arrow or an image folder"
Files = dict[str, list[str]]  # those of each split


def tables(path: str, name: str | None, revision: str | None) -> tuple[dict[str, Any], Path, Files]:
    """The library's table of each split that has rows, mapped from disk, the folder of what it reads, and its files.

    Raises UserError for what is not there, in a format that is not read, or damaged.
    """
    place = Path(os.path.expanduser(path))
    builder = _builder(path, place, name, revision)
    found = _read(builder, path)
    if not found:
        raise UserError(f"dataset.path={path}: no rows in {', '.join(builder.info.splits)}; expected some")
    files = {str(name): [*map(str, some)] for name, some in (builder.config.data_files or {}).items()}
    return found, place if place.is_dir() else Path(builder.cache_dir), files


def require_same_classes(path: str, label: str, kind: Any, files: Files, splits: Collection[str]) -> None:
    """Raise UserError if a local file of some splits names other classes than `kind`, the library's column."""
    used = list(getattr(kind, "names", None) or [])
    named = {f: _classes(f, label) for split in splits for f in files.get(split, ()) if os.path.isfile(f)}
    first = next((file for file, names in named.items() if names == used), None)
    for file, names in named.items():
        if not names or names == used:
            continue
        one, other = os.path.basename(file), os.path.basename(first) if first else "another file"
        apart = [
            f"only {whose} has {', '.join(some[:5])}{f' and {len(some) - 5} more' if len(some) > 5 else ''}"
            for whose, some in (
                (one, [n for n in names if n not in used]),
                (other, [n for n in used if n not in names]),
            )
            if some
        ]
        if not apart:
            at = next(n for n, pair in enumerate(zip(names, used, strict=True)) if len({*pair}) > 1)
            apart = [f"class {at} is {names[at]} in {one} and {used[at]} in {other}"]
        raise UserError(
            f"dataset.path={path}: column {label} of {one} and of {other} name different classes: {', '.join(apart)}; "
            "write all files with the same list of classes"
        )


def _classes(file: str, label: str) -> list[str]:
    """The classes that a Parquet or Arrow file names for a column; none if it names none or is of another kind."""
    import pyarrow
    from datasets import Features
    from pyarrow import parquet

    try:
        with pyarrow.memory_map(file) as opened:
            if file.endswith(".parquet"):
                schema = parquet.read_schema(opened)
            elif file.endswith(".arrow"):
                schema = pyarrow.ipc.open_stream(opened).schema
            else:
                return []
        return list(getattr(Features.from_arrow_schema(schema).get(label), "names", None) or [])
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError):  # which the library has read otherwise
        return []


def _builder(path: str, place: Path, name: str | None, revision: str | None) -> Any:
    """The library's reader of a data set."""
    import datasets
    from huggingface_hub.utils import logging as hub

    if int(datasets.__version__.partition(".")[0]) < 4:
        raise UserError(f"dataset=huggingface: datasets {datasets.__version__} may run code of others; type {EXTRA}")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it says its errors in many lines besides
    hub.set_verbosity_error()  # type: ignore[no-untyped-call,unused-ignore]
    # to the library the name of a format stands for all files in the current folder, and no name as well
    if not path or ((path.startswith(("/", ".", "~")) or place.name in FORMATS) and not place.is_dir()):
        raise UserError(f"dataset.path={path}: no such folder; expected Parquet files or images in it, or a hub name")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            where = os.path.abspath(place) if place.is_dir() else path
            found = datasets.load_dataset_builder(where, name, revision=revision)
    except Exception as error:  # the library raises a dozen kinds
        raise UserError(_not_opened(error, path, place, name)) from None
    kind = type(found).__module__.removeprefix("datasets.packaged_modules.").partition(".")[0]
    if kind not in FORMATS:
        hint = "; for tar files type dataset=shards" if kind == "webdataset" else ""
        what = f"only {_endings(place)}" if place.is_dir() else f"{kind} files"
        raise UserError(f"dataset.path={path}: {what}; {EXPECTED}{hint}")
    return found


def _not_opened(error: Exception, path: str, place: Path, name: str | None) -> str:
    if type(error).__name__ == "EmptyDatasetError" and place.is_dir():
        return f"dataset.path={path}: {_endings(place)}; {EXPECTED}"
    if known := re.fullmatch(r"BuilderConfig .* not found\. Available: \[(.*)\]", str(error), re.S):
        return no_such("dataset.name", str(name), re.findall(r"'([^']*)'", known[1]), "configuration", path)
    here = "" if place.exists() else "no such folder here, and on the hub: "
    return f"dataset.path={path}: {here}{_line(error)}"


def _endings(place: Path) -> str:
    """What kinds of files a folder has, the most frequent ones first."""
    found = Counter(os.path.splitext(file)[1] or "other" for *_, files in os.walk(place) for file in files)
    return " and ".join(f"{ending} files" for ending, _ in found.most_common(3)) or "a folder without files"


def _read(builder: Any, path: str) -> dict[str, Any]:
    from datasets import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            builder.download_and_prepare()
            # it opens no split without rows
            names = [str(name) for name, about in builder.info.splits.items() if about.num_examples]
            found = {name: builder.as_dataset(split=name) for name in names}
    except Exception as error:
        raise UserError(f"dataset.path={path}: {_not_read(error.__cause__ or error, builder)}") from None
    for name, table in found.items():
        for column, feature in table.features.items():
            if isinstance(feature, Image):
                found[name] = found[name].cast_column(column, Image(decode=False))
    return found


def _not_read(error: BaseException, builder: Any) -> str:
    """Why the library could not read the files of a data set."""
    import pyarrow
    from pyarrow import parquet

    for file in (file for files in (builder.config.data_files or {}).values() for file in files):
        try:
            if file.endswith(".parquet") and os.path.isfile(file):
                parquet.read_schema(file)
        except pyarrow.ArrowInvalid as why:
            return f"{os.path.basename(file)}: {_line(why)}; make or copy it again"
    names = [getattr(error, f"{which}_column_names", None) for which in ("table", "requested")]
    if all(names):
        one, other = (", ".join(map(str, part)) for part in names if part)
        return f"a file has the columns {one}, and the first one {other}; expected the same in all splits"
    if known := re.fullmatch(r"Invalid string class label (.*)", str(error), re.S):
        return f"the label {known[1][:40]!r} is none of the classes that the first file names; expected the same in all"
    return _line(error)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def chosen(role: str, asked: str | None, found: Mapping[str, Any], path: str) -> str | None:
    """The split of a role, by the key or by its usual names; none of train is an error."""
    key = f"dataset.{role}_split"
    if asked:
        if asked in found:
            return asked
        others = [name for name in found if role == "train" or name not in SPLITS["train"]]
        if not others:
            what = f"no such split with rows; {path} has {', '.join(found)}"
            raise UserError(f"{key}={asked}: {what}; omit it, and dataset.{role}_fraction takes a share of the images")
        raise UserError(no_such(key, asked, others, "split with rows", path))
    usual = next((name for name in SPLITS[role] if name in found), None)
    if role != "train" or usual:
        return usual
    if len(found) == 1:
        return next(iter(found))
    raise UserError(f"dataset.path={path}: no split train with rows; type {_one(key, found)}")


def no_such(key: str, asked: str, there: Collection[str], what: str, path: str) -> str:
    """What a user reads who typed a name that is not there."""
    return f"{key}={asked}: no such {what}; {path} has {', '.join(there)}; type {_one(key, there)}"


def _one(key: str, there: Collection[str]) -> str:
    return " or ".join(f"{key}={name}" for name in list(there)[:3])
