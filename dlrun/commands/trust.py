"""`dlrun trust [FOLDER [PACKAGE…]]`: show which other code the configs of a folder name, and allow packages for good.

With packages it is the same as typing trust=[PACKAGE] with every command that starts in that folder, until its code
changes. Without arguments it lists what is allowed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlrun.commands.arguments import Parser
from dlrun.config import trust
from dlrun.errors import UserError
from dlrun.vocabulary import Exit

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Print what a folder asks for, or record what is allowed in it; returns 0."""
    parser = Parser(prog="dlrun trust", description=__doc__)
    parser.add_argument("folder", nargs="?", help="the folder from which dlrun is started, such as . ")
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help="allow these packages there, such as mynet")
    parser.add_argument("--forget", action="store_true", help="withdraw what is allowed in the folder")
    args = parser.parse_args(argv)
    if args.folder is None:
        _list()
        return Exit.FINE
    folder = Path(args.folder).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"{args.folder}: no such folder; expected the one from which dlrun is started")
    if args.forget:
        _write({place: one for place, one in trust.recorded().items() if place != str(folder)})
        print(f"nothing is allowed in {folder}; type trust=[PACKAGE] with a command")
    elif args.packages:
        _allow(folder, args.packages)
    else:
        _show(folder, args.folder)
    return Exit.FINE


def _list() -> None:
    found = trust.recorded()
    for folder, one in found.items():
        valid = Path(folder).is_dir() and trust.kept(Path(folder))
        print(
            f"{folder}: {' '.join(one['packages'])}{'' if valid else ' (its code has changed: not allowed any more)'}"
        )
    if not found:
        print("nothing is allowed for good; `dlrun trust .` shows what the configs of this folder ask for")


def _show(folder: Path, typed: str) -> None:
    asked: dict[str, list[str]] = {}
    for file, name in _foreign(folder):
        print(f"{file.relative_to(folder)}: {name}")
        asked.setdefault(name.partition(".")[0], []).append(name)
    files = [str(file.relative_to(folder)) for file in trust.code_of(folder)]
    allowed = trust.kept(folder)
    print(f"{len(files)} files of code: {', '.join(files[:10])}{' …' if len(files) > 10 else ''}")
    print(f"allowed: {' '.join(allowed) or 'nothing'}{trust.stale(folder)}")
    if asked.keys() - set(allowed):
        words = shlex.join(["dlrun", "trust", typed, *sorted(asked)])
        print(f"if you have read this code, `{words}` allows it until it changes")


def _foreign(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every class that an option file names and that a config may not name by itself."""
    from dlrun.config.targets import check_targets, targets_of
    from dlrun.folders import opener, plain

    for file in sorted((folder / "conf").rglob("*.y*ml")):
        try:
            found = plain.yaml_of(opener.read_text(file.parent, file.name), file)
        except (OSError, UserError) as error:
            print(f"left out: {error}")
            continue
        for _, name in targets_of(found):
            try:
                check_targets({"_target_": name}, [])
            except UserError:
                if isinstance(name, str) and name != "???":
                    yield file, name


def _allow(folder: Path, packages: list[str]) -> None:
    trust.packages([f"trust=[{','.join(packages)}]"])  # raises for anything but names
    for name in packages:
        top = name.partition(".")[0]
        places = (folder / f"{top}.py", folder / top)
        if not any(place.exists() for place in places):
            raise UserError(f"{name}: no {top}.py and no folder {top} in {folder}; type trust=[{name}] instead")
        if link := next((place for place in places if place.is_symlink()), None):
            raise UserError(f"{link}: a link, whose code may change elsewhere; type trust=[{name}] instead")
    here: dict[str, Any] = {"packages": packages, "sha256": trust.digest(folder)}
    _write({**trust.recorded(), str(folder): here})
    print(f"allowed in {folder} until its code changes: {' '.join(packages)} ({trust.store()})")


def _write(folders: dict[str, dict[str, Any]]) -> None:
    from dlrun.folders.disk import make_folder, write_atomic

    make_folder(trust.store().parent)
    write_atomic(trust.store(), (json.dumps({"folders": folders}, indent=1) + "\n").encode())
