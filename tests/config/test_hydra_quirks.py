"""Whatever is asked of Hydra, the process is afterwards as it was before."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import hydra as inside
from hydra.core import utils
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.version import VersionBase
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from packaging.version import Version

from dlrun.config import hydra_quirks
from dlrun.config.compose import compose, composer
from dlrun.errors import UserError
from support.commands import Outcome
from support.stored import write

KEPT = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)


def state() -> dict[str, Any]:
    """What another program in this process may have set, and would miss."""
    singletons = {kind: Singleton._instances.get(kind) for kind in KEPT}
    root = logging.getLogger()
    return {
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "functions": (inside.configure_log, utils.configure_log, inside.Hydra.create_main_hydra2),
        "singletons": singletons,
        "inside": {kind: copy.deepcopy(vars(one)) for kind, one in singletons.items() if one is not None},
        "resolvers": dict(BaseContainer._resolvers),
        "plugins": list(Plugins.instance().discover(SearchPathPlugin)),
        "logger": (root.level, list(root.handlers)),
    }


@pytest.fixture
def before(here: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The state of a process in which another program uses Hydra."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("COMP_LINE", "dlrun train model=resnet1")
    monkeypatch.setattr(GlobalHydra.instance(), "hydra", "theirs")
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": {"mode": "theirs"}}))
    monkeypatch.setattr(JobRuntime.instance(), "conf", OmegaConf.create({"name": "theirs"}))
    monkeypatch.setattr(VersionBase.instance(), "version_base", Version("1.2"))
    monkeypatch.setattr(BaseContainer, "_resolvers", {**BaseContainer._resolvers, "now": lambda *_: "theirs"})
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "set")  # for torch, which is imported later: it stays
    write(here / "conf/optimizer/mine.yaml", "_target_: torch.optim.Adam\nlr: 0.5\n")
    return state()


def same(before: dict[str, Any]) -> None:
    after = state()
    assert [name for name in before if before[name] != after[name]] == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("train --help", 0),
        ("train --help model=resnt18", 2),
        ("train --hydra-help", 0),
        ("train --cfg job", 0),
        ("train --cfg all --resolve --config-dir more", 0),
        ("train --cfg job optimizer.lrr=1", 2),
        ("train --cfg job --package nope", 2),
        ("train --info", 0),
        ("train --info searchpath", 0),
        ("train --info --cfg job", 2),
        ("train optimizer.lrr=1", 2),
        ("train --config-name nope", 2),
        ("train -m seed=1,x", 2),
        ("-sc install=bash", 0),
        ("-sc install=tcsh", 2),
        ("-sc query=bash", 0),
    ],
)
def test_a_command_leaves_the_process_as_it_was(
    before: dict[str, Any], here: Path, dlrun: Callable[..., Outcome], words: str, code: int
) -> None:
    (here / "more").mkdir()
    outcome = dlrun(*words.split())
    assert outcome.code == code, outcome.err
    assert sys.argv == ["dlrun", *words.split()]
    same(before)


@pytest.mark.parametrize("word", ["optimizer=mine", "optimizer=nowhere", "optimizer.lr=${now:x}", "seed=${hydra:job}"])
def test_composing_leaves_the_process_as_it_was(before: dict[str, Any], word: str) -> None:
    with contextlib.suppress(UserError):
        compose(word)
    same(before)


def test_composing_leaves_nothing_of_its_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = {kind: one for kind, one in Singleton._instances.items() if kind not in KEPT}
    monkeypatch.setattr(Singleton, "_instances", without)
    compose("seed=2")
    assert not set(KEPT) & set(Singleton._instances)


def test_an_open_composer_leaves_the_hydra_of_the_process_alone(before: dict[str, Any]) -> None:
    with composer({}) as made:
        made.config(made.parse(["optimizer=mine"]))
        assert GlobalHydra.instance() is before["singletons"][GlobalHydra]
        assert Plugins.instance().discover(SearchPathPlugin) == before["plugins"]
    same(before)


def test_the_completion_script_is_for_dlrun_however_it_was_started(
    here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dlrun("-sc", "install=bash").out.rstrip().endswith("hydra_bash_completion dlrun")


def test_composers_do_not_see_each_others_folders(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        write(here / folder / "optimizer" / f"mine_{folder}.yaml", "_target_: torch.optim.Adam\nlr: 0.5\n")

    def known(made: Any) -> set[str]:
        found = set()
        for name in ("mine_a", "mine_b"):
            with contextlib.suppress(UserError):
                made.config(made.parse([f"optimizer={name}"]))
                found.add(name)
        return found

    with composer({"--config-dir": "a"}) as first:
        monkeypatch.setenv("DLRUN_CONF", str(here / "b"))
        with composer({}) as second:
            assert known(first) == {"mine_a"}
            assert known(second) == {"mine_b"}
        monkeypatch.delenv("DLRUN_CONF")
        with composer({}) as third:
            assert known(third) == set()
        assert known(first) == {"mine_a"}
    with composer({"--config-dir": "b"}) as fourth:
        assert known(fourth) == {"mine_b"}


def test_what_reaches_into_the_process_is_in_one_module() -> None:
    root = Path(hydra_quirks.__file__).parents[1]
    reaching = re.compile(
        r"hydra\._internal|Singleton|GlobalHydra|Plugins\.|sys\.argv\s*=|HYDRA_FULL|Could not override"
    )
    found = {str(file.relative_to(root)) for file in root.rglob("*.py") if reaching.search(file.read_text())}
    assert found == {"config/hydra_quirks.py", "config/hydra_files.py"}
