"""Presets and options of a user in the forms in which people write them; explain and Hydra read the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.config import compose as composing
from dlrun.config import hydra_files, options, own_options
from dlrun.config.compose import builtin_conf, compose, composer
from dlrun.config.sources import Sources
from dlrun.errors import UserError
from support.commands import Outcome
from support.stored import write

HEADER = "# @package _global_\n"
PRESETS = {
    "plain keys": "trainer:\n  epochs: 3\nmodel: resnet20\n",
    "a header": f"{HEADER}trainer:\n  epochs: 3\nmodel: resnet20\n",
    "defaults": f"{HEADER}defaults:\n  - model: resnet20\ntrainer: {{epochs: 3}}\n",
    "defaults without a header": "defaults:\n  - model: resnet20\ntrainer: {epochs: 3}\n",
    "defaults as keys": "defaults:\n  model: resnet20\ntrainer: {epochs: 3}\n",
    "override": f"{HEADER}defaults:\n  - override model: resnet20\ntrainer: {{epochs: 3}}\n",
    "override with a slash": f"{HEADER}defaults:\n  - override /model: resnet20\ntrainer: {{epochs: 3}}\n",
    "_self_ first": "defaults:\n  - _self_\n  - override /model: resnet20\ntrainer: {epochs: 3}\n",
    "_self_ last": "defaults:\n  - override /model: resnet20\n  - _self_\ntrainer: {epochs: 3}\n",
    "dotted keys": "model: resnet20\ntrainer.epochs: 3\n",
    "both": "model: resnet20\ntrainer.batch_size: 32\ntrainer:\n  epochs: 3\n",
    "quoted": "'model': \"resnet20\"\ntrainer:\n  epochs: 3\n",
    "the root": "defaults: [/train]\nmodel: resnet20\ntrainer: {epochs: 3}\n",
    "the root by name": "defaults: [train, _self_]\nmodel: resnet20\ntrainer: {epochs: 3}\n",
    "another preset": "defaults: [quick]\nmodel: resnet20\ntrainer: {epochs: 3}\n",
}


# every form in one ending, and a few in the other, which is only another name of the file
@pytest.mark.sampled(4)
@pytest.mark.parametrize(("name", "ending"), [*((n, "yaml") for n in PRESETS), ("a header", "yml"), ("both", "yml")])
def test_a_preset_in_any_form(here: Path, name: str, ending: str) -> None:
    write(here / f"conf/experiment/mine.{ending}", PRESETS[name])
    cfg = compose("experiment=mine")
    assert (cfg.trainer.epochs, cfg.choices["model"], cfg.choices["experiment"]) == (3, "resnet20", "mine")
    assert cfg.model["blocks"] == [3, 3, 3]
    over = compose("experiment=mine", "model=mlp", "trainer.epochs=4")
    assert (over.trainer.epochs, over.choices["model"]) == (4, "mlp")


@pytest.mark.parametrize("text", [t for name, t in PRESETS.items() if name != "defaults as keys"])
def test_explain_reads_a_preset_as_hydra_does(here: Path, dlrun: Callable[..., Outcome], text: str) -> None:
    write(here / "conf/experiment/mine.yaml", text)
    assert dlrun("explain", "trainer.epochs", "experiment=mine").out.startswith("trainer.epochs=3\n")
    assert "now: resnet20" in dlrun("explain", "model", "experiment=mine").out


def values(*words: str) -> dict[str, str]:
    from dlrun.config.options import Options

    return {key: one.value for key, one in Sources(Options(), words).keys().items()}


OWN = {
    ("trainer", "default"): ("epochs: 3\n", {"epochs": 3, "batch_size": 32}),
    ("trainer", "fast"): ("epochs: 3\n", {"epochs": 3, "batch_size": 32}),
    ("model", "tiny"): ("width: 8\n", {"width": 8, "depth": 3, "_target_": "dlrun.models.cnn.CNN"}),
    ("model", "cnn"): ("width: 8\n", {"width": 8, "depth": 3, "_target_": "dlrun.models.cnn.CNN"}),
    ("model", "resnet20"): ("width: 8\n", {"width": 8, "blocks": [3, 3, 3], "_target_": "dlrun.models.resnet.ResNet"}),
    ("model", "small"): ("defaults: [resnet20]\nwidth: 8\n", {"width": 8, "blocks": [3, 3, 3]}),
    ("optimizer", "adam"): ("lr: 0.5\n", {"lr": 0.5, "_target_": "torch.optim.Adam"}),
    ("optimizer", "mine"): ("lr: 0.5\n", {"lr": 0.5, "_target_": "torch.optim.Adam"}),
    ("augment", "crop_flip"): ("rotate: 5.0\n", {"rotate": 5.0, "flip": True}),
    ("regularizer", "mine"): ("l2: 0.5\n", {"l2": 0.5, "l1": 0.0}),
    ("check", "mine"): ("budget: 5.0\n", {"budget": 5.0, "enabled": True}),
    ("dataset", "mine"): ("val_fraction: 0.2\n", {"val_fraction": 0.2, "_target_": "dlrun.data.datasets.digits"}),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("group", "name", "ending"),
    [
        *((*one, "yaml") for one in OWN),
        ("trainer", "default", "yml"),
        ("model", "small", "yml"),
        ("model", "cnn", "yml"),
    ],
)
def test_a_few_keys_change_an_option(here: Path, group: str, name: str, ending: str) -> None:
    text, expected = OWN[group, name]
    write(here / f"conf/{group}/{name}.{ending}", text)
    section: Any = compose(f"{group}={name}").plain[group]
    assert {key: section[key] for key in expected} == expected
    read = values(f"{group}={name}")
    for key, value in expected.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert float(read[f"{group}.{key}"]) == value
    with pytest.raises(UserError, match=r"^trainer\.epochs=0: "):
        compose(f"{group}={name}", "trainer.epochs=0")  # the rules of what lies below still count


def test_three_folders_lie_over_each_other(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLRUN_CONF", str(here / "more"))
    write(here / "more/trainer/default.yaml", "epochs: 3\nbatch_size: 8\n")
    write(here / "conf/trainer/default.yaml", "epochs: 4\n")
    trainer = compose().trainer
    assert (trainer.epochs, trainer.batch_size, trainer.eval_batch_size) == (4, 8, 256)
    assert (values()["trainer.epochs"], values()["trainer.batch_size"]) == ("4", "8")


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("file", "text", "word", "expected"),
    [
        ("experiment/mine", "model: [cnn, mlp]\n", "experiment=mine", "-m model=cnn,mlp"),
        ("experiment/mine", "experiment: quick\n", "experiment=mine", "defaults: [quick]"),
        ("experiment/mine", "trainer: {epohcs: 3}\n", "experiment=mine", "trainer.epochs"),
        ("experiment/mine", "model: resnet\n", "experiment=mine", "resnet"),
        ("experiment/mine", "- model\n", "experiment=mine", "model: resnet20"),
        ("experiment/mine", "epochs: 3\n", "experiment=mine", "trainer.epochs"),
        ("experiment/mine", "trust: [os]\n", "experiment=mine", "trust=[PACKAGE]"),
        ("experiment/mine", f"{HEADER}trust: [os]\n", "experiment=mine", "trust=[PACKAGE]"),
        ("experiment/mine", "hydra: {searchpath: [/]}\n", "experiment=mine", "hydra.searchpath"),
        ("model/tiny", "wdith: 8\n", "model=tiny", "wdith"),
        ("model/tiny", "blocks: [1, 1, 1]\n", "model=tiny", "defaults: [resnet18]"),
        ("model/tiny", "model:\n  width: 8\n", "model=tiny", "write width: 8"),
        ("model/tiny", "width: eight\n", "model=tiny", "model.width=eight"),
        ("trainer/default", "epochs: 0\n", "seed=1", "trainer.epochs=0"),
        ("trainer/default", "- epochs\n", "seed=1", "conf/trainer/default.yaml"),
        ("experiment/mine", "Trainer:\n  epochs: 3\n", "experiment=mine", "mean trainer?"),
        ("experiment/mine", "trainer:\n\tepochs: 3\n", "experiment=mine", "spaces"),
        ("experiment/mine", "trainer.epochs=3\nmodel=cnn\n", "experiment=mine", "write trainer.epochs: 3"),
        ("experiment/mine", "trainer:\n  epochs:3\n", "experiment=mine", "write epochs: 3"),
        ("experiment/mine", "epochs: 3\n", "experiment=mine", "trainer.epochs=3"),
        ("experiment/mine", "scheduler: none\n", "experiment=mine", "scheduler=constant"),
        ("experiment/mine", "scheduler: null\n", "experiment=mine", "scheduler=constant"),
        ("experiment/mine", "model:\n  name: resnet20\n", "experiment=mine", "model=resnet20"),
        ("experiment/mine", "model:\n  resnet20:\n    width: 8\n", "experiment=mine", "model=resnet20"),
        ("experiment/mine", "optimizer:\n  lr: '0.1'\n", "experiment=mine", "optimizer.lr=0.1"),
        ("experiment/mine", "model: cnn\nmodel:\n  width: 8\n", "experiment=mine", "key.name: value"),
        ("experiment/mine", "regularizer: [l2, dropout]\n", "experiment=mine", "regularizer.dropout"),
        ("experiment/mine", "dataset:\n  root: photos\n", "experiment=mine", "dataset=image_folder"),
        ("experiment/mine", "defaults:\n  - model/resnet20\n", "experiment=mine", "write model: resnet20"),
        ("experiment/mine", "experiment:\n  seed: 3\n", "experiment=mine", "experiment:"),
        ("experiment/mine", "seed: 1\n---\nseed: 2\n", "experiment=mine", "---"),
        ("mine", "seed: 1\n", "experiment=mine", "conf/mine.yaml to conf/experiment/mine.yaml"),
        ("experiments/mine", "seed: 1\n", "experiment=mine", "conf/experiment/mine.yaml"),
        ("model/tiny", "defaults: resnet20\nwidth: 8\n", "model=tiny", "defaults: [resnet20]"),
        ("model/tiny", "defaults:\n  - override /model: resnet20\n", "model=tiny", "defaults: [resnet20]"),
        ("model/tiny", "name: resnet20\nwidth: 8\n", "model=tiny", "defaults: [resnet20]"),
        ("model/tiny", "base: resnet20\n", "model=tiny", "defaults: [resnet20]"),
        ("model/tiny", "model.width: 8\n", "model=tiny", "write width"),
        ("model/tiny", "_target_: MyNet\n", "model=tiny", "mynet.MyNet"),
    ],
)
def test_another_form_is_answered_with_what_to_write(
    here: Path, dlrun: Callable[..., Outcome], file: str, text: str, word: str, expected: str
) -> None:
    write(here / f"conf/{file}.yaml", text)
    for verb in ("train", "check"):
        outcome = dlrun(verb, word)
        assert (outcome.code, outcome.err.count("\n"), expected in outcome.err) == (2, 1, True), outcome.err


def test_a_clone_is_written_into(here: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone ./conf is the built-in folder, and what `dlrun init` writes there is read as anywhere else."""
    shutil.copytree(builtin_conf(), here / "conf")
    for module in (composing, options, own_options, hydra_files):
        monkeypatch.setattr(module, "builtin_conf", lambda: here / "conf", raising=False)
    (here / "conf/experiment/mine.yaml").unlink(missing_ok=True)
    assert dlrun("init").code == 0
    write(here / "conf/trainer/fast.yaml", "batch_size: 8\n")
    cfg = compose("experiment=mine", "trainer=fast")
    assert (cfg.choices["model"], cfg.model["width"], cfg.choices["optimizer"]) == ("mine", 24, "sgd")
    assert (cfg.trainer.epochs, cfg.trainer.batch_size, cfg.trainer.eval_batch_size) == (20, 32, 256)
    assert compose("trainer=fast").trainer.batch_size == 8
    assert compose("experiment=quick", "regularizer=l2", "search=tpe").regularizer["l2"] > 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["größe", "my-run", "my run", "x.y"])
def test_a_preset_of_any_name(here: Path, name: str) -> None:
    write(here / f"conf/experiment/{name}.yaml", "trainer: {epochs: 3}\n")
    assert compose(f"experiment={name}").trainer.epochs == 3


def test_a_preset_in_another_encoding_is_named(here: Path, dlrun: Callable[..., Outcome]) -> None:
    file = here / "conf/experiment/mine.yaml"
    write(file, "")
    file.write_bytes(b"# gr\xf6\xdfer\ntrainer: {epochs: 3}\n")
    outcome = dlrun("train", "experiment=mine")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "conf/experiment/mine.yaml" in outcome.err
    assert "UTF-8" in outcome.err


MARKER = "raise SystemExit('imported')\n"


def test_no_file_trusts_a_package(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "evil.py", MARKER)
    model = "model: {_target_: evil.Net}\n"
    write(here / "conf/experiment/a.yaml", f"trust: [evil]\n{model}")
    write(here / "conf/model/b.yaml", "# @package _global_\nmodel: {_target_: evil.Net}\ntrust: [evil]\n")
    write(here / "conf/c.yaml", f"defaults: [train, _self_]\n{model}trust: [evil]\n")
    write(here / "conf/d.yaml", "defaults: [train, _self_]\nhydra: {searchpath: [file://more]}\n")
    write(here / "conf/e.yaml", f"{model}trust: [evil]\nchoices: {{model: custom}}\n")
    for words in (
        ["experiment=a"],
        ["model=b"],
        ["--config-name", "c"],
        ["--config-name", "d"],
        ["--from", "conf/e.yaml"],
        ["--from", "conf/experiment/a.yaml"],
    ):
        outcome = dlrun("train", *words)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome
        assert "trust" in outcome.err or "searchpath" in outcome.err


def test_a_trusted_package_is_typed(here: Path) -> None:
    write(here / "mynet.py", "class Net: ...\n")
    write(here / "conf/model/mine.yaml", "_target_: mynet.Net\nhidden: 3\n")
    assert compose("model=mine", "trust=[mynet]").model["hidden"] == 3


def test_options_of_both_endings_are_listed(here: Path) -> None:
    write(here / "conf/model/one.yml", "width: 8\n")
    write(here / "conf/model/two.yaml", "width: 8\n")
    with composer({}) as made, pytest.raises(UserError, match=r"\bone\b.*\btwo\b"):
        made.config(made.parse(["model=zzz"]))
