"""Processes that start in milliseconds instead of seconds: forked from one that has imported torch and never used it.

They have their own folder, environment, output and session, are children of whoever started them, and take signals,
locks and kills like any other. Only the imports are those of the first; `subprocess` itself proves the imports.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.commands import Outcome

__all__ = ["SUBPROCESS", "Process", "call", "close", "popen"]

PRELOADED = ("torch._dynamo", "optuna", "hydra.utils", "dlrun.checks", "dlrun.training.loop", "dlrun.run.execute")
PRELOADED += ("dlrun.config.compose", "dlrun.config.hydra_files", "dlrun.data.datasets", "dlrun.models.cnn")
SERVER = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from support import warm; warm.run(warm.serve(int(sys.argv[1])))"  # noqa: E501
SUBREAPER = 36  # prctl: orphans below this process become its children

_server: tuple[subprocess.Popen[bytes], socket.socket] | None = None
_forked = False  # whether this process is one of them


class Process:
    """As much of subprocess.Popen as is used of it; its output, if asked for, is read when it has ended."""

    def __init__(self, args: list[str], pid: int, output: list[Any]) -> None:
        self.args, self.pid, self._output = args, pid, output
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code if it has ended."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, or raise TimeoutExpired after some seconds."""
        end = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end and return what it wrote."""
        self.wait(timeout)
        texts = []
        for file in self._output:
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        self._output = []
        out, err = (*texts, "", "")[:2]
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def popen(
    args: list[str], *, cwd: str | Path | None = None, env: dict[str, str] | None = None, pass_fds: Any = (),
    stdin: Any = None, stdout: Any = None, stderr: Any = None, start_new_session: bool = False, text: bool = True,
) -> Any:  # fmt: skip
    """Start `python -m dlrun …` or `python -c CODE …`, with the arguments and answers of subprocess.Popen."""
    if not sys.platform.startswith("linux"):
        given = {"stdin": stdin, "stdout": stdout, "stderr": stderr, "text": text}
        return subprocess.Popen(args, cwd=cwd, env=env, pass_fds=pass_fds, start_new_session=start_new_session, **given)
    named = args[1] == "-m"
    code = f"import runpy; runpy.run_module({args[2]!r}, run_name='__main__', alter_sys=True)" if named else args[2]
    env, cwd = {**(os.environ if env is None else env)}, str(cwd or os.getcwd())
    path = [*([cwd] if named else []), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    output: list[Any] = []
    with open(os.devnull, "r+b") as nothing:
        streams = [nothing.fileno() if stdin == subprocess.DEVNULL else 0 if stdin is None else stdin]
        for number, asked in enumerate((stdout, stderr), 1):
            if asked == subprocess.PIPE:
                output.append(tempfile.TemporaryFile())  # noqa: SIM115
                streams.append(output[-1].fileno())
            else:
                streams.append(nothing.fileno() if asked == subprocess.DEVNULL else asked or number)
        request = {
            "cwd": cwd, "env": env, "path": path, "argv": ["-c", *args[3:]],
            "session": start_new_session, "code": code, "numbers": [0, 1, 2, *pass_fds],
        }  # fmt: skip
        fds = [*streams, *pass_fds]
        if _forked:
            pid = os.fork()
            if pid == 0:
                run(_become(request, fds))
        else:
            pid = _ask(request, fds)
    return Process(args, pid, output)


def call(folder: Path, *words: str, code: str | None = None, **env: str) -> Outcome:
    """Run `python -m dlrun <words>`, or this code with these words, to its end."""
    start = [sys.executable, *(("-m", "dlrun") if code is None else ("-c", code)), *words]
    env = {**{k: v for k, v in os.environ.items() if k != "DLRUN_CONF"}, **env}
    process = popen(start, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


# what the pool of workers takes from the module
SUBPROCESS = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)


def _ask(request: dict[str, Any], fds: list[int]) -> int:
    """Let the server fork; the new process becomes a child of this one, which reaps it."""
    global _server
    if _server is None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-c", SERVER, str(theirs.fileno()), json.dumps(sys.path)]
        _server = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL), ours
        theirs.close()
    adopting = ctypes.CDLL(None).prctl
    adopting(SUBREAPER, 1)
    try:
        socket.send_fds(_server[1], [json.dumps(request).encode()], fds)
        return int(_server[1].recv(100))
    finally:
        adopting(SUBREAPER, 0)


def close() -> None:
    """End the server."""
    global _server
    if _server is not None:
        _server[1].close()
        _server[0].wait()
        _server = None


def serve(number: int) -> str:
    """Fork at every request; returns in each new process, with the code that it runs."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is never collected stays shared
    asked = socket.socket(fileno=number)
    while True:
        data, fds, _, _ = socket.recv_fds(asked, 1 << 20, 32)
        if not data:
            os._exit(0)
        told, telling = os.pipe()
        between = os.fork()  # it ends at once, so that whoever asked becomes the parent
        if between == 0:
            own = os.getpid()
            pid = os.fork()
            if pid:
                os.write(telling, str(pid).encode())
                os._exit(0)
            while os.getppid() == own:
                time.sleep(0.001)
            return _become(json.loads(data), fds)
        os.waitpid(between, 0)
        asked.send(os.read(told, 100))
        for fd in (told, telling, *fds):
            os.close(fd)


def run(code: str) -> None:
    """Run the code of a new process to its end, which leaves out the second that torch takes to be torn down."""
    ended = 0
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as ending:
        ended = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        ended = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that write
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)


def _imported() -> None:
    """Let a copy of the package on the path be imported anew; workers of the package itself are forked as well."""
    import dlrun

    if next(p for p in sys.path if Path(p, "dlrun", "__init__.py").is_file()) == str(
        Path(dlrun.__file__).parent.parent
    ):
        from dlrun.search.launchers import pool

        pool.subprocess = SUBPROCESS  # type: ignore[assignment]
        return
    for name in [name for name in sys.modules if name.split(".")[0] in ("dlrun", "support")]:
        del sys.modules[name]


def _become(request: dict[str, Any], fds: list[int]) -> str:
    """Turn a new process into what was asked for; returns its code."""
    global _forked
    _forked = True
    if request["session"]:
        os.setsid()
    numbers: list[int] = request["numbers"]
    for fd, number in zip([fcntl.fcntl(fd, fcntl.F_DUPFD, 500) for fd in fds], numbers, strict=True):
        os.dup2(fd, number)
    edges = [-1, *sorted(numbers), 4096]
    for low, high in itertools.pairwise(edges):
        if low + 1 < high:  # os.closerange(0, 0) closes all
            os.closerange(low + 1, high)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:], sys.argv = request["path"], request["argv"]
    sys.stdin = open(0)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    _imported()
    return str(request["code"])
