"""Commands as typed on the command line, in this process or in one without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TINY = (
    "trainer.epochs=1",
    "dataset.limit=100",
    "check=none",
    "model.width=4",
    "trainer.threads=1",
    "trainer.report=false",
)


@dataclass
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


APART = """
import contextlib, io, json, sys
from dlrun import cli
found = []
for words in json.load(sys.stdin):
    sys.argv = ["dlrun", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ending:
            code = ending.code or 0
        except BaseException as error:
            code = repr(error)
    found.append([code, out.getvalue(), err.getvalue(), "torch" in sys.modules])
print(json.dumps(found))
"""


def without_torch(commands: list[tuple[str, ...]], folder: Path, **env: str) -> list[Outcome]:
    """Run commands one after the other in a new process; fails if one of them imported torch."""
    clean = {k: v for k, v in os.environ.items() if k != "DLRUN_CONF"}
    done = subprocess.run(
        [sys.executable, "-c", APART],
        input=json.dumps(commands),
        cwd=folder,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    outcomes = []
    for words, (code, out, err, torch) in zip(commands, json.loads(done.stdout), strict=True):
        assert not torch, f"dlrun {' '.join(words)} imported torch"
        outcomes.append(Outcome(code, out, err))
    return outcomes
