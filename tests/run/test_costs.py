"""The cost model of several devices (tests/benchmarks/bench_costs.py), by exact numbers."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench_costs as costs


def test_bytes_of_a_step_a_checkpoint_and_a_device() -> None:
    assert [costs.ring_bytes(1200, count) for count in (1, 2, 4)] == [0, 1200, 1800]
    assert costs.step_bytes(costs.WEIGHTS, 8) == 7 * costs.WEIGHTS
    assert costs.step_bytes(costs.WEIGHTS, 8, sharded=True) == 10.5 * costs.WEIGHTS
    assert costs.checkpoint_bytes(costs.WEIGHTS, moments=1) == 204_456_256
    assert costs.checkpoint_bytes(10, moments=2, average=True) == 160
    assert costs.device_bytes(1000, 8, moments=2, sharded=True) == 2000
    assert costs.device_bytes(1000, 8, moments=2, sharded=False) == 16_000


def test_a_step_takes_what_it_computes_and_what_of_the_wire_the_backward_pass_does_not_hide() -> None:
    small, large = costs.predicted(8, decode=1e-3), costs.predicted(512, decode=1e-3)
    assert (small.each, large.each) == (256, 16)
    assert small.seconds == small.compute == 256 / 2470
    assert small.rate == pytest.approx(8 * 2470)
    assert small.cores == pytest.approx(8 * 2.47)
    sent = 8 * 511 / 512 * costs.WEIGHTS / 25e9 + 18 * 5e-6
    assert large.wire == pytest.approx(sent)
    assert large.seconds == pytest.approx(16 / 2470 + sent - 2 / 3 * 16 / 2470)
    assert math.isclose(large.rate, 8192 / large.seconds)
