"""Values as typed: paths of any spelling, settings typed twice, settings that only a sweep reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.config.compose import compose, composer
from dlrun.config.typed import readable
from dlrun.errors import UserError
from dlrun.search.space import read
from support.commands import Outcome
from support.stored import write

NAMES = [
    "été",
    "photos (1)",
    "a=b",
    "x,y",
    "läuft",
    "[draft]",
    "it's",
    "{a: b}",
    'say "x"',
    " a ",
    "5",
    "1e5",
    "a#b",
    "null x",
]


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_taken_as_typed(here: Path, name: str) -> None:
    write(here / name / "cat/1.png", "")
    cfg = compose("dataset=image_folder", f"dataset.root={name}", f"dataset.test_dir=../{name}", f"run.dir=run {name}")
    assert (cfg.dataset["root"], cfg.run_dir) == (name, f"run {name}")
    assert cfg.dataset["test_dir"] == f"../{name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_shared_by_a_sweep(here: Path, name: str) -> None:
    write(here / name / "cat/1.png", "")
    with composer({}) as made:
        axes, fixed = read(made, ["dataset=image_folder", f"dataset.root={name}", "seed=1,2"])
        assert [axis.key for axis in axes] == ["seed"]
        assert made.config(made.parse([*fixed, "seed=1"]))["dataset"]["root"] == name


def test_folders_are_searched_over(here: Path) -> None:
    for name in ("été", "b (1)", "it's"):
        write(here / name / "cat/1.png", "")
    with composer({}) as made:
        axes, fixed = read(made, ["dataset=image_folder", "dataset.root=été,b (1),it's"])
        points = [made.config(made.parse([*fixed, axes[0].word(value)])) for value in axes[0].choices]
    assert [point["dataset"]["root"] for point in points] == ["été", "b (1)", "it's"]


def test_home_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    write(here / "photos/cat/1.png", "")
    cfg = compose("dataset=image_folder", "dataset.root=~/photos", "run.dir=~/run 1", "run.note=~ as before, wider")
    assert (cfg.dataset["root"], cfg.run_dir) == (f"{here}/photos", f"{here}/run 1")
    assert cfg.plain["run"]["note"] == "~ as before, wider"
    write(here / "~x/cat/1.png", "")
    assert compose("dataset=image_folder", "dataset.root=~x").dataset["root"] == f"{here}/~x"  # no user of that name


def test_forms_of_hydra_still_count(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a b", "digits"):
        write(here / name / "cat/1.png", "")
    monkeypatch.setenv("WHERE", "a b")
    for word in ("'a b'", '"a b"', r"a\ b", "${oc.env:WHERE}"):
        assert compose("dataset=image_folder", f"dataset.root={word}").dataset["root"] == "a b"
    monkeypatch.setenv("WHERE", "digits")
    assert compose("dataset=image_folder", "dataset.root=${oc.env:WHERE}").dataset["root"] == "digits"
    assert compose("run.dir=null").run_dir is None
    assert readable(["seed=1", "model=cnn", "optimizer.betas=[0.9,0.99]", "~optimizer", "+model.a={b: 1}"]) == [
        "seed=1",
        "model=cnn",
        "optimizer.betas=[0.9,0.99]",
        "~optimizer",
        "+model.a={b: 1}",
    ]


def test_the_config_is_shown_for_a_value_as_typed(here: Path, dlrun: Callable[..., Outcome]) -> None:
    outcome = dlrun("train", "run.dir=läuft (1)", "--cfg", "job")
    assert (outcome.code, outcome.err) == (0, "")
    assert "  dir: läuft (1)\n" in outcome.out


def test_the_record_has_the_words_as_typed(here: Path) -> None:
    with composer({}) as made:
        assert made.compose(made.parse(["run.dir=it's, a"])).typed == ["run.dir=it's, a"]


def test_the_later_of_two_values_counts_and_the_other_is_named(
    here: Path, dlrun: Callable[..., Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = dlrun("train", "seed=1", "seed=2", "model.depth=0")
    assert outcome.code == 2
    assert outcome.err.splitlines()[0].startswith("dlrun: seed=1 ")
    assert "seed=2" in outcome.err.splitlines()[0]
    assert "seed=" not in dlrun("train", "seed=2", "seed=2", "model.depth=0").err
    with composer({}) as made, pytest.raises(UserError, match=r"^model=cnn model=mlp: .* model=mlp$"):
        read(made, ["model=cnn", "seed=1,2", "model=mlp"])


@pytest.mark.parametrize("verb", ["train", "check", "lr_range"])
def test_what_only_a_sweep_reads_is_refused_without_one(here: Path, dlrun: Callable[..., Outcome], verb: str) -> None:
    for word in ("search=tpe", "search.trials=3", "sweep.dir=x", "hydra/launcher=joblib", "hydra.launcher.workers=2"):
        outcome = dlrun(verb, word)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert outcome.err.startswith(f"dlrun: {word}: ")
        assert " -m " in outcome.err
    assert list(here.iterdir()) == []
