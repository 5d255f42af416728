"""The folder conf/ of somebody else, which every command reads that is typed beside it: nothing in it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.config.compose import composer
from dlrun.config.flags import split
from dlrun.errors import UserError
from support.commands import Outcome
from support.hostile import MODULE, SECTIONS, some, watched
from support.stored import write

RUN = "_target_: posix.system\ncommand: touch PWNED\n"
OWN = f"model: {{_target_: {MODULE}.Net}}\n"
DISTILL = "_target_: dlrun.objectives.Distill\nteacher: run\n"
HEAD = "# @package _global_\n"
TRUSTS = {
    "a list": f"trust: [{MODULE}]\n",
    "keys": f"trust: {{{MODULE}: 1}}\n",
    "a text": f"trust: {MODULE}\n",
    "an interpolation": f"run: {{tags: [{MODULE}]}}\ntrust: ${{run.tags}}\n",
    "a part of a list": f"trust: ['${{oc.decode:{MODULE}}}']\n",
    "a name with a plus": f'"+trust": [{MODULE}]\n',
    "a name with a point": f'"trust.0": {MODULE}\n',
    "a search path": f"hydra: {{searchpath: ['pkg://{MODULE}']}}\n",
    "a search path of a file": "hydra: {searchpath: ['file://more']}\n",
    "a search path by interpolation": f"there: {{searchpath: ['pkg://{MODULE}']}}\nhydra: ${{there}}\n",
    "a search path with a point": f"hydra.searchpath: ['pkg://{MODULE}']\n",
    "a setup": "hydra: {launcher: {setup: [touch PWNED]}}\n",
    "callbacks": "hydra: {callbacks: {x: {_target_: posix.system, command: touch PWNED}}}\n",
    "log handlers": "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, filename: PWNED}}}}\n",
    "environment": "hydra: {job: {env_set: {PYTHONPATH: x}, chdir: true}, run: {dir: PWNED}, output_subdir: PWNED}\n",
}
Payload = tuple[dict[str, str], str]  # files below conf/, and what is typed
PAYLOADS: dict[str, Payload] = {
    **{f"{s} by name": ({f"{s}/evil.yaml": RUN}, f"{s}=evil") for s in SECTIONS},
    **{f"preset with {k}": ({"experiment/evil.yaml": t + OWN}, "experiment=evil") for k, t in TRUSTS.items()},
    **{f"root with {k}": ({"train.yaml": f"defaults: [train, _self_]\n{t}{OWN}"}, "") for k, t in TRUSTS.items()},
    **{f"named root with {k}": ({"r.yml": f"defaults: [train, _self_]\n{t}{OWN}"}, "-cn r") for k, t in TRUSTS.items()},
    "the default option": ({"model/cnn.yaml": RUN}, ""),
    "the default option and trust": ({"model/cnn.yaml": f"{HEAD}trust: [{MODULE}]\n{OWN}"}, ""),
    "the default optimizer, as .yml": ({"optimizer/adam.yml": RUN}, ""),
    "the trainer": ({"trainer/default.yaml": f"{HEAD}trust: [{MODULE}]\n"}, "model=custom model._target_=evilmark.Net"),
    "package trust": (
        {"x/y.yaml": f"{MODULE}: 1\n", "experiment/e.yaml": f"defaults: [/x@trust: y]\n{OWN}"},
        "experiment=e",
    ),
    "a group named trust": (
        {"trust/evil.yaml": f"{MODULE}: 1\n"},
        "+trust=evil model=custom model._target_=evilmark.Net",
    ),
    "global by a package": (
        {"x/y.yaml": f"trust: [{MODULE}]\n{OWN}", "experiment/e.yaml": "defaults: [/x@_global_: y]\n"},
        "experiment=e",
    ),
    "header trust": ({"model/evil.yaml": f"# @package trust\n{MODULE}: 1\n"}, "model=evil"),
    "packages": (
        {"objective/evil.yaml": f"{DISTILL}packages: [posix]\n"},
        "objective=evil",
    ),
    "packages over the built-in": (
        {"objective/distill.yaml": "teacher: run\npackages: [posix]\n"},
        "objective=distill",
    ),
    "data of a trusted package": (
        {"objective/evil.yaml": f"{DISTILL}data: {{_target_: {MODULE}.Net}}\n"},
        "objective=evil",
    ),
    "a partial scheduler": ({"scheduler/evil.yaml": f"_partial_: true\n{RUN}"}, "scheduler=evil"),
    "inside a value": (
        {"model/evil.yaml": "defaults: [cnn]\nwidth: {_target_: posix.system, command: x}\n"},
        "model=evil",
    ),
    "inside a list": (
        {"augment/evil.yaml": "defaults: [none]\nprogressive: [{_target_: posix.system}]\n"},
        "augment=evil",
    ),
    "a target by interpolation": (
        {"model/evil.yaml": "_target_: ${oc.env:EVIL}\ncommand: touch PWNED\n"},
        "model=evil",
    ),
    "a python tag": ({"model/evil.yaml": "!!python/object/apply:os.system ['touch PWNED']\n"}, "model=evil"),
    "a python name": ({"model/evil.yaml": "_target_: !!python/name:os.system\n"}, "model=evil"),
    "a path out of the folder": ({"x.yaml": f"trust: [{MODULE}]\n{OWN}"}, "experiment=../x"),
    "a module beside": ({"model/evil.yaml": f"_target_: {MODULE}.Net\n"}, "model=evil trust=[torchvision]"),
}
LAUNCHER = "_target_: x\nworkers: 0\ncluster: slurm\ntimeout_min: 1\ncpus_per_task: 1\ngpus_per_node: 0\nmem_gb: null\n"
LAUNCHERS: dict[str, Payload] = {
    "setup": (
        {"hydra/launcher/submitit_slurm.yaml": f"{LAUNCHER}setup: [touch PWNED]\n"},
        "hydra/launcher=submitit_slurm",
    ),
    "a line break": (
        {"hydra/launcher/submitit_slurm.yaml": f'{LAUNCHER}partition: "a\\ntouch PWNED"\n'},
        "hydra/launcher=submitit_slurm",
    ),
    "the default launcher": ({"hydra/launcher/pool.yaml": "workers: 1\nsetup: [touch PWNED]\n"}, ""),
    "parameters": (
        {"hydra/launcher/submitit_slurm.yaml": f"{LAUNCHER}additional_parameters: {{wrap: x}}\n"},
        "hydra/launcher=submitit_slurm",
    ),
    "a cluster": (
        {"hydra/launcher/ray.yaml": "workers: 0\naddress: evil:1\nnum_cpus: 1\nnum_gpus: 0\n"},
        "hydra/launcher=ray",
    ),
}
ROUTES = [
    "train {typed} dataset.limit=60 trainer.epochs=1 check=none trainer.report=false model.width=4",
    "check {typed} dataset.limit=60",
    "lr_range {typed} dataset.limit=60",
    "batch_time {typed} dataset.limit=60",
    "show augment {typed}",
    "show data {typed}",
    "train -m {typed} seed=1,2 dataset.limit=60 trainer.epochs=1 trainer.report=false",
    "train {typed} --cfg job",
    "train {typed} --cfg all --resolve",
    "train {typed} --help",
    "train {typed} --hydra-help",
    "train {typed} --info defaults",
    "train {typed} --info all",
    "explain model {typed}",
    "train --from run {typed} run.dir=n check=none trainer.epochs=1 dataset.limit=60",
    "resume killed",
    "resume run",
    "compare .",
    "list .",
    "init",
]
FAST = ("the trainer", "preset with keys")


def install(here: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        write(here / "conf" / name, text)
    write(here / "more/experiment/evil.yaml", f"trust: [{MODULE}]\n{OWN}")


def composed(name: str, payloads: dict[str, Payload]) -> None:
    """Compose it as `train` does; most must fail, and none may do anything."""
    flags, words = split(payloads[name][1].split())
    with watched(Path()) as seen, pytest.raises(UserError, match=r"^[^\n]*$"), composer(flags, words) as made:
        made.config(made.parse(words))
    assert seen.bad == []


@pytest.mark.parametrize("name", some(PAYLOADS, 6))
def test_a_payload(name: str, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", "posix.system")
    install(theirs, PAYLOADS[name][0])
    composed(name, PAYLOADS)


@pytest.mark.parametrize("name", some(LAUNCHERS, 3))
def test_a_launcher(name: str, theirs: Path, harmless: Callable[..., Outcome]) -> None:
    install(theirs, LAUNCHERS[name][0])
    done = harmless("train", "-m", "seed=1,2", "dataset.limit=60", "check=none", *LAUNCHERS[name][1].split())
    assert (done.code, done.err.count("\n")) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_a_command(route: str, theirs: Path, harmless: Callable[..., Outcome]) -> None:
    files, typed = PAYLOADS[FAST[0]]
    install(theirs, files)
    harmless(*route.format(typed=typed).split())


@pytest.mark.slow
def test_completion(theirs: Path, harmless: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*FAST, "root with a search path"):
        install(theirs, PAYLOADS[name][0])
    for line in ("dlrun train mod", "dlrun train model=", "dlrun train experiment=evil trai", "dlrun explain mo"):
        monkeypatch.setenv("COMP_LINE", line)
        harmless("-sc", "query=bash")


# each payload in a quarter of the commands, which change from one payload to the next
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "route"), [(name, route) for n, name in enumerate(PAYLOADS) for route in ROUTES[n % 4 :: 4]]
)
def test_every_payload_in_other_commands(
    name: str, route: str, theirs: Path, harmless: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", "posix.system")
    files, typed = PAYLOADS[name]
    install(theirs, files)
    harmless(*route.format(typed=typed).split())


@pytest.mark.slow
@pytest.mark.parametrize("name", PAYLOADS)
def test_every_payload_in_other_folders_of_options(
    name: str, theirs: Path, harmless: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", "posix.system")
    files, typed = PAYLOADS[name]
    install(theirs, files)
    (theirs / "conf").rename(theirs / "elsewhere")
    words = ["train", *typed.split(), "dataset.limit=60", "trainer.epochs=1", "check=none", "trainer.report=false"]
    harmless(*words, "--config-dir", "elsewhere")
    harmless(*words, "hydra.searchpath=[file://elsewhere]")
    monkeypatch.setenv("DLRUN_CONF", "elsewhere")
    harmless(*words)
