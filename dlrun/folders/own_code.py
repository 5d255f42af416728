"""The user's own code of a run: copied into its folder, hashed, and compared later (`dlrun train … trust=[mynet]`).

Only files that this process has imported count: those of the trusted packages, and those beside them. A run folder's
copy is never imported by dlrun. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dlrun.folders import reading
from dlrun.folders.disk import make_folder, write_atomic
from dlrun.folders.opener import Unreadable, real_folder
from dlrun.folders.run import Run

__all__ = ["changes", "keep", "mismatch"]

LARGEST, LARGEST_OF_ALL = 1_000_000, 10_000_000  # bytes of a copied file, and of all; larger ones are only hashed
OTHERS = frozenset(("dlrun", "__main__", *sys.stdlib_module_names))
DLRUN = Path(__file__).resolve().parents[1]
INSTALLED = {"site-packages", "dist-packages"}
# a file as it was when this process first looked, soon after importing it: later edits are not what runs here
_read: dict[str, tuple[ModuleType, bytes]] = {}


def keep(run: Run, trust: Sequence[str]) -> str:
    """Copy the imported files of the user's code to `code/` and record their hashes in result.json.

    Return one line with the files that have changed since the run last began, or "".
    """
    found = _imported(trust)
    if not found:
        return ""
    said = changes(run.path, trust)
    omitted, total = [], 0
    for name, content in found.items():
        total += len(content) if len(content) <= LARGEST else 0
        if len(content) > LARGEST or total > LARGEST_OF_ALL:
            omitted.append(name)
            continue
        copy = run.path / "code" / name
        within = real_folder(run.path, "code")
        make_folder(copy.parent)
        write_atomic(copy, content, within=within)
    files = {**_stored(run.path), **{name: _hash(content) for name, content in found.items()}}
    run.update_result(code={"files": files, "not_copied": omitted})
    return said


def changes(path: Path, trust: Sequence[str]) -> str:
    """Return one line with the files of a run's own code that differ from what is imported now; "" if none does.

    To be called after the run's classes were built.
    """
    files = _changed(path, trust)
    if not files:
        return ""
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0]}{more} changed since {path} was trained; the code it was trained with is in {path / 'code'}"


def mismatch(path: Path, trust: Sequence[str]) -> str:
    """Return what has changed since a run was trained, and what to type; for a model that gives other outputs."""
    files = _changed(path, trust)
    if files:
        words = ["dlrun", "…", f"trust=[{','.join(trust)}]"]
        again = f"`PYTHONPATH={shlex.quote(str(path / 'code'))} {' '.join(words)}` uses the code it was trained with"
        return f"{', '.join(files)} changed since it was trained; {again}"
    stored = reading.stored(path).get("versions")
    then = stored if isinstance(stored, dict) else {}
    from dlrun import __version__

    return f"trained with dlrun {then.get('dlrun')} and torch {then.get('torch')}, this is dlrun {__version__}"


def _changed(path: Path, trust: Sequence[str]) -> list[str]:
    now, found = _imported(trust), []
    for name, digest in _stored(path).items():
        content = now.get(name)
        if content is None:  # not imported yet, perhaps in forward
            content = next(filter(None, (_content(root / name) for root in sorted(_roots(trust)))), None)
        if content is None or _hash(content) != digest:
            found.append(name)
    return found


def _stored(path: Path) -> dict[str, str]:
    """The hashes of a run's own code by file; only names that lie below a folder."""
    try:
        code = reading.stored(path).get("code")
    except Unreadable:
        return {}
    files: Any = code.get("files") if isinstance(code, dict) else None
    if not isinstance(files, dict):
        return {}
    return {n: str(d) for n, d in files.items() if not os.path.isabs(n) and ".." not in Path(n).parts}


def _imported(trust: Sequence[str]) -> dict[str, bytes]:
    """The content of the imported files of the user's code, by path below the folder that they are imported from."""
    roots, found = sorted(_roots(trust)), {}
    for name, module, file in _sources() if roots else ():
        trusted = any(f"{name}.".startswith(f"{t}.") for t in trust)
        root = next((r for r in roots if r in file.parents), None)
        if root is None or (not trusted and INSTALLED & set(file.parts)):
            continue
        before = _read.get(name)
        if before is None or before[0] is not module:
            content = _content(file)
            if content is None:
                continue
            _read[name] = (module, content)
        found[file.relative_to(root).as_posix()] = _read[name][1]
    return dict(sorted(found.items()))


def _roots(trust: Sequence[str]) -> set[Path]:
    """The folders that the trusted packages lie in."""
    tops = {t.partition(".")[0] for t in trust}
    places = {}
    for name, _, file in _sources() if tops else ():  # a process has thousands of modules
        if (top := name.partition(".")[0]) in tops:
            levels = name.count(".") + (file.name == "__init__.py")
            places[top, levels] = file.parents[levels]
    return set(places.values())


def _sources() -> Iterator[tuple[str, ModuleType, Path]]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py") and name.partition(".")[0] not in OTHERS:
            path = Path(os.path.abspath(file))
            if DLRUN not in path.parents:  # a checkout may lie beside the user's code
                yield name, module, path


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
