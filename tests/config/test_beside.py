"""Modules of the current folder: those of trusted packages and what these import, from source, and nothing else."""

from __future__ import annotations

import importlib
import os
import py_compile
import sys
from pathlib import Path

import pytest

from dlrun.config.targets import instantiate
from support.stored import write


def test_installed_modules_win_and_others_are_not_found(here: Path) -> None:
    write(here / "json.py", "raise SystemExit('shadowed')\n")
    write(here / "optional_extra.py", "raise SystemExit('imported')\n")
    write(here / "hydra_plugins/evil.py", "raise SystemExit('plugged in')\n")
    write(here / "mine_b.py", "from mine_c import value\nclass Net:\n    def late(self):\n        import mine_d\n")
    write(here / "mine_c.py", "import json\nvalue = 3\n")
    write(here / "mine_d.py", "")
    made = instantiate({"_target_": "mine_b.Net"}, ["mine_b"], "model")
    assert str(here) not in sys.path
    made.late()
    assert {"mine_c", "mine_d"} <= sys.modules.keys()
    for name in ("optional_extra", "hydra_plugins.evil"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    assert importlib.import_module("json").__file__ != str(here / "json.py")


def test_compiled_files_are_not_used(here: Path) -> None:
    for name, package in (("mine_e", False), ("mine_f", True)):
        file = write(here / (f"{name}/net.py" if package else f"{name}.py"), "class Net: mark = 'evil'\n")
        py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        write(file, "class Net: mark = 'read'\n")
        if package:
            write(here / name / "__init__.py", "")
        target = f"{name}.net.Net" if package else f"{name}.Net"
        assert instantiate({"_target_": target}, [name], "model").mark == "read"
        cached = os.listdir(file.parent / "__pycache__")
        assert len(cached) == 1  # and none is written
    write(here / "mine_g.py", "class Net: pass\n")
    py_compile.compile("mine_g.py", cfile="mine_g.pyc")
    (here / "mine_g.py").unlink()
    with pytest.raises(Exception, match=r"mine_g"):
        instantiate({"_target_": "mine_g.Net"}, ["mine_g"], "model")


def test_only_the_current_folder_counts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "one/mine_h.py", "class Net: place = 'one'\n")
    write(here / "two/mine_h.py", "class Net: place = 'two'\n")
    for place in ("one", "two"):
        monkeypatch.chdir(here / place)
        assert instantiate({"_target_": "mine_h.Net"}, ["mine_h"], "model").place == place
        del sys.modules["mine_h"]
