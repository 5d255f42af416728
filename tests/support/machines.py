"""Other machines: processes with a host name, a network and process numbers of their own."""

from __future__ import annotations

import shutil
import subprocess

import pytest

__all__ = ["on", "required"]


def on(host: str) -> list[str]:
    """The words before a command that let it run on another machine, which ends with the command."""
    own = ["unshare", "--uts", "--net", "--pid", "--fork", "--kill-child"]
    return [*own, "sh", "-c", f'hostname {host}; exec "$@"', "sh"]


def required() -> None:
    """Skip where this user may not make namespaces."""
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    if subprocess.run([*on("elsewhere"), "true"], capture_output=True, timeout=20).returncode:
        pytest.skip("this user may not make namespaces")
