"""What a probe measures leaves no trace in the run that follows (O5, O6)."""

from __future__ import annotations

import pytest
import torch

from dlrun.data.batches import Batch
from dlrun.probes import batch_time, lr_range
from dlrun.training import loop
from dlrun.training.experiment import Experiment, build
from support.composed import SMALL, composed

DROPOUT = ("regularizer=dropout", "regularizer.dropout=0.3", "augment=crop_flip", "augment.pad=1")


def train(exp: Experiment) -> list[torch.Tensor]:
    exp.model.train()
    for i, (x, y, _) in enumerate(exp.train.epoch(1)):
        exp.scheduler.set(i / len(exp.train))
        loop.step(exp, Batch(x, y))
    return [t.detach().clone() for t in (*exp.model.parameters(), *exp.model.buffers())]


def measure(exp: Experiment, verb: str) -> None:
    if verb == "lr_range":
        assert len(lr_range.measure(exp, 1e-4, 1.0, 12)) > 5
    else:
        assert batch_time.measure(exp, 60.0, lambda t: None)[0]


@pytest.mark.parametrize("verb", ["lr_range", "batch_time"])
@pytest.mark.sampled(3)
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs", "muon"])
def test_a_run_afterwards_is_bit_for_bit_the_one_without(verb: str, optimizer: str) -> None:
    options = (*SMALL, *DROPOUT, f"optimizer={optimizer}", "dataset.limit=40", "trainer.batch_size=16")
    plain = train(build(composed(*options)))
    exp = build(composed(*options))
    measure(exp, verb)
    after = train(exp)
    assert all(torch.equal(a, b) for a, b in zip(plain, after, strict=True))


def test_a_measurement_in_the_middle_of_a_run_leaves_its_optimizer_and_random_state() -> None:
    options = (*SMALL, *DROPOUT, "trainer.batch_size=16")
    runs = []
    for measured in (False, True):
        exp = build(composed(*options))
        train(exp)
        if measured:
            measure(exp, "lr_range")
            measure(exp, "batch_time")
        runs.append(train(exp))
        runs.append([torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    assert torch.equal(runs[1][0], runs[3][0])
