"""Option files as text: keys, comments and rules, what an option inherits, and which rules apply to a config."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlrun.config.compose import builtin_conf, compose, composer
from dlrun.config.option_text import Key, read
from dlrun.config.options import PRESETS, Options, prefix
from dlrun.config.schema import check_rules
from dlrun.errors import UserError
from support.commands import Outcome
from support.stored import write

GROUPS = [group for group in Options([builtin_conf()]).groups() if group != PRESETS]
BUILTIN = [("", "train"), *((group, name) for group in GROUPS for name in Options([builtin_conf()]).names(group))]


def keys(group: str, name: str) -> dict[str, Key]:
    return {k: v for k, v in Options([builtin_conf()]).keys(group, name).items() if "_target_" not in k}


@pytest.mark.parametrize(("group", "name"), BUILTIN)
def test_every_bracket_of_a_built_in_option_can_be_read(group: str, name: str) -> None:
    for one in Options([builtin_conf()]).keys(group, name).values():
        one.rule()  # raises for a bracket that cannot be read


NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
RULELESS: dict[str, str] = {}  # number-valued keys without a rule, each with the reason


@pytest.mark.parametrize(("group", "name"), BUILTIN)
def test_every_number_of_a_built_in_option_has_a_rule(group: str, name: str) -> None:
    numbers = {
        key: one for key, one in keys(group, name).items() if NUMBER.fullmatch(one.value.strip("[]").split(",")[0])
    }
    assert [key for key, one in numbers.items() if one.rule() is None and key not in RULELESS] == []


@pytest.mark.parametrize(
    "file", sorted(builtin_conf().rglob("*.yaml")), ids=lambda f: str(f.relative_to(builtin_conf()))
)
def test_the_text_has_the_keys_that_yaml_has(file: Path) -> None:
    def leaves(node: Any, start: str = "") -> list[str]:
        found = []
        for key, value in node.items():
            found += [start + key, *(leaves(value, f"{start}{key}.") if isinstance(value, dict) else [])]
        return found

    option, loaded = read(file), yaml.safe_load(file.read_text())
    entries = loaded.pop("defaults", [])
    flow = [k for k, one in option.keys.items() if one.value.startswith("{")]  # one line, one key
    wanted = [k for k in leaves(loaded) if not k.startswith(tuple(f"{one}." for one in flow))]
    assert list(option.keys) == wanted
    assert option.bases == [e for e in entries if isinstance(e, str)]
    assert [one.value for one in option.chosen.values()] == [
        "null" if v is None else v for e in entries if isinstance(e, dict) for v in e.values()
    ]
    for one in option.keys.values():
        assert file.read_text().splitlines()[one.line - 1].lstrip().startswith(one.name.rpartition(".")[2])


def option(folder: Path, text: str) -> dict[str, Key]:
    return read(write(folder / "x.yaml", text)).keys


def test_comments_beside_below_and_above_a_key(tmp_path: Path) -> None:
    found = option(
        tmp_path,
        "# Title: dlrun train x=y\n# more\n"
        "a: 1  # [0..] first\n"
        "      # continued\n"
        "# [0..1] above b\n"
        "b: 'x # y'  # and beside\n"
        "s:\n"
        "  # above c\n"
        "  c: [1, 2]\n"
        "\n"
        "# a note that belongs to no key\n"
        "\n"
        "text: |-\n"
        "  d: 3  # not a key\n"
        "e: {f: 1}\n",
    )
    assert {k: (v.value, v.bracket, v.comment, v.line) for k, v in found.items()} == {
        "a": ("1", "[0..]", "first continued", 3),
        "b": ("'x # y'", "[0..1]", "above b and beside", 6),
        "s": ("", "", "", 7),
        "s.c": ("[1, 2]", "", "above c", 9),
        "text": ("|-", "", "", 13),
        "e": ("{f: 1}", "", "", 15),
    }
    assert read(tmp_path / "x.yaml").title == "Title: dlrun train x=y more"


def test_a_bracket_at_the_top_of_a_file_belongs_to_the_first_key(tmp_path: Path) -> None:
    found = option(tmp_path, "# Title\n# [0..1] share\na: 0.5\n")
    assert (found["a"].bracket, found["a"].comment) == ("[0..1]", "share")


def test_an_option_inherits_comments_and_rules(here: Path) -> None:
    write(
        here / "conf/objective/softer.yaml", "defaults: [distill, _self_]\nalpha: 0.5\ntemperature: 8.0  # (1..] hot\n"
    )
    found, softened = (Options().keys("objective", name) for name in ("softer", "distill"))
    assert found["objective.alpha"].value == "0.5"
    assert found["objective.alpha"].comment == softened["objective.alpha"].comment != ""
    given = ("objective=softer", "objective.teacher=.")
    assert compose(*given).objective["alpha"] == 0.5
    for word in ("objective.alpha=1.5", "objective.temperature=0.5"):
        with pytest.raises(UserError, match=word):
            compose(*given, word)
    with pytest.raises(UserError, match=r"label_smoothing=2"):
        compose("regularizer=dropout", "regularizer.label_smoothing=2")  # of the root


MINE = "# Mine: dlrun train objective=mine\n_target_: mine.Objective\nalpha: 7.0  # [5..10] something else\n"


@pytest.mark.usefixtures("own")
def test_two_options_of_a_group_have_ranges_of_their_own_for_one_key(here: Path) -> None:
    write(here / "conf/objective/mine.yaml", MINE)
    words = ("objective=mine", "trust=[mine]")
    assert compose(*words, "objective.alpha=10").objective["alpha"] == 10
    for wrong in ("objective.alpha=0.9", "objective.alpha=11"):
        with pytest.raises(UserError, match=wrong):
            compose(*words, wrong)
    distill = ("objective=distill", "objective.teacher=.")
    assert compose(*distill, "objective.alpha=1").objective["alpha"] == 1
    with pytest.raises(UserError, match=r"objective\.alpha=7"):
        compose(*distill, "objective.alpha=7")


OWN = "class Objective:\n    pass\n\n\nclass Net:\n    pass\n\n\nclass Penalty:\n    pass\n"  # what mine.py holds


@pytest.fixture
def own(here: Path) -> Path:
    """The folder of the command, with the user's own module."""
    write(here / "mine.py", OWN)
    return here


MODEL = (
    "_target_: mine.Net\nheads: 4  # [1..16] attention heads\nkind: sum  # [sum|mean] how heads are merged\nfree: 1.0\n"
)


@pytest.mark.usefixtures("own")
def test_a_new_key_of_a_new_model_is_held_to_its_bracket(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("model=mine", "trust=[mine]")
    for folder in ("conf", "elsewhere"):
        write(here / folder / "model/mine.yaml", MODEL)
        cfg = compose(*words, "model.heads=16", "model.kind=mean", "model.free=-3")
        assert [cfg.model[key] for key in ("heads", "kind", "free")] == [16, "mean", -3]
        for wrong in ("model.heads=17", "model.heads=0"):
            with pytest.raises(UserError, match=wrong):
                compose(*words, wrong)
        with pytest.raises(UserError, match=r"model\.kind=men.*model\.kind=mean\?"):
            compose(*words, "model.kind=men")
        (here / folder / "model/mine.yaml").unlink()
        monkeypatch.setenv("DLRUN_CONF", str(here / "elsewhere"))


@pytest.mark.parametrize("how", ["--config-dir more", "hydra.searchpath=[file://more]"])
def test_folders_named_on_the_command_line_have_rules_too(here: Path, dlrun: Callable[..., Outcome], how: str) -> None:
    write(here / "more/model/mine.yaml", MODEL)
    outcome = dlrun("train", *how.split(), "model=mine", "trust=[mine]", "model.heads=17")
    assert (outcome.code, outcome.err.startswith("dlrun: model.heads=17: ")) == (2, True)


@pytest.mark.usefixtures("own")
def test_a_class_of_the_users_own_is_not_held_to_the_rules_of_the_option(here: Path) -> None:
    words = ("model=cnn", "model._target_=mine.Net", "trust=[mine]")
    assert compose(*words, "model.kernel_size=4", "model.depth=-3").model["kernel_size"] == 4
    with pytest.raises(UserError, match=r"model\.init=rms"):  # of the root: read by dlrun whatever the class
        compose(*words, "model.init=rms")
    words = ("regularizer._target_=mine.Penalty", "trust=[mine]")
    assert compose(*words, "regularizer.l1=-1").regularizer["l1"] == -1


def test_an_option_without_brackets_has_the_rules_of_the_built_in_one_that_builds_the_same(here: Path) -> None:
    write(
        here / "conf/optimizer/mine.yaml",
        "_target_: torch.optim.SGD\nlr: 0.1\nmomentum: 0.5  # [any]\nweight_decay: 0.0\n",
    )
    write(
        here / "conf/trainer/default.yaml", (builtin_conf() / "trainer/default.yaml").read_text().replace("# [", "# ")
    )
    assert compose("optimizer=mine", "optimizer.momentum=1.5").optimizer["momentum"] == 1.5
    for wrong in ("optimizer.lr=-1", "trainer.epochs=0"):
        with pytest.raises(UserError, match=wrong):
            compose("optimizer=mine", wrong)


def test_an_unreadable_bracket_of_a_user_names_file_and_line(here: Path, dlrun: Callable[..., Outcome]) -> None:
    file = write(here / "conf/model/mine.yaml", "# Mine\n_target_: mine.Net\nheads: 4  # [1-16] attention heads\n")
    outcome = dlrun("train", "model=mine", "trust=[mine]")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"{file}, line 3: cannot read [1-16]" in outcome.err
    assert dlrun("train", "seed=x").err.startswith("dlrun: seed=x")  # options that are not chosen are not read


@pytest.mark.usefixtures("own")
def test_a_stored_config_is_held_to_the_options_that_it_names(here: Path) -> None:
    with composer({}) as made:
        plain = made.config(made.parse(["optimizer=sgd", "objective=distill", "objective.teacher=."]))
    check_rules(plain)
    for section, key, wrong in (("optimizer", "momentum", 1.5), ("objective", "alpha", 2), ("trainer", "epochs", 0)):
        with pytest.raises(UserError, match=rf"{section}\.{key}={wrong}"):
            check_rules({**plain, section: {**plain[section], key: wrong}})
    write(here / "conf/model/gone.yaml", MODEL)
    with composer({}, ["trust=[mine]"]) as made:
        stored = made.config(made.parse(["model=gone", "trust=[mine]", "model.heads=16"]))
    wrong = {**stored, "model": {**stored["model"], "heads": 99}}
    with pytest.raises(UserError, match=r"model\.heads=99"):
        check_rules(wrong)
    (here / "conf/model/gone.yaml").unlink()
    check_rules(wrong)  # an option that is not there has no rules
    for choices in (None, 3, {"model": "../../x", "../..": "x", 3: 4, "optimizer": None}):
        check_rules({**plain, "choices": choices})
        with pytest.raises(UserError, match=r"seed=-1"):
            check_rules({**plain, "choices": choices, "seed": -1})
        for section, key, wrong in (
            *(("trainer", "epochs", 0), ("trainer", "epochs", "x"), ("trainer", "keep", 5), ("check", "budget", "z")),
            *(
                ("optimizer", "lr", -1),
                ("optimizer", "momentum", 1.5),
                ("model", "width", 0),
                ("objective", "alpha", 2),
            ),
        ):
            with pytest.raises(UserError, match=rf"{section}\.{key}={wrong}"):
                check_rules({**plain, "choices": choices, section: {**plain[section], key: wrong}})


def test_rules_are_read_in_a_few_milliseconds_and_once_for_a_sweep() -> None:
    options = Options([builtin_conf()])
    choices = {group: one.value for group, one in options.option("", "train").chosen.items() if one.value != "null"}  # type: ignore[union-attr]
    targets = {prefix(group)[:-1]: options.target(group, name) for group, name in choices.items()}
    started = time.process_time()
    first = Options([builtin_conf()]).rules(targets, choices)
    assert time.process_time() - started < 0.05
    assert len(first) > 70
    options.rules(targets, choices)
    assert options.rules(targets, choices) is options.rules(dict(targets), dict(choices))
