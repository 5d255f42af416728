"""Configs by dotted key: groups that runs share are flattened once (`dlrun compare`)."""

from __future__ import annotations

import datetime
import gc

import pytest

from dlrun.analysis.flat import Known, flat, uncollected


def test_leaves_are_text_as_json_writes_them() -> None:
    config = {"seed": 1, "trust": [], "optimizer": {"lr": 1e-05, "betas": [0.9, 1], "per_layer": {"x": {"lr": None}}}}
    assert flat(config, {}) == {
        "seed": "1",
        "trust": "[]",
        "optimizer.lr": "1e-05",
        "optimizer.betas": "[0.9, 1]",
        "optimizer.per_layer.x.lr": "null",
    }


@pytest.mark.parametrize("value", [1, 1.0, True, "1", [1], [1.0], [True], None, 0.0, -0.0])
def test_a_known_group_is_not_taken_for_an_equal_one(value: object) -> None:
    known: Known = {}
    for other in (1, 1.0, True, "1", [1], [1.0], [True], None, 0.0, -0.0):
        flat({"model": {"width": other}}, known)
    config = {"model": {"width": value}}
    assert flat(config, known) == flat(config, {})


def test_groups_of_equal_content_keep_their_names() -> None:
    assert flat({"loss": {"x": 1}, "model": {"x": 1}}, {}) == {"loss.x": "1", "model.x": "1"}


def test_a_date_of_yaml_is_text() -> None:
    assert flat({"run": {"note": datetime.date(2026, 1, 2)}}, {}) == {"run.note": '"2026-01-02"'}


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
