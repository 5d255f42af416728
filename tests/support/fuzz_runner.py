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
State = dict[str, tuple[int, int, int]]  # by path: inode, size and time

SECONDS = 20  # of processor time, after which a command hangs
WAITING = 90  # seconds without an answer, on a busy machine: it waits for a pipe or a lock
OFTEN = 10  # cases between two looks at everything that no command may change
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
    """Yield cases: files equally often but for those that only slow commands read, their commands by weights."""
    rng, files = random.Random(seed), sorted(table)
    often = [min(1.0, sum(weight for *_, weight in table[file])) for file in files]
    for number, file in enumerate(rng.choices(files, often, k=count)):
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
    # what only waits: for the disk, and to find out how busy the machine is
    os.fsync = lambda _: None
    os.getloadavg = lambda: (0.0, 0.0, 0.0)
    signal.signal(signal.SIGVTALRM, _hang)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    clean = {top.name: _state(top) for top in place.iterdir()}
    for number, case in enumerate(found, 1):
        line = _run(case, donors, place, clean)
        if number % OFTEN == 0 or number == len(found):
            line = line or _strays(place, clean, f"{case}, or one of the {OFTEN} before it")
        os.write(answers, line.encode("utf-8", "backslashreplace")[:4000].replace(b"\0", b"?") + b"\0")


def _hang(*_: object) -> None:
    raise Hang


def _run(case: Case, donors: Path, place: Path, clean: dict[str, State]) -> str:
    """What is wrong with the way that a case ends, or ""; `clean` is what the folders of the place hold before."""
    rng = random.Random(case.seed)
    file = place / next(donors.glob(case.file)).relative_to(donors)
    try:
        other = mutated(case.file, (donors / file.relative_to(place)).read_bytes(), rng)
    except Exception as error:
        return f"{case}: no other file: {error!r}"
    _replace(file, other, special(rng), place)
    touched = {case.file.split("/")[0], *case.writes}
    told = _outcome(case)
    for top in sorted(touched):
        clean[top] = _restored(top, donors, place, clean.get(top, {}))
    return f"{case}: {told}" if told else ""


def _strays(place: Path, clean: dict[str, State], who: str) -> str:
    """What differs in the place although every folder that a command may change was put back, or ""."""
    for top in sorted({*clean, *os.listdir(place)}):
        if (now := _state(place / top)) != clean.get(top):
            names = [name for name in {*now, *clean.get(top, {})} if now.get(name) != clean.get(top, {}).get(name)]
            return f"{who}: changed {sorted(names)[:3]}"
    return ""


def _outcome(case: Case) -> str:
    """Run the command; what is wrong with its exit code and output, or ""."""
    out, err = io.StringIO(), io.StringIO()
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            code = _command(case.words, out, err)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except Hang:
        return f"takes more than {SECONDS} s"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "/dlrun/" in f.filename] or frames
        where = f"{'/'.join(Path(own[-1].filename).parts[-2:])}:{own[-1].lineno} {own[-1].name}"
        return f"{type(error).__name__}: {str(error)[:120]} at {where}"
    if INTERNAL in (said := out.getvalue() + err.getvalue()):
        return f"internal error: {said[-300:]}"
    return "" if code in FINE else f"exit {code}"


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


def _restored(top: str, donors: Path, place: Path, before: State) -> State:
    """Put back what differs in a folder of the place; return what it holds then."""
    for name, now in _state(place / top).items():
        if now != before.get(name) and os.path.lexists(name):
            _remove(Path(name))
    for name in [name for name in before if not os.path.lexists(name)]:
        source = donors / Path(name).relative_to(place)
        if source.is_dir():
            Path(name).mkdir()
        else:
            shutil.copy2(source, name)
    return _state(place / top)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _state(path: Path) -> State:
    """What lies at and below a path: inode, size and time of files; folders are there, whatever they hold."""
    found: State = {}
    for top, folders, names in os.walk(path):
        found[top] = (0, 0, 0)
        for name in [*(name for name in folders if os.path.islink(f"{top}/{name}")), *names]:
            about = os.lstat(f"{top}/{name}")
            found[f"{top}/{name}"] = (about.st_ino, about.st_size, about.st_mtime_ns)
    if not found and os.path.lexists(path):
        about = os.lstat(path)
        found[str(path)] = (about.st_ino, about.st_size, about.st_mtime_ns)
    return found
