"""Commands over folders made wrong, many in one process that a fork protects: for tests/hostile/test_fuzz.py."""

from __future__ import annotations

import contextlib
import io
import os
import random
import select
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from support.fuzzing import mutated, special

__all__ = ["Case", "Choices", "cases", "faults"]

# words of a command, the folders that it may change, and how often it is chosen
Choices = list[tuple[tuple[str, ...], tuple[str, ...], float]]

SECONDS = 20  # of processor time, after which a command hangs
WAITING = 90  # seconds without an answer, on a busy machine: it waits for a pipe or a lock
INTERNAL = "the traceback is in"
FINE = (0, 1, 2, 3, 4, 5, 130)


@dataclass(frozen=True)
class Case:
    """A file of the donors, the words of the command that reads it, and the folders that the command may change."""

    seed: int
    file: str
    words: tuple[str, ...]
    writes: tuple[str, ...]

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.file}: dlrun {' '.join(self.words)}"


class Hang(BaseException):
    """A command that takes more than SECONDS."""


def cases(count: int, table: Mapping[str, Choices], seed: int) -> Iterator[Case]:
    """Yield cases: each file equally often, its commands by their weights."""
    rng, files = random.Random(seed), sorted(table)
    for number in range(count):
        file = files[number % len(files)]
        choices = table[file]
        words, writes, _ = rng.choices(choices, [weight for *_, weight in choices])[0]
        yield Case(seed * 1_000_000 + number, file, words, writes)


def faults(found: list[Case], donors: Path, place: Path) -> list[str]:
    """Run the cases in `place`, copies of the donors; return a line for each that ends otherwise than it may."""
    told, left = [], found
    while left:
        done, lines, why = _batch(left, donors, place)
        told += lines
        if done < len(left):
            told.append(f"{left[done]}: {why}")
            done += 1
        left = left[done:]
    return told


def _batch(found: list[Case], donors: Path, place: Path) -> tuple[int, list[str], str]:
    """Run cases in a child until one kills it: how many were done, their faults, and how the child ended."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(donors, place)
    theirs, ours = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of torch, which the child does not use
        child = os.fork()
    if not child:
        os.close(theirs)
        with contextlib.suppress(BaseException):
            _child(found, donors, place, ours)
        os._exit(0)
    os.close(ours)
    done, lines, part, why = 0, [], b"", "ended"
    while True:
        ready, _, _ = select.select([theirs], [], [], WAITING)
        data = os.read(theirs, 1 << 16) if ready else b""
        if not ready:
            os.kill(child, signal.SIGKILL)
            why = f"waits for more than {WAITING} s"
        if not data:
            break
        *whole, part = (part + data).split(b"\0")
        done += len(whole)
        lines += [line.decode() for line in whole if line]
    os.close(theirs)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and why == "ended":
        why = f"signal {os.WTERMSIG(status)}"
    return done, lines, why


def _child(found: list[Case], donors: Path, place: Path, answers: int) -> None:
    import resource

    # a bomb is an error here, not the end of the machine
    now = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    if now:
        resource.setrlimit(resource.RLIMIT_AS, (now + (6 << 30), now + (6 << 30)))
    os.chdir(place)
    signal.signal(signal.SIGVTALRM, _hang)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    before = _state(place / "home")
    for case in found:
        line = _run(case, donors, place)
        if _state(place / "home") != before:
            line = line or f"{case}: changed another file"
        os.write(answers, line.encode("utf-8", "backslashreplace")[:4000].replace(b"\0", b"?") + b"\0")


def _hang(*_: object) -> None:
    raise Hang


def _run(case: Case, donors: Path, place: Path) -> str:
    """What is wrong with the way that a case ends, or ""."""
    rng = random.Random(case.seed)
    file = place / case.file
    try:
        other = mutated(case.file, (donors / case.file).read_bytes(), rng)
    except Exception as error:
        return f"{case}: no other file: {error!r}"
    _replace(file, other, special(rng), place)
    untouched = [p for p in sorted(place.iterdir()) if p.name not in (case.file.split("/")[0], *case.writes)]
    before = [_state(p) for p in untouched]
    out, err = io.StringIO(), io.StringIO()
    told = ""
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            code = _command(case.words, out, err)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if INTERNAL in out.getvalue() + err.getvalue():
            told = f"internal error: {(out.getvalue() + err.getvalue())[-300:]}"
        elif code not in FINE:
            told = f"exit {code}"
    except Hang:
        told = f"takes more than {SECONDS} s"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/dlrun/" in f.filename] or frames
        where = f"{'/'.join(Path(own[-1].filename).parts[-2:])}:{own[-1].lineno} {own[-1].name}"
        told = f"{type(error).__name__}: {str(error)[:120]} at {where}"
    if not told and before != [_state(p) for p in untouched]:
        told = "changed another folder"
    for name in {case.file.split("/")[0], *case.writes}:
        if case.writes or name != case.file.split("/")[0]:
            _remove(place / name)
            if (donors / name).is_dir():
                shutil.copytree(donors / name, place / name)
        else:
            _remove(file)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes((donors / case.file).read_bytes())
    return f"{case}: {told}" if told else ""


def _command(words: tuple[str, ...], out: io.StringIO, err: io.StringIO) -> int:
    from dlrun import cli

    sys.argv = ["dlrun", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ending:
            return int(ending.code or 0)
    return 0


def _replace(file: Path, data: bytes, kind: str | None, place: Path) -> None:
    """Put other bytes, or something that is no file, in a file's place."""
    if kind is None:
        file.unlink()  # it may be a link of a checkpoint
        file.write_bytes(data)
        return
    file.unlink()
    makes: dict[str, Callable[[], object]] = {
        "link": lambda: file.symlink_to(place / "home/bashrc"),
        "device": lambda: file.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
        "gone": lambda: None,
        "huge": lambda: (file.touch(), os.truncate(file, 1 << 41)),
    }
    makes[kind]()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _state(path: Path) -> list[tuple[str, int, int, int]]:
    """Names, sizes and times of everything at and below a path."""
    found = []
    for top, folders, names in os.walk(path):
        for name in sorted([*folders, *names]):
            about = os.lstat(f"{top}/{name}")
            found.append((f"{top}/{name}", about.st_ino, about.st_size, about.st_mtime_ns))
    return found
