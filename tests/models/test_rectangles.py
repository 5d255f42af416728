"""Networks take images that are not square."""

from __future__ import annotations

import pytest
import torch

from dlrun.training.experiment import build_model
from support.composed import composed


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet20"])
def test_a_network_for_rectangles(model: str) -> None:
    node = composed(f"model={model}").plain["model"]
    made = build_model(node, [], (12, 20, 3), ["a", "b"]).eval()
    with torch.no_grad():
        assert made(torch.zeros(2, 3, 12, 20)).shape == (2, 2)
