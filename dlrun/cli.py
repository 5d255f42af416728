"""The `dlrun` command: finds the verb and runs it. Imports nothing heavy, so that `dlrun --help` is instant."""

from __future__ import annotations

import importlib
import os
import sys
import time

TYPE_CHECKING = False  # that of typing, whose import takes time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

__all__ = ["main"]

VERBS = {
    "train": "check a setup, train it, and test it once; -m runs a sweep",
    "ladder": "add capacity until validation stops improving, then regularise",
    "study": "ask what a hyperparameter does, as a sweep, and whether that agrees with the essay",
    "check": "run the checks that precede training, and nothing else",
    "lr_range": "suggest a learning rate to start with",
    "batch_time": "measure the time per step by batch size, and suggest a batch size",
    "show": "draw training images: augmented, or a sheet per class: `dlrun show augment`, `dlrun show data`",
    "explain": "print what a key or group means, which values it allows and what sets it",
    "init": "write a commented conf/ with a preset, a model and a dataset to start from",
    "resume": "continue a killed or interrupted run or sweep",
    "ensemble": "combine trained models by voting, and measure the gain",
    "predict": "classify images with a run or an ensemble; writes a CSV",
    "evaluate": "score a run or an ensemble on labelled images: by class, errors, calibration, a page",
    "suspects": "list images whose labels may be wrong, from predictions of runs that did not train on them",
    "embed": "write the features of images: what the last layer of a run gets",
    "explain_image": "draw which parts of an image the class of a run depends on",
    "prune": "set the smallest weights of a run to 0: accuracy by sparsity, each stored as a run",
    "export": "export a run to one file (ONNX or torch.export), verified against the run",
    "compare": "list runs, sweeps and ensembles in one table",
    "board": "write one page of all runs: a table, their curves, sweeps; --watch keeps it up to date",
    "list": "list runs, sweeps and ensembles: status, score, age and size",
    "diff": "show what differs between two runs: config, code, versions, scores",
    "rm": "delete runs, sweeps and ensembles; asks first",
    "trust": "show what the configs of a folder name of other code, and allow packages there until their code changes",
    "report": "redraw the page of a run, a sweep or an ensemble; overlay several runs",
}
# verbs whose arguments Hydra composes into a config; the others parse their arguments themselves
COMPOSED = ("train", "ladder", "study", "check", "lr_range", "batch_time", "show")
# verbs that begin by loading torch, which takes seconds
HEAVY = (*COMPOSED, "resume", "predict", "evaluate", "embed", "explain_image", "export", "prune")


def _usage() -> str:
    rows = "\n".join(f"  {verb:<14}{text}" for verb, text in VERBS.items())
    return (
        "usage: dlrun <verb> [flags] [key=value ...]\n\n"
        f"verbs:\n{rows}\n\n"
        "start with:  dlrun train dataset=digits model=cnn\n"
        "`dlrun <verb> --help` lists the arguments, or the config groups and keys, of a verb;\n"
        "--hydra-help lists the flags of Hydra, --debug shows the traceback of an error.\n"
        'Completion in bash: eval "$(dlrun -sc install=bash)"'
    )


def _completion(argv: list[str]) -> int:
    """Answer `dlrun -sc install|uninstall|query=bash`; the shell script of Hydra calls it without a verb."""
    from dlrun.vocabulary import Exit

    wanted = next((a for a in argv if "=" in a), "")
    if not wanted.startswith("query="):
        return _run("train", argv)
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT") or len(line))]
    words = line.split(None, 2)
    if len(words) < 2 or (len(words) == 2 and not line[-1].isspace()):
        print(" ".join(VERBS))
        return Exit.FINE
    if words[1] not in (*COMPOSED, "explain"):
        return Exit.FINE
    try:
        if words[1] == "explain":
            return _complete_explain(line)
        if words[1] == "check":
            from dlrun.commands.check import complete

            if (names := complete(line)) is not None:
                print(" ".join(names))
                return Exit.FINE
        from dlrun.config.hydra_quirks import completing

        # Hydra removes the name of the program only, so the verb is removed here
        with completing("dlrun " + (words[2] if len(words) > 2 else "")):
            return _call(words[1], argv)
    except Exception:
        return Exit.FAILED  # an error message would be printed into the line that is being typed


def _complete_explain(line: str) -> int:
    """Complete the first argument of `dlrun explain` to a group or key, the others as those of `dlrun train`."""
    from dlrun.vocabulary import Exit

    names = line.split()[2:] + [""] * line[-1].isspace()
    if len(names) == 1:
        from dlrun.commands.explain import complete

        print(" ".join(complete(names[0])))
        return Exit.FINE
    from dlrun.config.hydra_quirks import completing

    with completing(" ".join(["dlrun", *names[1:]])):
        return _call("train", ["-sc", "query=bash"])


def _large_pages() -> None:
    """Let torch allocate large pages, which have cheaper address lookups; it reads the variable once.

    Epochs of the cnn on 10,000 CIFAR images on two cores, medians of eight processes each, in turn: 3,681 images per
    second without large pages, 3,751 with them; the bare training step, five processes each: 3,543 and 3,731.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _collect_rarely() -> None:
    """Look for unreachable objects once in 700,000 new ones, not in 700, and not at the end of the process.

    Importing torch makes millions of objects that all stay. Processor time of importing what a training needs of it,
    and of ending: 4.9 s before, 3.1 s with 50,000; medians of three processes each, in turn. 300,000 take another 3 %
    off the time to the first step, 700,000 another 7 % (2.46 and 2.30 s, medians of seven in turn); training itself
    looks more often (memory.py).
    """
    import atexit
    import gc

    gc.set_threshold(700_000, 20, 20)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def _call(verb: str, argv: list[str]) -> int:
    code: int = importlib.import_module(f"dlrun.commands.{verb}").main(argv)
    return code


def _run(verb: str, argv: list[str]) -> int:
    rank, trains = _rank(), verb in ("train", "resume") and not {"-m", "--multirun"} & set(argv)
    if rank and not trains:
        return 0  # the first of several processes does it
    _large_pages()
    _collect_rarely()
    if verb in HEAVY:
        from dlrun import spinning
        from dlrun.streams import waiting

        spinning.watch()
        sweeps = verb in ("ladder", "study") or {"-m", "--multirun"} & set(argv)
        waiting("reading the config …" if sweeps else "loading torch …")
    from dlrun.streams import legible_streams

    with legible_streams():
        if rank is None or not trains:
            return _call(verb, argv)
        from dlrun.run import together

        return together.other(argv) if rank else together.leading(lambda: _call(verb, argv))


def _rank() -> int | None:
    """The number of this process among several that torchrun or Slurm started; None if there is one."""
    if not {"RANK", "SLURM_PROCID"} & os.environ.keys():
        return None
    from dlrun.config.ranks import own

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a process that ends is reported in one line
    place = own()
    return None if place is None else place.rank


def _in_one_line(work: Callable[[], int], debug: bool) -> int:
    """Return the exit code of some work; an error of the user or of the machine is one line without a traceback."""
    try:
        try:
            return work()
        finally:
            print(end="", flush=True)  # also after the help of argparse, which exits
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        return _explained(error)


def _explained(error: BaseException) -> int:
    """Print what went wrong and return the exit code; raises the error again if it is a bug."""
    from dlrun.errors import UserError
    from dlrun.vocabulary import Exit

    if isinstance(error, UserError):
        return _complain(str(error), error.code)
    if isinstance(error, KeyboardInterrupt):
        return _complain("interrupted", Exit.INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        _discard(sys.stdout)  # the reader of a pipe (`dlrun compare | head`) has exited
        return Exit.FINE
    if isinstance(error, OSError) and error.strerror:
        _discard(sys.stdout)
        where, code = (error.filename, Exit.USAGE) if error.filename else ("cannot write", Exit.FAILED)
        return _complain(f"{where}: {error.strerror}; --debug shows the traceback", code)
    raise error


def _complain(text: str, code: int) -> int:
    """Print a line to stderr, if it can be written, and return the exit code."""
    from dlrun.errors import legible

    try:
        print(f"dlrun: {legible(text)}", file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)
    return code


def _discard(stream: TextIO) -> None:
    """Write to nowhere from now on; Python would report that it cannot flush the stream."""
    import contextlib

    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> None:
    """Make every stream writable: one that the shell has closed goes nowhere, and no character is an error.

    A closed one would be replaced by the next file that is opened, such as a checkpoint, and get what libraries print.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(handle, True)
        os.close(handle)
        sys.stdin, sys.stdout = sys.stdin or open(0), sys.stdout or open(1, "w")  # noqa: SIM115
        sys.stderr = sys.stderr or open(2, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # ASCII, or a name that is not UTF-8
            stream.reconfigure(errors="backslashreplace")


def _interrupt_once() -> None:
    """Let a second Ctrl-C within a second pass: it would interrupt what the first one ends, at any place."""
    import signal

    last = -1.0

    def interrupt(*_: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > 1.0 or before < 0:
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in the background of a script
        signal.signal(signal.SIGINT, interrupt)


def main() -> None:
    """Run the verb named on the command line and exit with its code."""
    _interrupt_once()
    _open_streams()
    debug = "--debug" in sys.argv[1:]
    argv = [word for word in sys.argv[1:] if word != "--debug"]
    sys.exit(_in_one_line(lambda: _answer(argv), debug) or None)


def _answer(argv: list[str]) -> int:
    """Run the verb of a command; returns its exit code."""
    if argv and argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0  # without an import: it is instant
    from dlrun.vocabulary import Exit

    if not argv:
        print(_usage())
        return Exit.USAGE
    if argv[0] in ("-V", "--version"):
        from dlrun import __version__

        print(f"dlrun {__version__}")
        return Exit.FINE
    if argv[0] in ("-sc", "--shell-completion", "--shell_completion"):
        return _completion(argv)
    argv = [argv[0].replace("-", "_"), *argv[1:]]
    if argv[0] not in VERBS:
        from dlrun.config.meant import likely_verb

        return _complain(f"unknown verb {argv[0]!r}; {likely_verb(argv[0], VERBS)}", Exit.USAGE)
    return _run(argv[0], argv[1:])
