"""Files of run, sweep, ensemble and cache folders are opened by dlrun/folders alone; who opens another says why."""

from __future__ import annotations

import ast
from pathlib import Path

import dlrun

PACKAGE = Path(dlrun.__file__).parent
CALLS = {
    "open",
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "load",
    "memmap",
    "copy2",
    "copytree",
    "rmtree",
}
# what has a `load` that opens no file
NOT_FILES = {"json", "yaml", "loading", "studies", "predictor", "checkpoint", "self", "model", "storage"}
# files, each with what it opens, none of it by a name in a folder that may be somebody else's
EXCEPTIONS = {
    "cli.py",  # /proc/stat, /dev/null
    "console.py",  # /dev/null
    "cores.py",  # /proc, /sys
    "checks/receipts.py",  # the modules of dlrun and of the user that this process has imported
    "commands/init.py",  # new files in the user's own folder
    "commands/arguments.py",  # a page that a command replaces
    "commands/trust.py",  # YAML, of text that the opener has read
    "config/check_names.py",  # the checks of dlrun itself
    "config/preflight.py",  # modules that the user has named
    "config/targets.py",  # the modules of dlrun itself
    "config/trust.py",  # the user's own list of trusted folders
    "data/array_files.py",  # the user's data
    "data/cache_files.py",  # the cache, which has marks and digests of its own
    "data/datasets.py",  # the user's data, and those that are downloaded
    "data/decoding.py",  # the user's images
    "data/headers.py",  # the user's images
    "data/jpegs.py",  # the user's images
    "data/members.py",  # the user's tar files
    "data/packs.py",  # the cache, which has marks and digests of its own
    "data/sixteen.py",  # the user's images
    "data/sheet.py",  # the user's table
    "data/tars.py",  # the user's tar files
    "inference/classify.py",  # the user's images and arrays
    "inference/export.py",  # bytes in memory
    "models/weights_file.py",  # a file of weights that the user has named
    "reports/board.py",  # parts of the page, beside the module
    "reports/galleries.py",  # bytes in memory
    "reports/page.py",  # parts of the page beside the module, and pictures just drawn
    "reports/suspects_report.py",  # bytes in memory
    "run/extending.py",  # copies beneath a run whose lock is held; links are skipped
    "run/commit.py",  # the commit of the working folder, without git
    "search/launchers/job.py",  # /proc, /dev/null
    "search/launchers/slurm.py",  # /proc
    "spinning.py",  # /proc
    "training/checkpoint.py",  # bytes in memory, read by the opener
    "training/one_pass.py",  # a checkpoint that the opener has opened
    "training/group.py",  # bytes of the first process, in memory, weights only
    "training/memory.py",  # /proc
}


def opening(root: Path) -> dict[str, list[int]]:
    """The lines outside dlrun/folders that open, copy or delete a file, by module."""
    found: dict[str, list[int]] = {}
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if name.startswith(("folders/", "_plugins/")):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called, of = _called(node.func)
                if called in CALLS and of not in NOT_FILES:
                    found.setdefault(name, []).append(node.lineno)
    return found


def _called(function: ast.expr) -> tuple[str, str]:
    if isinstance(function, ast.Name):
        return function.id if function.id == "open" else "", ""
    if isinstance(function, ast.Attribute):
        return function.attr, function.value.id if isinstance(function.value, ast.Name) else ""
    return "", ""


def test_only_the_opener_opens_files_of_folders() -> None:
    assert opening(PACKAGE).keys() - EXCEPTIONS == set()


def test_no_exception_is_left_that_nobody_needs() -> None:
    assert EXCEPTIONS - opening(PACKAGE).keys() == set()


def test_a_module_that_opens_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    lines = "open(f)", "path.read_text()", "os.open(f, 0)", "np.load(f)", "torch.load(f)", "shutil.rmtree(f)"
    (tmp_path / "analysis/x.py").write_text("\n".join([*lines, "json.load(f)", "found.get(f)"]))
    (tmp_path / "folders").mkdir()
    (tmp_path / "folders/y.py").write_text("open(f)")
    assert opening(tmp_path) == {"analysis/x.py": [1, 2, 3, 4, 5, 6]}
