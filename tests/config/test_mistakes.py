"""What people type who come from other programs: every mistake is answered in one line with what to type instead."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dlrun.cli import VERBS as VERBS_OF_DLRUN
from dlrun.config.compose import builtin_conf
from dlrun.config.meant import likely_verb, number
from dlrun.config.options import Options
from dlrun.config.rules import NAMED
from dlrun.config.sources import Sources
from dlrun.config.synonyms import GROUPS, KEYS, OPTIONS, UNNEEDED, VALUES, VERBS, fold, squeezed
from support.commands import Outcome, without_torch

ROWS = [
    line.split("\t")
    for line in Path(__file__).with_name("mistakes.tsv").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Outcome]:
    """The chosen commands of the table, one after the other in an empty folder, without torch."""
    here = [item for item in request.session.items if item.path == request.path]
    chosen = {item.callspec.params["words"] for item in here if "answers" in getattr(item, "fixturenames", ())}
    rows = [words for words, _ in ROWS if words in chosen]
    folder = tmp_path_factory.mktemp("mistakes")
    outcomes = without_torch([tuple(shlex.split(words)) for words in rows], folder)
    assert list(folder.iterdir()) == []  # what is refused leaves nothing
    return dict(zip(rows, outcomes, strict=True))


def test_there_are_enough_of_them() -> None:
    assert len({words for words, _ in ROWS}) == len(ROWS) >= 150


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("words", "expected"), [*map(tuple, ROWS)], ids=[words for words, _ in ROWS])
def test_a_mistake_is_answered_with_what_to_type(answers: dict[str, Outcome], words: str, expected: str) -> None:
    outcome = answers[words]
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome
    assert expected in outcome.err


def test_synonyms_lead_to_what_exists() -> None:
    options = Options([builtin_conf()])
    groups = options.groups()
    known = {*Sources(options).keys(), *(key.name for _, _, key in options_keys(options))}
    for targets in KEYS.values():
        for target in targets.replace(" | ", ", ").split(", "):
            name, given, value = target.partition("=")
            assert name in known or (given and value in options.names(name)), target
    assert set(GROUPS.values()) <= set(groups)
    for group, table in OPTIONS.items():
        assert set(table.values()) <= set(options.names(group)), group
    for key, values in VALUES.items():
        rule = next(one.rule() for _, _, one in options_keys(options) if one.name == key)
        assert rule is not None
        assert all(map(rule.holds, values.values())), key


def options_keys(options: Options) -> list[tuple[str, str, object]]:
    return list(Sources(options).elsewhere())


def test_synonyms_are_folded_and_stand_in_no_way_of_a_name() -> None:
    options = Options([builtin_conf()])
    for table in (VERBS, GROUPS, KEYS, UNNEEDED, *VALUES.values()):
        assert [word for word in table if fold(word) != word] == []
    for group, table in OPTIONS.items():
        assert [word for word in table if squeezed(word) != word] == []
        assert not {squeezed(name) for name in options.names(group)} & {w for w, o in table.items() if squeezed(o) != w}
    assert not set(KEYS) & set(UNNEEDED)


def test_every_word_of_the_table_leads_to_a_verb() -> None:
    assert not set(VERBS) & set(VERBS_OF_DLRUN)  # a verb needs no translation
    for word, commands in VERBS.items():
        for command in commands.split(", "):
            assert command.split()[1] in VERBS_OF_DLRUN or command == "dlrun --version", word
            assert f"`{command}`" in likely_verb(word, VERBS_OF_DLRUN), word


@pytest.mark.parametrize(
    ("value", "whole", "typed"),
    [
        ("1..5", True, "-m k=range:1:6"),
        ("1…5", True, "-m k=range:1:6"),
        ("5-1", True, "-m k=range:1:6"),
        ("0.5..1", False, "-m k=uniform:0.5:1"),
        ("1e-4-1e-1", False, "-m k=loguniform:0.0001:0.1"),
        ("0..1", False, "-m k=uniform:0:1"),
        ("50%", False, "k=0.5"),
        ("8x8", True, "k=8"),
        ("8x9", True, ""),
        ("off", True, "k=0"),
        ("fast", True, ""),
        ([], True, ""),
    ],
)
def test_numbers_written_otherwise(value: object, whole: bool, typed: str) -> None:
    assert number("k", value, whole) == typed


def test_devices_by_number() -> None:
    rule = NAMED["device"]()
    assert all(map(rule.holds, ("auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps")))
    assert not any(map(rule.holds, ("gpu", "cuda:", "cuda:x", "cuda:1 ", "cpu:0", 0, None)))
