"""The structure of the code: its packages, their imports and the names they share, read from the source.

Everything here takes the folder of the package `dlrun`, so that a test can plant a violation in a copy.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

Law = Mapping[str, frozenset[str]]  # a package, and the packages that it may import


@lru_cache(maxsize=1024)
def parsed(text: str) -> ast.Module:
    """The syntax tree of a source; the package and its copies are parsed once."""
    return ast.parse(text)


@lru_cache(maxsize=1024)
def nodes(text: str) -> tuple[ast.AST, ...]:
    """All nodes of the syntax tree of a source, parents before children."""
    return tuple(ast.walk(parsed(text)))


def modules(root: Path) -> dict[str, Path]:
    """Every module below `root` by its dotted name; a package's __init__ by the name of the package."""
    found = {}
    for file in sorted(root.rglob("*.py")):
        parts = [root.name, *file.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def package(module: str) -> str:
    """The part of a module's name below dlrun: dlrun.models.cnn is in `models`."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(file: Path, known: Mapping[str, Path]) -> Iterator[tuple[str, str | None]]:
    """Yield what a file imports from dlrun, at its top, in functions and for types: the module, and a name from it.

    Raises AssertionError for a relative import.
    """
    for node in nodes(file.read_text()):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "dlrun")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            if module.split(".")[0] == "dlrun":
                for alias in node.names:
                    below = f"{module}.{alias.name}"
                    yield (below, None) if below in known else (module, alias.name)


def edges(root: Path) -> dict[str, dict[str, str]]:
    """Which package imports which, and the first file that does."""
    known = modules(root)
    found: dict[str, dict[str, str]] = {package(name): {} for name in known}
    for name, file in known.items():
        for imported, _ in imports(file, known):
            here, there = package(name), package(imported)
            if there not in (here, "__init__"):
                found[here].setdefault(there, str(file.relative_to(root)))
    return found


def violations(root: Path, law: Law) -> list[str]:
    """Every difference between the imports below `root` and the law."""
    found, seen = [], edges(root)
    found += [f"{name}: no entry in the law" for name in sorted(set(seen) - set(law))]
    found += [f"{name}: in the law, but missing" for name in sorted(set(law) - set(seen))]
    for here, there in seen.items():
        for name, file in there.items():
            if name not in law.get(here, frozenset()):
                found.append(f"{file}: {here} may not import {name}")
    return found + cycles(seen)


def cycles(graph: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The first cycle found from each package, as a path."""
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            found.append(f"cycle: {' -> '.join([*path[path.index(name) :], name])}")
        elif name not in done:
            for below in sorted(graph.get(name, ())):
                visit(below, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    return found


def unlisted(root: Path) -> list[str]:
    """Names that one module uses from another that does not list them in its `__all__`."""
    known = modules(root)
    listed = {name: _listed(file) for name, file in known.items()}
    found = set()
    for name, file in known.items():
        taken = [(module, used) for module, used in imports(file, known) if used is not None]
        for module, used in [*taken, *_attributes(file, known)]:
            if module in known and module != name and used not in listed[module]:
                found.add(f"{file.relative_to(root)}: {module}.{used} is not in its __all__")
    return sorted(found)


def _listed(file: Path) -> set[str]:
    """The names in a module's `__all__`, also those added later; for a package its modules as well."""
    found = {below.stem for below in file.parent.iterdir()} if file.name == "__init__.py" else set()
    for node in parsed(file.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            found |= {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    return found


def _attributes(file: Path, known: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Yield the attributes that a file reads from imported modules of dlrun: `loop.fit` after `import loop`."""
    tree = nodes(file.read_text())
    held = {}
    for node in tree:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dlrun":
            for alias in node.names:
                if f"{node.module}.{alias.name}" in known:
                    held[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in tree:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in held:
            yield held[node.value.id], node.attr


def unused(root: Path, law: Law, ground: frozenset[str]) -> dict[str, list[str]]:
    """What the law allows a package besides the ground, and no file of it imports."""
    seen, everything = edges(root), frozenset(law)
    found = {name: sorted(may - ground - set(seen[name])) for name, may in law.items() if may != everything}
    return {name: words for name, words in found.items() if words}


def undocumented(root: Path) -> list[str]:
    """Modules below `root` that hold code, and their public functions and classes, without a docstring."""
    found = []
    for name, file in modules(root).items():
        tree = parsed(file.read_text())
        if tree.body and not ast.get_docstring(tree):
            found.append(name)
        for node in tree.body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and node.name[0] != "_"
                and not ast.get_docstring(node)
            ):
                found.append(f"{name}.{node.name}")
    return found


def vague(root: Path) -> list[str]:
    """Modules and packages below `root` whose name says nothing."""
    empty = {"utils", "util", "helpers", "helper", "base", "manager", "common", "misc"}
    return [name for name in modules(root) if empty & set(name.split("."))]


def heavy(root: Path) -> list[str]:
    """What the module of the command imports at its top, except the few that cost nothing."""
    free = {"__future__", "importlib", "os", "sys", "time"}
    top = parsed((root / "cli.py").read_text()).body
    taken = [a.name for node in top if isinstance(node, ast.Import) for a in node.names]
    taken += [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
    return [name for name in taken if name not in free]


def unexplained(conf: Path) -> list[str]:
    """Option files that do not open with a comment on what they are."""
    found = []
    for file in sorted(conf.rglob("*.yaml")):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
        if not lines or not lines[0].startswith("# ") or len(lines[0]) <= 20:
            found.append(str(file.relative_to(conf)))
    return found


def strange_groups(conf: Path, known: frozenset[str]) -> list[str]:
    """Folders of options that are no known group."""
    return sorted({file.parent.name for file in conf.glob("*/*.yaml")} - known)


def borrowed(tests: Path) -> list[str]:
    """Imports of a test file or a conftest in the files below `tests`."""
    names = {file.stem for file in tests.rglob("test_*.py")} | {"conftest"}
    found = []
    for file in sorted(tests.rglob("*.py")):
        for node in nodes(file.read_text()):
            taken = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            taken += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{file.relative_to(tests)}: {name}" for name in taken if name.split(".")[-1] in names]
    return found


def foreign(root: Path) -> list[str]:
    """Modules below `root` with a branch for Windows: its imports need fcntl and resource, which Windows lacks."""
    found = []
    for name, file in modules(root).items():
        words = {n.value for n in nodes(file.read_text()) if isinstance(n, ast.Constant)}
        if words & {"win32", "nt", "Windows", "cygwin", "msvcrt"}:
            found.append(name)
    return found


def idle(pyproject: str, root: Path) -> set[str]:
    """The required packages of a pyproject.toml that no module below `root` imports."""
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", pyproject, re.M | re.S)
    required = set(re.findall(r'^ *"([A-Za-z0-9_-]+)', block, re.M))
    imported = set()
    for file in root.rglob("*.py"):
        for node in nodes(file.read_text()):
            imported |= {a.name.split(".")[0] for a in node.names} if isinstance(node, ast.Import) else set()
            imported |= {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
    called = {"scikit-learn": "sklearn", "hydra-core": "hydra"}
    return {name for name in required if called.get(name, name) not in imported}
