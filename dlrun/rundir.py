"""Run folders: the only place that knows a file name in one, who owns it, and how to write so that nothing is lost.

Reached by every verb. A folder has one owner at a time: the process that holds its lock, which the system
releases however the process ends. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlrun.config import UserError

__all__ = ["Run", "claim", "claim_sweep", "config", "find", "make_folder", "metrics", "owned", "reopen", "result", "stored", "write_atomic"]

OUTPUTS = Path("outputs")


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file by `data` so that a kill at any moment leaves the old content or the new, never a part.

    Raises UserError naming the file when the disk is full or may not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot write: {error.strerror}; what was there before is intact", 1) from error


def _sync_folder(folder: Path) -> None:
    # without this a rename may be lost with the power, though the file's content was synced
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Run:
    """One run folder, held by this process until `release`; made by `claim` or `reopen`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._result: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            self._result = json.loads((path / "result.json").read_bytes())

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint that `dlrun resume` goes on from."""
        return self.checkpoints / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch with the best monitored value."""
        return self.checkpoints / "best.pt"

    @property
    def log(self) -> Path:
        """What was printed."""
        return self.path / "log.txt"

    def write_config(self, cfg: Any) -> None:
        """Write the resolved config as plain YAML."""
        import yaml
        from omegaconf import OmegaConf

        plain = OmegaConf.to_container(cfg, resolve=True)
        write_atomic(self.path / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode())

    def write_predictions(self, arrays: Mapping[str, Any]) -> None:
        """Write logits, labels and sample ids of val and test."""
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomic(self.path / "predictions.npz", buffer.getvalue())

    def write_checks(self, rows: list[dict[str, Any]]) -> None:
        """Write the results of the checks, one row a check."""
        write_atomic(self.path / "checks.csv", _csv(rows).encode())

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append the row of an epoch, readable at once by others."""
        path = self.path / "metrics.csv"
        text = _csv([row], header=not path.exists())
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, text.encode())  # one call: a reader never sees half a row
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise UserError(f"{path}: cannot write: {error.strerror}; `dlrun resume` goes on from here", 1) from error

    def trim_metrics(self, epoch: int) -> None:
        """Drop rows after `epoch`, and a row that a kill cut short: the run is about to write them again."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return
        lines = path.read_text().splitlines(keepends=True)
        kept = [ln for ln in lines[1:] if ln.endswith("\n") and ln.split(",")[0].isdigit() and int(ln.split(",")[0]) <= epoch]
        if epoch == 0 or not lines:
            path.unlink()
        elif kept != lines[1:]:
            write_atomic(path, "".join([lines[0], *kept]).encode())

    def update_result(self, **more: Any) -> None:
        """Add to result.json, which other programs read while the run goes on."""
        self._result.update(more)
        write_atomic(self.path / "result.json", (json.dumps(self._result, indent=1) + "\n").encode())

    def release(self) -> None:
        """Give the folder up."""
        os.close(self._lock)


def claim(folder: str | None, label: str, root: Path = OUTPUTS / "runs") -> Run:
    """Take a folder that nobody else has: `folder` itself, or a new one below `root` named by time and `label`.

    Raises UserError when `folder` is owned by a living process, which it names, or already holds a run.
    """
    if folder is None:
        path = _new_folder(root, label)
    else:
        path = Path(folder).expanduser()
        make_folder(path)
    run = Run(path, _lock(path))
    if (path / "config.yaml").exists():
        run.release()
        status = result(path).get("status", "interrupted")
        raise UserError(f"{path} already holds a run ({status}); `dlrun resume {path}` goes on with it, or choose another run.dir=")
    run.checkpoints.mkdir(exist_ok=True)
    _point_latest(path)
    return run


def claim_sweep(folder: str | None) -> Path:
    """Make the folder of a sweep. Raises UserError when `folder` already holds something."""
    if folder is None:
        return _new_folder(OUTPUTS / "sweeps", "sweep")
    path = Path(folder).expanduser()
    make_folder(path)
    if any(path.iterdir()):
        raise UserError(f"{path} already holds something; choose another sweep.dir=")
    return path


def _new_folder(root: Path, label: str) -> Path:
    while True:
        path = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{label}-{secrets.token_hex(2)}"
        make_folder(root)
        try:
            _make(path.mkdir, path)
        except FileExistsError:
            continue  # two runs that started in the same second drew the same digits
        return path


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises UserError when it cannot be."""
    _make(lambda: path.mkdir(parents=True, exist_ok=True), path)


def _make(make: Any, path: Path) -> None:
    try:
        make()
    except FileExistsError:
        if path.is_dir():
            raise
        raise UserError(f"{path} is a file; expected a folder for the run") from None
    except OSError as error:
        raise UserError(f"{path}: cannot make this folder: {error.strerror}") from error


def reopen(folder: str) -> Run:
    """Take over the folder of a run whose owner is gone.

    Raises UserError when it is no run, or when its owner is alive.
    """
    path = Path(folder).expanduser()
    if not (path / "config.yaml").is_file():
        near = ", ".join(str(p) for p in find([str(path.parent)])[-3:]) if path.parent.is_dir() else ""
        raise UserError(f"{folder}: no run here (config.yaml is missing)" + (f"; runs nearby: {near}" if near else ""))
    run = Run(path, _lock(path))
    run.checkpoints.mkdir(exist_ok=True)
    for folder_ in (path, run.checkpoints):
        for leftover in folder_.glob(".*.tmp"):
            leftover.unlink()
    return run


def _lock(path: Path) -> int:
    """Take the folder's lock and write who we are into it."""
    name = path / ".owner"
    try:
        handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{path}: cannot write here: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise UserError(f"{path} is in use by {_owner(name)}; choose another run.dir= or wait for it") from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
    return handle


def _owner(name: Path) -> str:
    for _ in range(20):
        # the owner writes its name just after it has taken the lock
        with contextlib.suppress(ValueError, OSError):
            owner = json.loads(name.read_text())
            return f"process {owner['pid']} on {owner['host']}"
        time.sleep(0.05)
    return "another process"


def owned(path: Path) -> bool:
    """Say whether a living process holds the folder."""
    try:
        handle = os.open(path / ".owner", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _point_latest(path: Path) -> None:
    """Let outputs/latest lead to the newest run; a courtesy, so a file system without links loses only that."""
    latest = OUTPUTS / "latest"
    temporary = OUTPUTS / f".latest.{os.getpid()}"
    with contextlib.suppress(OSError):
        OUTPUTS.mkdir(exist_ok=True)
        temporary.symlink_to(os.path.relpath(path.resolve(), OUTPUTS.resolve()))
        os.replace(temporary, latest)


def result(path: Path) -> dict[str, Any]:
    """Return what result.json says, with status `interrupted` where a run's owner died without a word."""
    found = stored(path)
    if found.get("status") == "running" and not owned(path):
        found["status"] = "interrupted"
    return found


def stored(path: Path) -> dict[str, Any]:
    """Return what result.json says, as it stands."""
    try:
        found: dict[str, Any] = json.loads((path / "result.json").read_bytes())
    except (OSError, ValueError):
        found = {"status": "running"} if (path / "config.yaml").exists() else {}
    return found


def metrics(path: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv as text, an epoch each."""
    try:
        with open(path / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def config(path: Path) -> dict[str, Any]:
    """Return the resolved config of a run; interpolations and tags in a stranger's file are refused.

    Raises UserError when the file is not plain YAML.
    """
    import yaml

    file = path / "config.yaml"
    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable config: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected keys and values, found {type(found).__name__}")
    return found


def find(paths: list[str]) -> list[Path]:
    """Return the run folders at or below `paths`, oldest name first. Raises UserError for a path that is not there."""
    runs: dict[Path, None] = {}
    for name in paths:
        top = Path(name).expanduser()
        if not top.is_dir():
            raise UserError(f"{name}: no such folder; expected a run, a sweep or a folder of them, such as outputs")
        runs.update(dict.fromkeys(_below(top)))
    return list(runs)


def _below(folder: Path) -> Iterator[Path]:
    if (folder / "config.yaml").is_file():
        yield folder
        return
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))
    for name in names:
        yield from _below(folder / name)


def _csv(rows: list[Any], header: bool = True) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
