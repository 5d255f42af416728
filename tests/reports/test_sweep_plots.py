"""What the pictures of a sweep name and outline: the settings behind each curve, the ranges that were searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlrun.analysis import importance, sweeps
from dlrun.reports import axis_plots, sweep_plots
from support.swept import trial


@pytest.fixture
def figures(here: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures of a sweep of nine trials over three axes, by name."""
    for k in range(9):
        changes = {"optimizer__lr": 10.0 ** -(k % 3 + 1), "regularizer__l2": 10.0 ** -(k // 3 + 2)}
        trial(here / "s", 0.5 + 0.05 * k, model__activation=("relu", "tanh")[k % 2], **changes)
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(sweep_plots, "save", lambda folder, name, figure: drawn.setdefault(name, figure) and folder)
    found = sweeps.read(here / "s")
    sweep_plots.draw(here / "s", found, importance.measure(found))
    return drawn


def test_the_legend_of_the_curves_names_the_settings_best_first(figures: dict[str, Any]) -> None:
    texts = [text.get_text() for text in figures["curves"].legends[0].texts]
    assert len(texts) == 8, "the ninth is grey"
    assert {len(text) <= sweep_plots.LEGEND for text in texts} == {True}
    folder, _, words = texts[0].partition(": ")
    assert folder == "0008"
    assert sorted(words.split(", ")) == ["activation relu", "l2 0.0001", "lr 0.001"]
    assert [text.partition(":")[0] for text in texts] == [f"{k:04d}" for k in range(8, 0, -1)]


def test_the_map_outlines_the_ranges_searched(figures: dict[str, Any]) -> None:
    panel = figures["sweep_map"].axes[0]
    (box,) = (line for line in panel.lines if line.get_label() == "range searched")
    ranges = {"optimizer.lr": (1e-3, 0.1), "regularizer.l2": (1e-4, 1e-2)}
    for values, name, limits in (
        (box.get_xdata(), panel.get_xlabel(), panel.get_xlim()),
        (box.get_ydata(), panel.get_ylabel(), panel.get_ylim()),
    ):
        low, high = ranges[name]
        assert (min(values), max(values)) == pytest.approx((low, high))
        assert limits[0] < low
        assert limits[1] > high
    assert "range searched" in [text.get_text() for text in figures["sweep_map"].legends[0].texts]


def test_a_range_that_was_asked_for_is_outlined_beyond_the_values_tried(here: Path) -> None:
    from dataclasses import replace

    for k in range(4):
        trial(here / "s", 0.5 + 0.1 * k, optimizer__lr=0.01 * (k + 1), regularizer__l2=0.1 + 0.1 * (k % 2))
    found = sweeps.read(here / "s")
    wider = [replace(axis, low=axis.low / 10, high=axis.high * 10) for axis in found.axes]
    panel = axis_plots.two_axes(found, wider, measured=True).axes[0]
    (box,) = (line for line in panel.lines if line.get_label() == "range searched")
    assert (min(box.get_xdata()), max(box.get_xdata())) == pytest.approx((wider[0].low, wider[0].high))
