"""A user's images, arrays and modules, looked at without torch and without running them (`dlrun train`, D4, M3).

What is missing is refused before a folder exists, in a sweep before its first trial. Training checks more.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from dlrun.config.targets import targets_of
from dlrun.errors import UserError
from dlrun.vocabulary import array_slot, reads_labels, tars_of

__all__ = ["by_loss", "look"]

OURS = ("dlrun", "torch", "torchvision")


def look(cfg: Mapping[str, Any]) -> None:
    """Raise UserError for a dataset without images or arrays, and for a class of a user that cannot be imported."""
    dataset = cfg["dataset"]
    if dataset.get("_target_") == "dlrun.data.files.image_folder" and dataset.get("class_level") != "none":
        try:
            _images(_training(dataset))
        except OSError as error:
            raise UserError(f"dataset.root={dataset['root']}: {error.filename}: {error.strerror}") from None
    if dataset.get("_target_") == "dlrun.data.shards.shards":
        for key in ("urls", "val_urls", "test_urls"):
            if dataset.get(key):
                try:
                    tars_of(dataset[key])
                except ValueError as error:
                    raise UserError(f"dataset.{key}={dataset[key]}: {error}") from None
    if dataset.get("_target_") == "dlrun.data.arrays.arrays":
        _arrays(dataset)
    start = cfg["trainer"].get("start_from")
    if start is not None and not Path(str(start)).expanduser().exists():
        raise UserError(f"trainer.start_from={start}: no such run or file; expected a run, or a file of weights")
    for key, name in targets_of(cfg):
        if isinstance(name, str) and name.split(".")[0] not in OURS:
            _module(f"{key}={name}", name)


def by_loss(cfg: dict[str, Any]) -> dict[str, Any]:
    """Return a config whose monitor is val_loss in place of val_acc if its objective reads no labels (M10).

    The metric of a search too.
    """
    if reads_labels(cfg):
        return cfg
    found = dict(cfg)
    for section, key in (("trainer", "monitor"), ("search", "metric")):
        if (cfg.get(section) or {}).get(key) == "val_acc":
            found[section] = {**cfg[section], key: "val_loss"}
    return found


def _training(dataset: Mapping[str, Any]) -> Path:
    """The folder in which the class folders or splits are. Raises UserError for a split's folder that is missing."""
    root = Path(str(dataset["root"])).expanduser()
    for key in ("train_dir", "val_dir", "test_dir"):
        if (name := dataset.get(key)) is not None and not (root / Path(str(name)).expanduser()).is_dir():
            raise UserError(f"dataset.{key}={name}: no such folder; expected one in {root}, or a path from /")
    return root / Path(str(dataset.get("train_dir") or "")).expanduser()


def _images(root: Path) -> None:
    classes = _folders(root / "train") if (root / "train").is_dir() else []
    folder = root / "train" if classes else root
    classes = classes or _folders(root)
    if not classes:
        tables = sorted(name for name in os.listdir(root) if name.lower().endswith((".csv", ".tsv", ".parquet")))
        words = f"dataset=table {quote(f'dataset.csv={root / tables[0]}')}" if tables else ""
        hint = f"; for labels in a table type {words}" if tables else ""
        raise UserError(f"dataset.root={root}: no class folders; expected {folder}/<class>/<image>{hint}")
    if not any(map(_has_file, classes)):
        raise UserError(f"dataset.root={root}: no images in {len(classes)} class folders, such as {classes[0]}")


def _folders(folder: Path) -> list[str]:
    return sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _has_file(folder: str, below: int = 6) -> bool:
    """Whether there is a file in a folder or below it: in a class, a split, or one folder around all of them."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    if any(entry.is_file() for entry in found):
        return True
    return below > 0 and any(_has_file(entry.path, below - 1) for entry in found if entry.is_dir())


def _arrays(dataset: Mapping[str, Any]) -> None:
    path, named = dataset.get("path"), {slot: dataset.get(slot) for slot in ("x", "y")}
    files = {slot: str(name) for slot, name in named.items() if str(name).endswith(".npy")}
    for slot, name in files.items():
        if not Path(name).expanduser().is_file():
            raise UserError(f"dataset.{slot}={name}: no such file; expected an .npy")
    if path is None:
        if len(files) < 2:
            raise UserError("dataset=arrays: type dataset.path=FILE.npz, or dataset.x=X.npy dataset.y=Y.npy")
        return
    place = Path(str(path)).expanduser()
    try:
        with ExitStack() as stack:
            found = os.listdir(place) if place.is_dir() else stack.enter_context(zipfile.ZipFile(place)).namelist()
    except (OSError, zipfile.BadZipFile):
        hint = f"write it with numpy.savez({str(path)!r}, x=…, y=…)"
        hint = f"type dataset.x={path} dataset.y=Y.npy" if place.suffix == ".npy" else hint
        raise UserError(f"dataset.path={path}: not an .npz file; {hint}") from None
    names = [name.removesuffix(".npy") for name in found if name.endswith(".npy")]
    for slot in ("x", "y"):
        if not named[slot] and len(names) != 2 and slot not in map(array_slot, names):
            shown, first = ", ".join(sorted(names)) or "none", next(iter(names), "NAME")
            raise UserError(
                f"dataset.path={path}: expected an array {slot!r}, found {shown}; type dataset.{slot}={first}"
            )


def _module(setting: str, name: str) -> None:
    """Look for the class in the source of its module, as far as the source shows it."""
    *parts, wanted = name.split(".")
    with _here():
        spec = _found(parts[0])
        if spec is None and parts[0] in sys.modules:
            return  # made by the program that calls dlrun, without a file
        if spec is None:
            where = f"expected {parts[0]}.py in the folder where you start dlrun, or an installed package"
            raise UserError(f"{setting}: no module {parts[0]}; {where}")
        if len(parts) > 1 or not str(spec.origin).endswith(".py") or spec.submodule_search_locations:
            return  # looking into a package would run it
        file = Path(str(spec.origin))
        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError as error:
            raise UserError(f"{setting}: importing it failed: {file}, line {error.lineno}: {error.msg}") from None
        for line, package in _imports(tree):
            if _found(package) is None:
                raise UserError(f"{setting}: importing it failed: {file}, line {line}: no module {package}")
    names = set(_names(tree))
    if wanted not in names and not names & {"*", "__getattr__"}:
        near = difflib.get_close_matches(wanted, names, 1)
        hint = f"did you mean {parts[0]}.{near[0]}?" if near else f"expected `class {wanted}` in it"
        raise UserError(f"{setting}: no such class in {file}; {hint}")


@contextmanager
def _here() -> Iterator[None]:
    """The folder as a place of modules, after all others, as when the class is built."""
    added = os.getcwd() not in sys.path
    if added:
        sys.path.append(os.getcwd())
    try:
        yield
    finally:
        if added:
            sys.path.remove(os.getcwd())


def _found(package: str) -> Any:
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and package of what the module cannot be imported without."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name.split(".")[0]) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module.split(".")[0]


def _names(tree: ast.Module) -> Iterator[str]:
    """What a module may define, at any depth: more than it does, never less."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
