"""A PostgreSQL server of a test's own, with a password, on a free port of this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["server"]


@contextmanager
def server(password: str) -> Iterator[str]:
    """Start a server whose user `me` has this password; yields HOST:PORT/DATABASE. Skips the test if none is there."""
    if not (shutil.which("initdb") and shutil.which("postgres")):
        pytest.skip("PostgreSQL is not installed: no initdb and postgres on PATH")
    pytest.importorskip("psycopg", reason="the extra is absent: pip install 'dlrun[postgresql]'")
    other: dict[str, Any] = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    with tempfile.TemporaryDirectory() as place:
        folder, words = Path(place), Path(place) / "password"
        words.write_text(password + "\n")
        for path in (folder, words) if other else ():
            os.chown(path, other["user"], other["group"])
        made = ("--auth=scram-sha-256", "--username=me", f"--pwfile={words}", "--no-locale", "--encoding=UTF8")
        subprocess.run(
            ["initdb", f"--pgdata={folder}/data", *made, "--no-sync"],
            check=True,
            cwd=place,
            capture_output=True,
            **other,
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ("-p", str(port), "-h", "127.0.0.1", "-k", place, "-F")
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(["postgres", "-D", f"{folder}/data", *options], cwd=place, stderr=log, **other)
        try:
            until = time.monotonic() + 30
            while "ready to accept" not in (folder / "log").read_text():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until, (folder / "log").read_text()
                time.sleep(0.05)
            yield f"127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(30)
