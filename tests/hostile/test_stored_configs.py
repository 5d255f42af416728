"""A run of somebody else: nothing in its config runs or is imported, whichever command reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

import dlrun as package
from dlrun.errors import UserError
from support.commands import Outcome
from support.hostile import EVIL, MODULE, SECTIONS, change, some, watched
from support.stored import write

OWN = {"_target_": f"{MODULE}.Net"}
MLP = {"_target_": "dlrun.models.mlp.MLP", "depth": 2, "activation": "relu", "norm": "batch"}
DISTILL = {"_target_": "dlrun.objectives.Distill", "teacher": "evil"}
# what replaces sections of config.yaml
PAYLOADS: dict[str, dict[str, Any]] = {
    **{f"{section} starts a program": {section: EVIL} for section in SECTIONS},
    **{f"{section} of a trusted package": {section: OWN, "trust": [MODULE]} for section in SECTIONS},
    "partial": {"scheduler": {**EVIL, "_partial_": True}},
    "nested": {"model": {**MLP, "width": EVIL}},
    "nested in a list": {"model": {**MLP, "width": [[EVIL]]}},
    "alias": {"model": {"_target_": "torch.nn.modules.os.system", "command": "touch PWNED"}},
    "helper of ours": {"model": {"_target_": "dlrun.models.weights_file.pickle.loads", "data": "x"}},
    "trust of keys": {"model": OWN, "trust": {MODULE: 1}},
    "trust of text": {"model": OWN, "trust": MODULE},
    "trust below hydra": {"model": OWN, "hydra": {"trust": [MODULE], "searchpath": [f"pkg://{MODULE}"]}},
    "teacher with packages": {"objective": {**DISTILL, "packages": ["posix", MODULE]}},
    "teacher with data": {"objective": {**DISTILL, "data": OWN, "packages": []}},
    "teacher on a device": {"objective": {**DISTILL, "device": EVIL}},
    "teacher as penalty": {"regularizer": {**DISTILL, "packages": ["posix"], "data": "x", "device": "cpu"}},
    "interpolation": {"model": "${oc.decode:'{_target_: " + MODULE + ".Net}'}"},
    "a config of hydra": {"hydra": {"callbacks": {"x": {**EVIL}}, "launcher": {"setup": ["touch PWNED"]}}},
}
# commands that read a run, of {run}; the first two build most of it
ROUTES = [
    "resume {run}",
    "predict {run} images.npy --out p.csv",
    "evaluate {run} images.npy",
    "evaluate {run}",
    "embed {run} images.npy --out e.npz",
    "explain_image {run} images.npy --out x.png",
    "export {run} --to torch_export --out m.pt2",
    "ensemble {run} finished --out votes",
    "ensemble --members checkpoints {run}",
    "resume {run} trainer.epochs=7",
    "train --from {run}/config.yaml check=none trainer.epochs=1 run.dir=new dataset.limit=60",
    "train objective=distill objective.teacher={run} check=none dataset.limit=300 run.dir=student",
    "check --from {run} check.only=[loss]",
    "compare {run}",
    "diff {run} finished",
    "list {run}",
    "board {run} --out board.html",
    "report {run}",
    "suspects {run}",
]


def evil(folder: Path, payload: dict[str, Any]) -> None:
    """Write this config into copies of the finished and of the unfinished run."""
    for name in ("run", "finished"):
        copied = Path(shutil.copytree(folder / name, folder / f"evil-{name}"))
        change(copied / "config.yaml", **payload)


def words(route: str) -> list[str]:
    name = "evil-run" if route.startswith("resume") and "epochs" not in route else "evil-finished"
    return route.format(run=name).split()


# one payload of each kind, for all commands
SAMPLE = ("dataset of a trusted package", "model starts a program", "teacher with packages")


@pytest.mark.parametrize("name", some(PAYLOADS, 2))
def test_a_payload(name: str, theirs: Path, harmless: Callable[..., Outcome]) -> None:
    evil(theirs, PAYLOADS[name])
    for route in ROUTES[:2]:
        done = harmless(*words(route))
        assert (done.code, done.err.count("\n")) == (2, 1) or "teacher" in name


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_command(name: str, theirs: Path, harmless: Callable[..., Outcome]) -> None:
    evil(theirs, PAYLOADS[name])
    for route in ROUTES:
        harmless(*words(route))
    with watched(theirs) as seen:
        for call in (package.load, package.runs):
            with suppress(UserError):
                call("evil-finished")
    assert seen.bad == []


# each payload in a third of the commands, which change from one payload to the next
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "route"), [(name, route) for n, name in enumerate(PAYLOADS) for route in ROUTES[n % 3 :: 3]]
)
def test_every_payload_in_other_commands(name: str, route: str, theirs: Path, harmless: Callable[..., Outcome]) -> None:
    evil(theirs, PAYLOADS[name])
    harmless(*words(route))


@pytest.mark.slow
def test_a_repeated_config_adds_nothing(theirs: Path, harmless: Callable[..., Outcome]) -> None:
    """Also as a file that is no run: its keys become words of a command."""
    for text in (
        f"trust: [{MODULE}]\nmodel: {{_target_: {MODULE}.Net}}\n",
        f"+trust: [{MODULE}]\nmodel: {{_target_: {MODULE}.Net}}\n",
        f"trust=[{MODULE}]: 1\nmodel: {{_target_: {MODULE}.Net}}\n",
        f'model: {{_target_: {MODULE}.Net}}\n"x trust": [{MODULE}]\n',
        f"hydra.searchpath: ['pkg://{MODULE}']\n",
        f"hydra: {{searchpath: ['pkg://{MODULE}']}}\n",
        "hydra: {launcher: {setup: [touch PWNED]}}\n",
    ):
        write(theirs / "their.yaml", text)
        for more in (["check=none"], ["-m", "seed=1,2"]):
            done = harmless("train", "--from", "their.yaml", *more, "dataset.limit=60", "trainer.epochs=1", "--cfg=job")
            assert f"[{MODULE}]" not in done.out
    config = yaml.safe_load((theirs / "run/config.yaml").read_text())
    for key in (f"trust=[{MODULE}]", "+trust", "trust.0", "hydra.searchpath", "hydra.launcher.setup"):
        run = {**config, key: [MODULE], "model": OWN, "choices": {**config["choices"], "model": "custom"}}
        write(theirs / "their/config.yaml", yaml.safe_dump(run))
        assert harmless("train", "--from", "their", "check=none").code == 2


def test_the_trap_works(theirs: Path, dlrun: Callable[..., Outcome]) -> None:
    """With the package typed, its code runs, and the watch sees it."""
    evil(theirs, PAYLOADS["model of a trusted package"])
    with watched(theirs) as seen:
        dlrun("predict", "evil-finished", "images.npy", f"trust=[{MODULE}]")
    assert len(seen.bad) == 2
    assert (theirs / "PWNED").exists()
