"""`--from`: a run is repeated from the config that it stored, a file from its lines, both with changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrun.config.compose import compose, composer
from dlrun.config.repeat import repeated
from dlrun.errors import UserError
from support.commands import TINY, Outcome
from support.stored import write

OWN = ("run", "sweep", "search", "trust", "choices")


def again(source: str, *typed: str) -> dict[str, Any]:
    with composer({}, typed) as made:
        words = [*repeated(source, typed, made.defaults), *typed]
        return made.config(made.parse(words))


def store(folder: Path, *words: str) -> dict[str, Any]:
    config = compose(*words).plain
    write(folder / "config.yaml", yaml.safe_dump(config, allow_unicode=True))
    return config


SETUPS: list[list[str]] = [
    [],
    ["seed=3", "optimizer=sgd", "optimizer.lr=1e-05", "trainer.epochs=7", "scheduler=warm_restarts"],
    ["model=resnet20", "model.blocks=[1,2,3]", "regularizer=l2", "regularizer.dropout=0.25", "augment.rotate=15"],
    ["experiment=quick", "check.only=[gradient,overfit]", "model.widths=[8,16,16]", "trainer.keep=top3"],
    ["optimizer.per_layer={stage1: {lr: 0.01}}", "augment.progressive=[[4,2]]", "check=none"],
    ["dataset=image_folder", "dataset.root=été (1), it's", "scheduler.warmup=2.0", "scheduler=one_cycle"],
    ["optimizer.betas=[0.8,0.99]", "trainer.precision=fp32", "dataset.cache=none", "logger=none"],
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("words", SETUPS, ids=lambda words: " ".join(words)[:40])
def test_a_config_is_repeated(here: Path, words: list[str]) -> None:
    write(here / "été (1), it's/cat/1.png", "")
    stored = store(here / "run", *words)
    found = again("run")
    assert {k: v for k, v in found.items() if k not in OWN} == {k: v for k, v in stored.items() if k not in OWN}
    assert {**found["choices"], "experiment": None} == {**stored["choices"], "experiment": None}
    assert again("run/config.yaml") == found


def test_changes_count_more_and_what_follows_them_follows(here: Path) -> None:
    store(here / "run", "optimizer=sgd", "optimizer.lr=0.3", "trainer.epochs=7", "seed=3", "run.dir=run")
    found = again("run", "trainer.epochs=9", "model=mlp")
    assert (found["trainer"]["epochs"], found["scheduler"]["epochs"], found["seed"]) == (9, 9, 3)
    assert (found["choices"]["model"], found["optimizer"]["lr"], found["run"]["dir"]) == ("mlp", 0.3, None)
    other = again("run", "optimizer=adam")
    assert (other["optimizer"]["lr"], other["choices"]["optimizer"]) == (0.001, "adam")


def test_a_file_is_repeated_as_a_preset(here: Path) -> None:
    write(here / "a.yaml", "model: resnet20\ntrainer:\n  epochs: 3\noptimizer.lr: 0.5\nseed: 4\n")
    found = again("a.yaml", "seed=5")
    assert (found["trainer"]["epochs"], found["choices"]["model"], found["seed"]) == (3, "resnet20", 5)
    assert found["optimizer"]["lr"] == 0.5


def test_an_option_of_another_machine(here: Path) -> None:
    write(here / "mynet.py", "class Net: ...\nclass Loss: ...\n")
    write(here / "conf/model/tiny.yaml", "width: 8\ndepth: 2\n")
    write(here / "conf/model/own.yaml", "_target_: mynet.Net\nhidden: 3\nsizes: [1, 2]\n")
    write(here / "conf/loss/own.yaml", "_target_: mynet.Loss\n")
    tiny, own = store(here / "tiny", "model=tiny"), store(here / "own", "model=own", "trust=[mynet]")
    store(here / "loss", "loss=own", "trust=[mynet]")
    for file in (here / "conf").rglob("*.yaml"):
        file.unlink()
    assert again("tiny")["model"] == tiny["model"]
    with pytest.raises(UserError, match=r"trust=\[mynet\]"):
        again("own")
    found = again("own", "trust=[mynet]")
    assert (found["model"]["_target_"], found["model"]["hidden"], found["model"]["sizes"]) == ("mynet.Net", 3, [1, 2])
    assert found["model"] == own["model"]
    with pytest.raises(UserError, match=r"conf/loss/own\.yaml"):
        again("loss")


@pytest.mark.parametrize(
    ("source", "expected"),
    [("nowhere", "nowhere"), ("sweep", "sweep/0000"), ("broken.yaml", "broken.yaml"), ("list.yaml", "model: resnet20")],
)
def test_what_cannot_be_repeated(here: Path, dlrun: Callable[..., Outcome], source: str, expected: str) -> None:
    write(here / "sweep/sweep.yaml", "a: 1\n")
    write(here / "broken.yaml", "a: [\n")
    write(here / "list.yaml", "- a\n")
    outcome = dlrun("train", "--from", source)
    assert (outcome.code, outcome.err.count("\n"), expected in outcome.err) == (2, 1, True), outcome.err


def test_a_stored_config_adds_no_trust_and_no_search_path(here: Path) -> None:
    config = store(here / "run")
    config |= {"trust": ["os"], "hydra": {"searchpath": ["file:///"]}, "run": {"dir": "/tmp/elsewhere"}}
    write(here / "run/config.yaml", yaml.safe_dump(config))
    found = again("run")
    assert (found["trust"], found["run"]["dir"]) == ([], None)


OTHERS = [f"{sign}trust" for sign in ("", "+", "++", "~", " ")] + ["trust.0", "trust=[os]", "trust@_global_", "hydra"]
OTHERS += ["hydra.searchpath", "hydra.launcher.setup", "run.dir", "sweep.dir", "search.trials", "choices.model"]


def test_no_word_of_a_file_sets_what_belongs_to_one_run(here: Path) -> None:
    """However its key is written: each becomes a word of a command."""
    config = store(here / "run")
    with composer({}, []) as made:
        for key in OTHERS:
            write(here / "run/config.yaml", yaml.safe_dump({**config, key: ["elsewhere"]}))
            write(here / "a.yaml", yaml.safe_dump({"seed": 4, key: ["elsewhere"]}))
            for source in ("run", "a.yaml"):
                words = repeated(source, [], made.defaults)
                assert words, source
                assert not [word for word in words if "elsewhere" in word], (source, key)


@pytest.mark.slow
def test_a_repeated_run_is_the_same_run(here: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("train", *TINY, "run.dir=one", "optimizer=sgd", "seed=3").code == 0
    assert dlrun("train", "--from", "one", "run.dir=two").code == 0
    one, two = (json.loads((here / name / "result.json").read_text()) for name in ("one", "two"))
    assert (one["val_loss"], one["test_loss"]) == (two["val_loss"], two["test_loss"])
    shown = dlrun("train", "--from", "one", "trainer.epochs=5", "--cfg", "job")
    assert (shown.code, "  epochs: 5\n" in shown.out) == (0, True)
    outcome = dlrun("train", "-m", "--from", "one", "seed=1,2", "sweep.dir=many")
    assert outcome.code == 0, outcome.err
    found = [yaml.safe_load((here / f"many/000{n}/config.yaml").read_text()) for n in range(2)]
    assert [(one["seed"], one["model"]["width"], one["choices"]["optimizer"]) for one in found] == [
        (1, 4, "sgd"),
        (2, 4, "sgd"),
    ]


def test_a_run_from_before_folds_by_content_is_repeated_on_its_folds(here: Path) -> None:
    write(here / "photos" / "ant" / "1.png", "")
    plain = store(here / "old", "dataset=image_folder", "dataset.root=photos", "dataset.split_seed=3")
    del plain["dataset"]["split"], plain["dataset"]["test_seed"]
    write(here / "old" / "config.yaml", yaml.safe_dump(plain))
    found = again("old")["dataset"]
    assert (found["split"], found["split_seed"], found["test_seed"]) == ("position", 3, 3)
