"""The `dlrun` command: finds the verb and hands over. Imports nothing heavy, so `dlrun --help` is instant."""

from __future__ import annotations

import importlib
import os
import sys
import time

__all__ = ["main"]

VERBS = {
    "train": "check a setup, train it, test it once; -m sweeps over values",
    "check": "run only the checks that come before training",
    "lr_range": "find a learning rate before training",
    "batch_time": "find the batch size beyond which a sample costs no less time",
    "show": "draw what the network is fed: `dlrun show augment`",
    "explain": "print what a key or group means, what it allows and what sets it",
    "resume": "go on where a killed or interrupted run stopped",
    "ensemble": "let trained models vote, and say what it is worth",
    "predict": "classify images with a run or an ensemble, into a CSV",
    "export": "write a run as one file for other programs, checked against it",
    "compare": "lay runs side by side in one table",
    "report": "draw the pictures and the page of a run or a sweep again",
}
# verbs whose arguments Hydra composes into a config; the others parse their own
COMPOSED = ("train", "check", "lr_range", "batch_time", "show")


def _usage() -> str:
    rows = "\n".join(f"  {verb:<12}{text}" for verb, text in VERBS.items())
    return (
        "usage: dlrun <verb> [flags] [key=value ...]\n\n"
        f"verbs:\n{rows}\n\n"
        "start with:  dlrun train dataset=digits model=cnn\n"
        "`dlrun <verb> --help` shows the config groups and keys of a verb, --hydra-help the flags of Hydra,\n"
        "--debug the traceback behind an error.\n"
        'Completion in bash: eval "$(dlrun -sc install=bash)"'
    )


def _completion(argv: list[str]) -> int:
    """Answer `dlrun -sc install|uninstall|query=bash`; Hydra's shell script calls without the verb."""
    wanted = next((a for a in argv if "=" in a), "")
    if not wanted.startswith("query="):
        return _run("train", argv)
    line = os.environ.get("COMP_LINE", "")
    line = line[: int(os.environ.get("COMP_POINT") or len(line))]
    words = line.split(None, 2)
    if len(words) < 2 or (len(words) == 2 and not line[-1].isspace()):
        print(" ".join(VERBS))
        return 0
    if words[1] not in (*COMPOSED, "explain"):
        return 0
    try:
        if words[1] == "explain":
            return _complete_explain(line)
        from dlrun.config.hydra_quirks import completing

        # Hydra strips the program's name only, so the verb is taken out of the line here
        with completing("dlrun " + (words[2] if len(words) > 2 else "")):
            return _call(words[1], argv)
    except Exception:
        return 1  # an error would be printed into the line that is being typed


def _complete_explain(line: str) -> int:
    """Answer `dlrun explain opt<TAB>` with groups and keys, later words with what `dlrun train` takes."""
    names = line.split()[2:] + [""] * line[-1].isspace()
    if len(names) == 1:
        from dlrun.commands.explain import complete

        print(" ".join(complete(names[0])))
        return 0
    from dlrun.config.hydra_quirks import completing

    with completing(" ".join(["dlrun", *names[1:]])):
        return _call("train", ["-sc", "query=bash"])


def _share_cores() -> None:
    """On a busy machine let waiting threads sleep: torch's spin, and two programs that spin wait for each other.

    Thirty epochs on digits on two cores, other programs coming and going, three rounds in turn: 5, 87 and 189 s with
    torch's default, 13, 12 and 24 s asleep. So where little else runs the default is left. OpenMP asks once, when
    torch is imported.
    """
    if _busy(0.75 * (os.cpu_count() or 1)):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _busy(threads: float) -> bool:
    """Whether more threads than these ran in the last minute, and do now: a training that has ended is no neighbour."""
    if os.getloadavg()[0] <= threads:
        return False
    try:
        return sorted(_running() for _ in range(5))[2] > threads
    except OSError:
        return True  # only Linux tells what runs now


def _running() -> int:
    """Threads on all cores a millisecond from now, without this one. Raises OSError where there is no /proc/stat."""
    time.sleep(0.001)
    with open("/proc/stat") as file:
        return int(file.read().split("procs_running")[1].split()[0]) - 1


def _large_pages() -> None:
    """Let torch ask for large pages, which processors find faster; it looks when it is first asked for memory.

    Epochs of the cnn on 10,000 CIFAR images, two cores, eight processes each in turn: 3,681 images a second without
    and 3,751 with them (median); the bare step of five processes each 3,543 and 3,731.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _call(verb: str, argv: list[str]) -> int:
    code: int = importlib.import_module(f"dlrun.commands.{verb}").main(argv)
    sys.stdout.flush()
    return code


def _run(verb: str, argv: list[str]) -> int:
    _share_cores()
    _large_pages()
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    from dlrun.errors import UserError
    from dlrun.vocabulary import Exit

    try:
        return _call(verb, argv)
    except UserError as error:
        if debug:
            raise
        print(f"dlrun: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        if debug:
            raise
        print("dlrun: interrupted", file=sys.stderr)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe (`dlrun compare | head`) has left: nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def main() -> None:
    """Run the verb named on the command line and exit with its code."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        sys.exit(0 if argv else 2)
    if argv[0] in ("-V", "--version"):
        from dlrun import __version__

        print(f"dlrun {__version__}")
        sys.exit(0)
    if argv[0] in ("-sc", "--shell-completion", "--shell_completion"):
        sys.exit(_completion(argv))
    if argv[0] not in VERBS:
        import difflib

        near = difflib.get_close_matches(argv[0], VERBS, 1)
        hint = f"did you mean `dlrun {near[0]}`?" if near else f"verbs: {' '.join(VERBS)}"
        print(f"dlrun: unknown verb {argv[0]!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    sys.exit(_run(argv[0], argv[1:]))
