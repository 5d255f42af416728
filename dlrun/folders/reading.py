"""The files of a run folder, read without its lock and without torch (`dlrun compare`, `dlrun report`)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from dlrun.errors import UserError
from dlrun.folders.disk import has_file, owned
from dlrun.folders.formats import read_arrays, read_rows
from dlrun.folders.opener import Unreadable, names, read, real_folder
from dlrun.folders.plain import json_of, mapping
from dlrun.folders.record import expect
from dlrun.folders.version import refuse_newer
from dlrun.vocabulary import Status

__all__ = [
    "arrays",
    "checks",
    "config",
    "epoch_checkpoints",
    "error_tables",
    "find",
    "is_run",
    "layers",
    "metrics",
    "per_class",
    "pictures",
    "report",
    "result",
    "stamp",
    "stored",
    "tested",
    "walk",
]

T = TypeVar("T")


FOLDER = "dlrun.data.files.image_folder"
EPOCH = re.compile(r"epoch_.*\.pt", re.DOTALL)


def tested(path: Path) -> Path:
    """Return the checkpoint whose weights a run is tested with: the best, or the last if no best is kept."""
    best = path / "checkpoints" / "best.pt"
    return best if best.exists() else path / "checkpoints" / "last.pt"


def epoch_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints of single epochs, oldest first; no links. Raises Unreadable if their folder is a link."""
    return [path / "checkpoints" / name for name in names(path, "checkpoints") if EPOCH.fullmatch(name)]


def result(path: Path) -> dict[str, Any]:
    """Return result.json, with status `interrupted` if the process of a running run is gone.

    Raises NewerFormat for one of a newer dlrun.
    """
    found = stored(path)
    if found.get("status") == Status.RUNNING and not owned(path):
        found["status"] = Status.INTERRUPTED
    return found


def stored(path: Path) -> dict[str, Any]:
    """Return result.json as it stands.

    Raises NewerFormat for one of a newer dlrun, Unreadable for one that is damaged, no file, or not of dlrun.
    """
    file = f"{path}/result.json"
    try:
        data = read(path, "result.json")
    except FileNotFoundError:
        if not (path / "config.yaml").exists():
            return {}
        mapping(path, "config.yaml")  # one that cannot be read is no run that could be continued
        return {"status": Status.RUNNING}
    found = json_of(data, file)
    if not isinstance(found, dict):
        raise Unreadable(file, f"expected keys and values, found {type(found).__name__}")
    refuse_newer(file, found)
    expect(file, found)
    if isinstance(by_layer := found.get("sparsity"), dict):  # of an older run
        every = by_layer.pop("all", None)
        found |= {"sparsity": every if isinstance(every, float) else None, "sparsity_by_layer": by_layer}
    return found


def stamp(path: Path) -> tuple[tuple[int, int], ...]:
    """Return time (ns) and size (bytes) of the files behind tables, curves and links; (0, 0) for one that is missing.

    They differ from those of an earlier call if a file has changed since.
    """
    found = []
    for name in ("result.json", "config.yaml", "metrics.csv", "report.html"):
        try:
            about = os.stat(path / name)
            found.append((about.st_mtime_ns, about.st_size))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def arrays(path: Path, name: str) -> dict[str, Any]:
    """Return the arrays of `predictions`, `identity`, `histograms`, `showcase` or `probe`; empty if there are none."""
    return read_arrays(path, f"{name}.npz")


def layers(path: Path) -> list[dict[str, str]]:
    """Return the rows of layers.csv as text, one per layer and epoch."""
    return read_rows(path / "layers.csv")


def metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv as text, one per epoch."""
    return read_rows(path / "metrics.csv")


def checks(path: Path) -> list[dict[str, str]]:
    """Return the rows of checks.csv as text, one per check."""
    return read_rows(path / "checks.csv")


def per_class(path: Path) -> list[dict[str, str]]:
    """Return the rows of per_class.csv as text, one per class; none for a run of an older dlrun."""
    return read_rows(path / "per_class.csv")


def report(path: Path) -> Path:
    """Return the report file of a run or a sweep."""
    return path / "report.html"


def error_tables(path: Path) -> tuple[Path, Path]:
    """Return the files of all images ranked by loss, and of the confused classes, of a run or an ensemble."""
    return path / "errors.csv", path / "confusions.csv"


def pictures(path: Path) -> Path:
    """Return the folder of the pictures of a run or a sweep; makes it if needed. Raises Unreadable if it is a link."""
    try:
        return real_folder(path, "plots")
    except OSError as error:
        raise UserError(f"{path / 'plots'}: cannot make this folder: {error.strerror}") from error


def config(path: Path) -> dict[str, Any]:
    """Return the resolved config of a run. Raises UserError when the file is not plain YAML without interpolations.

    One from before `dataset.decoder` names the decoder that the run was trained with, so that it keeps its pixels.
    """
    file = path / "config.yaml"
    try:
        found = mapping(path, "config.yaml")
    except FileNotFoundError:
        raise UserError(f"{file}: not a readable config: there is no such file") from None
    for key, value in _leaves(found, ""):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{file}: {key}={value}: a stored config contains values, not interpolations")
    data, source = stored(path).get("data"), found.get("dataset")
    if isinstance(data, dict) and isinstance(source, dict) and source.get("_target_") == FOLDER:
        known = data.get("decoding")
        source.setdefault("decoder", known.get("decoder", 1) if isinstance(known, dict) else 1)
    return found


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield f"{key}{name}", value
        yield from _leaves(value, f"{key}{name}.")


def is_run(path: Path | str) -> bool:
    """Whether a folder is that of a run. Raises OSError if its files may not be looked at."""
    return has_file(path, "config.yaml")


def find(paths: Iterable[str], unreadable: dict[str, str] | None = None) -> list[Path]:
    """Return the run folders at or below `paths`, by name, each once; `unreadable` and errors as in `walk`."""
    return [run for run, _ in walk(paths, is_run, "a run, a sweep or a folder of them, such as outputs", unreadable)]


def walk(
    paths: Iterable[str], kind: Callable[[str], T], expected: str, unreadable: dict[str, str] | None = None
) -> list[tuple[Path, T]]:
    """Return each folder at or below `paths` that has a kind, and its kind, sorted by name below a path, each once.

    Folders below one with a kind, hidden folders and links below a path are not visited. Raises UserError for a path
    that is not there, and for a folder that cannot be read, unless `unreadable` is given to receive the reason.
    """
    found: dict[str, tuple[str, T]] = {}
    for name in paths:
        top = Path(name).expanduser()
        if not top.is_dir():
            raise UserError(f"{name}: no such folder; expected {expected}")
        if top.is_symlink():  # outputs/latest
            top = Path(os.path.relpath(top.resolve()))
        real, start = str(top.resolve()), len(str(top))
        for path, what in _below(str(top), kind, unreadable):
            found.setdefault(real + path[start:], (path, what))
    return [(Path(path), what) for path, what in found.values()]


def _below(folder: str, kind: Callable[[str], T], unreadable: dict[str, str] | None) -> list[tuple[str, T]]:
    # strings, since tables are made of ten thousand runs, and a Path takes longer than the folder
    try:
        what = kind(folder)
        names: list[str] = []
        if not what:
            with os.scandir(folder) as entries:
                names += sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] != ".")
    except OSError as error:
        why = f"{folder}: cannot read this folder: {error.strerror}"
        if unreadable is None:
            raise UserError(why) from error
        unreadable[folder] = why
        return []
    if what:
        return [(folder, what)]
    return [found for name in names for found in _below(os.path.join(folder, name), kind, unreadable)]
