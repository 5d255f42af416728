"""A mistake in a command or a config is one line, exit 2, before anything starts and without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.config.compose import builtin_conf, compose, composer
from dlrun.config.options import Options
from dlrun.config.schema import validate
from dlrun.errors import UserError
from support.commands import TINY, Outcome, without_torch
from support.stored import write

# command -> what its one line contains: keys, values, and single words
MISTAKES = {
    "optimizer.lrr=1": "optimizer.lrr: optimizer.lr=1?",
    "lr=0.1": "lr: optimizer.lr=0.1?",
    "batch_size=3": "batch_size: trainer.batch_size=3?",
    "optimiser=adam": "optimiser: optimizer=adam?",
    "optimizer.nesterov=true": "optimizer.nesterov: optimizer=nesterov?",
    "model=resnt18": "model=resnt18: resnet18",
    "optimizer=null": "optimizer=null: adadelta, adagrad, adam,",
    "optimizer=[adam,sgd]": "option; adadelta, adagrad,",
    "+optimizer=sgd": "optimizer already",
    "experiment=foo": "experiment=foo: cifar10_speedrun, quick",
    "check.only=[gradeint]": "check.only=[gradeint]: gradient?",
    "check.only=[loss] check.skip=[loss,overfit]": "check.skip check.only=[loss]",
    "optimizer.lr=abc": "optimizer.lr=abc: number 0.001 'abc'",
    "++optimizer.lr=abc": "optimizer.lr=abc: number",
    "optimizer.lr=": "optimizer.lr=: number 0.001 nothing",
    "optimizer.lr=null": "optimizer.lr=null: number 0.001",
    "optimizer.lr=nan": "optimizer.lr=nan: finite",
    "optimizer.lr=inf": "optimizer.lr=inf: finite",
    "optimizer.lr=-1": "optimizer.lr=-1: 0 more",
    "optimizer.lr=true": "optimizer.lr=true: number 0.001 true",
    "optimizer.lr=[": "optimizer.lr=[: number",
    "optimizer.lr==1": "optimizer.lr==1: number",
    "optimizer.lr=${nope}": "optimizer.lr: 'nope'",
    "optimizer.lr=${oc.env:NOT_SET}": "optimizer.lr: NOT_SET",
    "optimizer.lr=0.1,0.2": "optimizer.lr=0.1,0.2: several -m",
    "optimizer=sgd,adam": "optimizer=sgd,adam: several -m",
    "optimizer={lrr:3}": "optimizer.lrr: optimizer.lr?",
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9]: two",
    "optimizer.betas=[a,b]": "optimizer.betas[0]=a: number",
    "optimizer.betas=0.9": "optimizer.betas=0.9: list [0.9, 0.999], number",
    "seed=1.5": "seed=1.5: whole 1, number",
    "seed=-1": "seed=-1: whole 0 more",
    "seed=99999999999999999999": "less 2**63",
    "trainer.epochs=0": "trainer.epochs=0: whole 1 more",
    "trainer.epochs=1e9": "number; trainer.epochs=1000000000",
    "trainer.epochs=true": "trainer.epochs=true: whole 30, true",
    "trainer.deterministic=1": "trainer.deterministic=1: true false whole",
    "trainer.deterministic=null": "trainer.deterministic=null: true false",
    "trainer.monitor=val_accuracy": "trainer.monitor=val_accuracy: trainer.monitor=val_acc?",
    "trainer.precision=fp15": "trainer.precision=fp15: auto, fp32, bf16, fp16",
    "trainer=3": "trainer=3: default",
    "model.activation=relux": "model.activation=relux: model.activation=relu?",
    "augment.flip=alternate": "augment.flip=alternate: false, true, augment.flip=alternating?",
    "augment.flip=null": "augment.flip=null: alternating",
    "augment.flip=1": "augment.flip=1: alternating",
    "model.widths=[32,1.5]": "model.widths=[32, 1.5]: list, whole 1 more",
    "model.kernel_size=4": "model.kernel_size=4: odd",
    "regularizer.dropout=2": "regularizer.dropout=2: 0 more less 1",
    "dataset=image_folder": "dataset.root dataset.root=FOLDER",
    "dataset=arrays": "dataset.path=FILE.npz dataset.x=X.npy dataset.y=Y.npy",
    "dataset=image_folder dataset.root=nowhere": "dataset.root=nowhere: folder;",
    "dataset=arrays dataset.path=nowhere.npz": "dataset.path=nowhere.npz: file;",
    "dataset=cifar10 dataset.download=false dataset.root=nowhere": "dataset.root=nowhere: dataset.download=true",
    "model=custom": "model._target_ model._target_=PACKAGE.CLASS trust=[PACKAGE]",
    "model=custom model._target_=a.B trust=[a] model.depth=3": "model.depth: +model.depth=3",
    "trust=mynet": "trust=mynet: list, 'mynet'; trust=[mynet]",
    "check.only=gradient": "'gradient'; check.only=[gradient]",
    "run.dir=": "run.dir=: folder",
    "run.dir.x=3": "run.dir.x: key",
    "~optimizer.lr": "~optimizer.lr: optimizer.lr=",
    "~check": "~check: check=",
    "+lr=3": "+lr: +model.lr",
    "+trainer.foo=3": "+trainer.foo: _target_, +model.foo",
    "+choices.model=4": "+choices:",
    "=3": "=3: key=value group=option",
    "foo": "foo: key=value",
    "model@other=cnn": "model@other=cnn: key=value group=option",
    "hydra.run.dir=foo": "hydra.run.dir=foo: run.dir= sweep.dir= -m",
    "hydra/launcher=joblib": "hydra/launcher=joblib: sweep; -m",
    "hydra.launcher.workers=2": "hydra.launcher.workers=2: sweep; -m",
    "--foo": "--foo: flag; key=value",
    "--multi": "--multi: --multirun?",
    "--cfg": "--cfg: job|hydra|all",
    "--cfg jobs": "--cfg jobs: job|hydra|all",
    "--config-dir nowhere": "--config-dir nowhere: folder",
    "--config-name mine": "mine: conf/mine.yaml",
    "-m seed=1,2 optimizer.lr=0.1,0.2,abc": "3 (seed=1 optimizer.lr=abc): optimizer.lr",
    "-m model=resnet18,resnt20": "2 (model=resnt20): model=resnt20: resnet20",
    "-m optimizer=sgd,adam optimizer.momentum=0.5": "2 (optimizer=adam): optimizer.momentum",
    "-m optimizer.lr=interval(1,0)": "optimizer.lr=interval(1,0) two smaller",
    "-m seed=1,2 run.dir=foo": "sweep.dir=FOLDER -m",
    "-m seed=1,2 hydra.launcher.workers=-1": "hydra.launcher.workers=-1: whole 0 more",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every mistake made once, all in one process, which is still without torch at the end."""
    folder = tmp_path_factory.mktemp("mistakes")
    outcomes = without_torch([("train", *line.split()) for line in MISTAKES], folder)
    assert list(folder.iterdir()) == []  # no run, no sweep, nothing
    return dict(zip(MISTAKES, outcomes, strict=True))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("line", MISTAKES)
def test_mistake_is_one_line(line: str, told: dict[str, Outcome]) -> None:
    outcome = told[line]
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("dlrun: ")
    assert outcome.err.count("\n") == 1
    assert [part for part in MISTAKES[line].split() if part not in outcome.err] == [], outcome.err


def test_verbs_refuse_in_one_line(tmp_path: Path) -> None:
    commands = {
        ("trian",): "'trian' `dlrun train`?",
        ("check", "-m", "seed=1,2"): "-m dlrun train",
        ("check", "optimizer.lrr=1"): "optimizer.lrr",
        ("resume",): "required: run",
        ("resume", "nowhere"): "nowhere:",
        ("resume", ".", "optimizer.lr=9", "seed=2"): "optimizer.lr=9: `dlrun train … optimizer.lr=9 seed=2`",
        ("resume", ".", "trust=[a]", "--foo"): "arguments: --foo",
        ("compare", "nowhere"): "nowhere:",
        ("compare", "--foo"): "arguments: --foo",
    }
    for (words, parts), outcome in zip(commands.items(), without_torch(list(commands), tmp_path), strict=True):
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), words
        assert [part for part in parts.split() if part not in outcome.err] == [], outcome.err


USERS = {
    "experiment/typo.yaml": ("# @package _global_\noptimizer: {lrr: 0.1}\n", "optimizer.lrr:"),
    "experiment/type.yaml": ("# @package _global_\ntrainer: {epochs: many}\n", "'many'"),
    "experiment/range.yaml": ("# @package _global_\ntrainer: {epochs: 0}\n", "trainer.epochs=0: expected"),
    "experiment/section.yaml": ("# @package _global_\noptimizer: 3\n", "optimizer=3: expected keys"),
    "experiment/evil.yaml": ("# @package _global_\nloss: {_target_: os.system}\n", "loss._target_=os.system"),
    "experiment/tag.yaml": (
        "# @package _global_\nseed: !!python/name:os.system\n",
        "tag.yaml, line 2",
    ),
    "experiment/broken.yaml": ("# @package _global_\nseed: [1\n", "broken.yaml, line 3"),
    "experiment/lost.yaml": (
        "# @package _global_\ndefaults:\n  - override /model: resnt18\n",
        "model=resnt18:",
    ),
}


def test_mistakes_in_a_users_own_files(tmp_path: Path) -> None:
    for name, (text, _) in USERS.items():
        write(tmp_path / "conf" / name, text)
    commands = [("train", f"experiment={Path(name).stem}") for name in USERS]
    for (name, (_, says)), outcome in zip(USERS.items(), without_torch(commands, tmp_path), strict=True):
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), (name, outcome.err)
        assert says in outcome.err


def test_hydra_runs_nothing_of_a_preset(tmp_path: Path) -> None:
    write(tmp_path / "marker.py", "open('touched', 'w')\n")
    evil = "hydra: {callbacks: {x: {_target_: marker.X}}, sweeper: {_target_: marker.X}}\nseed: 1.5\n"
    write(tmp_path / "conf/experiment/evil.yaml", "# @package _global_\n" + evil)
    [outcome] = without_torch([("train", "experiment=evil")], tmp_path, PYTHONPATH=str(tmp_path))
    assert "seed=1.5" in outcome.err
    assert not (tmp_path / "touched").exists()


def test_preset_sets_values_and_options(here: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - override /model: mlp\nmodel: {depth: 7}\nseed: 5\n"
    write(here / "conf/experiment/mine.yaml", text)
    cfg = compose("experiment=mine", "model.width=8")
    assert (cfg.model["depth"], cfg.model["width"], cfg.seed) == (7, 8, 5)
    assert (cfg.choices["model"], cfg.choices["experiment"]) == ("mlp", "mine")
    assert compose("experiment=null").seed == 1


def test_keys_of_ones_own_class_are_free(here: Path) -> None:
    write(here / "mynet.py", "class Net: ...\n")
    words = (
        "model=custom",
        "model._target_=mynet.Net",
        "trust=[mynet]",
        "+model.norm=rms",
        "+model.depth=-3",
    )
    cfg = compose(*words)
    assert (cfg.model["norm"], cfg.model["depth"]) == ("rms", -3)
    with pytest.raises(UserError, match=r"model\.init=rms"):
        compose(*words, "model.init=rms")


def test_interpolations_follow(here: Path) -> None:
    cfg = compose("trainer.epochs=7", "scheduler=cosine", "regularizer=dropout", "regularizer.dropout=0.4")
    assert (cfg.scheduler["epochs"], cfg.model["dropout"]) == (7, 0.4)
    assert "${" not in str(cfg)


def test_a_regularizer_without_effect_is_an_error(here: Path) -> None:
    with pytest.raises(UserError, match=r"^regularizer\.label_smoothing .*loss="):
        compose("loss=hinge", "regularizer=label_smoothing")


SCHEMA: dict[str, Any] = {
    "count": 1, "share": 0.5, "flag": False, "name": "x", "items": [0.5], "free": {}, "any": None,
    "sub": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("count", 2, True), ("count", 2.0, False), ("count", True, False), ("count", "2", False),
        ("share", 1, True), ("share", 0.25, True), ("share", False, False), ("share", float("inf"), False),
        ("flag", True, True), ("flag", 0, False), ("flag", None, False),
        ("name", "y", True), ("name", 3, False),
        ("items", [1, 2.5], True), ("items", [], True), ("items", ["a"], False), ("items", 0.5, False),
        ("free", {"new": 1}, True), ("any", [3], True), ("any", None, True),
        ("sub", {"a": 2}, True), ("sub", {"a": "b"}, False), ("sub", {}, False), ("sub", 3, False),
    ],
)  # fmt: skip
def test_type_of_a_default_is_the_type_of_its_key(
    key: str, value: Any, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlrun.config.schema._apply", lambda cfg, rules: None)
    if fits:
        validate({**SCHEMA, key: value}, SCHEMA)
    else:
        with pytest.raises(UserError, match=rf"^{key}"):
            validate({**SCHEMA, key: value}, SCHEMA)


def words(option: str, key: str) -> tuple[Any, ...]:
    """The values that the bracket of a key allows."""
    group, _, name = option.partition("=")
    rule = Options().keys(group, name)[key].rule()
    assert rule is not None
    return rule.words


def test_allowed_words_agree_with_the_code_of_the_families() -> None:
    from typing import get_args, get_type_hints

    from dlrun.data.arrays import arrays
    from dlrun.models import init, layers, resnet
    from dlrun.optim import schedulers

    for model in ("cnn", "mlp", "resnet20", "airbench"):
        assert set(words(f"model={model}", "model.activation")) == set(layers.ACTIVATIONS)
        assert set(words(f"model={model}", "model.norm")) == set(layers.NORMS)
        assert set(words(f"model={model}", "model.init")) == set(init.INITS)
    assert set(words("model=resnet50", "model.stem")) == set(resnet.STEMS)
    assert set(words("model=resnet50", "model.shortcut")) == set(resnet.SHORTCUTS)
    assert set(words("model=resnet50", "model.block")) == set(resnet.BLOCKS)
    for key in ("layout", "labels"):
        assert set(words("dataset=arrays", f"dataset.{key}")) == set(get_args(get_type_hints(arrays)[key]))
    assert schedulers.Scheduler.__init__.__kwdefaults__.keys() == {
        k.split(".")[1] for k, one in Options().common().items() if k.startswith("scheduler.") and one.bracket
    }


def test_the_names_of_checks_are_those_of_the_runner() -> None:
    from dlrun.checks.runner import CHECKS

    assert words("check=default", "check.only") == words("check=default", "check.skip") == tuple(CHECKS)


@pytest.mark.parametrize("pool", words("model=cnn", "model.pool"))
def test_poolings_build(pool: str) -> None:
    from dlrun.models.cnn import CNN

    assert CNN(in_channels=1, num_classes=10, width=4, pool=pool).state_dict()


def test_lbfgs_runs_with_every_line_search(dlrun: Callable[..., Outcome]) -> None:
    for search in words("optimizer=lbfgs", "optimizer.line_search_fn"):
        typed = f"optimizer.line_search_fn={'null' if search is None else search}"
        assert dlrun("train", *TINY, "optimizer=lbfgs", "optimizer.max_iter=2", typed).code == 0


@pytest.mark.parametrize("monitor", words("trainer=default", "trainer.monitor"))
def test_monitors_are_columns(monitor: str) -> None:
    from dlrun.vocabulary import COLUMNS

    assert monitor in COLUMNS
    assert monitor in words("search=auto", "search.metric")


@pytest.mark.slow
def test_every_default_obeys_its_rule(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrun.config.extras.find_spec", lambda name: object())  # as if every extra were installed
    given = {
        "dataset=image_folder": ("dataset.root=.",),
        "dataset=arrays": ("dataset.path=a.npz",),
        "dataset=table": ("dataset.csv=a.csv",),
        "model=custom": ("model._target_=mine.Net", "trust=[mine]"),
        "objective=distill": ("objective.teacher=.",),
        **{f"objective={name}": ("objective.unlabelled=.",) for name in ("pseudo_label", "fixmatch")},
        **{f"experiment={name}": ("dataset.root=.",) for name in ("fast", "finetune", "linear_probe", "scratch")},
    }
    write(here / "cat/1.png", "")
    write(here / "mine.py", "class Net: ...\n")
    write(here / "a.csv", "id,label\n1,cat\n")
    np.savez(here / "a.npz", x=np.zeros(1), y=np.zeros(1))
    (here / "data").mkdir()
    with composer({}, ["trust=[mine]"]) as made:
        for file in sorted(builtin_conf().glob("[!h]*/*.yaml")):
            option = f"{file.parent.name}={file.stem}"
            made.config(made.parse([option, *given.get(option, ())]))  # raises if a default breaks a rule


def test_console_script_says_it_too(here: Path) -> None:
    script = Path(sys.executable).with_name("dlrun")
    done = subprocess.run([script, "train", "optimizer.lrr=1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dlrun: optimizer.lrr: ")
    assert done.stderr.endswith(" optimizer.lr=1?\n")


def test_debug_shows_where(dlrun: Callable[..., Outcome]) -> None:
    with pytest.raises(UserError, match=r"optimizer\.lrr"):
        dlrun("train", "optimizer.lrr=1", "--debug")
