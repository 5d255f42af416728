"""The brackets in the comments of the YAML files: what each allows, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from dlrun.config.rules import METRICS, parse, split


@pytest.mark.parametrize(
    ("bracket", "default", "inside", "outside"),
    [
        ("[0..1]", "0.5", [0, 1, 0.5], [-0.01, 1.01, "x", True, float("nan")]),
        ("(0..1)", "0.5", [0.01, 0.99], [0, 1, 0.0, 1.0]),
        ("[0..1)", "0.5", [0, 0.99], [1]),
        ("(0..1]", "0.5", [0.01, 1], [0]),
        ("[1..]", "2.0", [1, 1e30], [0.99, float("inf")]),
        ("(0..]", "2.0", [1e-30], [0, float("inf")]),
        ("[..0)", "-1.0", [-1e30, -1e-9], [0, float("-inf")]),
        ("[-1e-3..2.5]", "0.0", [-0.001, 2.5], [-0.002, 2.6]),
        ("[1..]", "2", [1, 7], [0, 1.5, 2.0, True]),
        ("[whole 1..]", "null", [1], [1.5, "1"]),
        ("[max|avg|none]", "max", ["max", "none"], ["min", None, True]),
        ("[1|3]", "3", [1, 3], [2, True, 3.0, "3"]),
        ("[false|true|alternating]", "false", [True, False, "alternating"], ["true", 1, 0, None]),
        ("[a|null]", "a", ["a", None], ["null"]),
        ("[list of 0..]", "[1.0]", [[0], [1, 2.5]], [[], [-1], 3, [True], ["x"]]),
        ("[list of whole 1..]", "null", [[1, 2]], [[], [1.5]]),
        ("[list of 1..]", "[64, 256]", [[1, 2]], [[1.5], [0]]),
        ("[list of a|b]", "[]", [[], ["a", "b"]], [["c"], "a"]),
        ("[pair of 0..1)", "[0.9, 0.999]", [[0, 0.99]], [[0.9], [0.9, 1.0], [0.9, 0.9, 0.9], 0.9]),
        ("[odd]", "3", [1, 3, 7], [0, 2, -1, 3.0]),
        ("[seed]", "1", [0, 2**63 - 1], [-1, 2**63, 1.0]),
        ("[folder]", "null", ["x"], ["", "  "]),
        ("[metric]", "val_acc", list(METRICS), ["epoch", "lr", "accuracy"]),
        ("[list of checks]", "[]", [[], ["gradient", "loss"]], [["gradeint"], "loss"]),
        ("[any]", "1.0", [-1e9, 0], []),
    ],
)
def test_a_bracket_allows(bracket: str, default: str, inside: list[Any], outside: list[Any]) -> None:
    rule = parse(bracket, default)
    assert [value for value in inside if not rule.holds(value)] == []
    assert [value for value in outside if rule.holds(value)] == []
    assert rule.expected


@pytest.mark.parametrize(
    ("bracket", "default", "words"),
    [
        ("[0..1]", "0.5", ["between", "0", "1"]),
        ("[1..]", "30", ["whole", "1", "more"]),
        ("[0..30]", "9", ["whole", "between", "0", "30"]),
        ("(0..0.5]", "0.1", ["more", "0", "most", "0.5"]),
        ("[0..1)", "0.1", ["0", "more", "less", "1"]),
        ("[1|3]", "3", ["one", "1", "3"]),
        ("[false|true|alternating]", "false", ["one", "false", "true", "alternating"]),
        ("[list of x|y]", "[]", ["list", "x", "y"]),
        ("[list of 1..]", "[2]", ["list", "each", "whole", "1", "more"]),
        ("[pair of 0..1)", "[0.9, 0.9]", ["two", "0", "more", "less", "1"]),
    ],
)
def test_a_rule_in_words(bracket: str, default: str, words: list[str]) -> None:
    said = parse(bracket, default).expected.replace(",", "").split()
    assert [word for word in said if word in words] == words


@pytest.mark.parametrize(
    "bracket",
    ["[0-1]", "[0...1]", "[..]", "[]", "[0..1", "[2..1]", "[a..b]", "[off]", "[list of]", "[list of x]", "[see paper]"],
)
def test_a_bracket_that_cannot_be_read_is_an_error(bracket: str) -> None:
    with pytest.raises(ValueError, match=r"[\[\]]"):
        parse(bracket)


@pytest.mark.parametrize(
    ("comment", "bracket", "rest"),
    [
        ("[0..1] share", "[0..1]", "share"),
        ("(0..1) share (O1)", "(0..1)", "share (O1)"),
        ("(0 = never) seconds", "", "(0 = never) seconds"),
        ("(O2) ramp", "", "(O2) ramp"),
        ("such as [1, 2]", "", "such as [1, 2]"),
        ("[0..1", "[0..1", ""),
        ("", "", ""),
    ],
)
def test_only_what_opens_a_comment_is_a_bracket(comment: str, bracket: str, rest: str) -> None:
    assert split(comment) == (bracket, rest)
