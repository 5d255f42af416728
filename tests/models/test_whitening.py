"""A first layer that whitens patches, by its covariance, and the network of airbench94, by its shapes (M1)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dlrun.data.batches import Batch
from dlrun.errors import UserError
from dlrun.models.airbench import Airbench
from dlrun.models.whitening import Whitening
from dlrun.training import loop
from dlrun.training.experiment import build
from support.composed import composed


def test_whitened_patches_have_identity_covariance_and_both_signs() -> None:
    generator = torch.Generator().manual_seed(0)
    # neighbouring pixels and channels are correlated, as in photographs
    images = torch.nn.functional.interpolate(torch.randn(64, 3, 8, 8, generator=generator), 16, mode="bilinear")
    images = images + images.flip(1) * 0.5 + 0.3 * torch.randn(64, 3, 16, 16, generator=generator)
    layer = Whitening(3)
    assert (layer.weight.shape, layer.weight.requires_grad) == ((24, 3, 2, 2), False)
    layer.fit(images.split(20))
    torch.nn.init.zeros_(layer.bias)
    out = layer(images).detach()
    assert out.shape == (64, 24, 15, 15)
    assert torch.equal(out[:, :12], -out[:, 12:])
    values = out[:, :12].transpose(0, 1).reshape(12, -1).double()
    second = values @ values.T / values.shape[1]
    assert torch.allclose(second, torch.eye(12, dtype=torch.float64), atol=0.02)  # less by EPS / variance
    again = Whitening(3)
    again.fit([images])
    assert torch.allclose(again.weight, layer.weight, atol=1e-4)


def test_a_direction_without_variance_stays_small() -> None:
    layer = Whitening(1)
    layer.fit([torch.randn(9, 1, 1, 1).expand(9, 1, 6, 6)])  # each image of one gray
    assert layer.weight.isfinite().all()
    assert float(layer.weight.flatten(1).norm(dim=1).max()) <= 5e-4**-0.5 * 1.001


def test_airbench_has_the_shape_of_airbench94() -> None:
    model = Airbench(3, 10)
    shapes = {name: list(p.shape) for name, p in model.named_parameters() if p.ndim > 1}
    assert list(shapes.values()) == [
        *([24, 3, 2, 2], [64, 24, 3, 3], [64, 64, 3, 3], [256, 64, 3, 3]),
        *([256, 256, 3, 3], [256, 256, 3, 3], [256, 256, 3, 3], [10, 256]),
    ]
    assert sum(p.numel() for p in model.parameters()) == 1_972_792
    x, sides = torch.randn(2, 3, 32, 32), []
    for name in ("whiten", "group1", "group2", "group3", "pool"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out: sides.append(out.shape[-1]))
    assert model(x).shape == (2, 10)
    assert sides == [31, 15, 7, 3, 1]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"whiten.conv.weight"} | {
        f"group{g}.{b}.norm.weight" for g in (1, 2, 3) for b in ("first", "second")
    }
    # the first filters pass their channel on
    filters = model.get_parameter("group1.first.conv.weight").detach()
    assert torch.equal(filters[:24, :, 1, 1], torch.eye(24))
    assert Airbench(3, 10, whiten=False).get_parameter("whiten.conv.weight").requires_grad


@pytest.mark.parametrize("options", [{}, {"activation": "maxout"}, {"norm": "none"}, {"norm": "group", "widths": [4]}])
@pytest.mark.parametrize("shape", [(8, 8), (5, 9), (2, 2), (33, 32)])
def test_airbench_takes_images_of_any_size(options: dict[str, Any], shape: tuple[int, int]) -> None:
    model = Airbench(1, 3, **{"widths": [4, 4, 8, 8], **options})
    assert model(torch.randn(2, 1, *shape)).shape == (2, 3)
    with pytest.raises(UserError, match=r"model\.widths=\[\]: expected"):
        Airbench(1, 3, widths=[])


@pytest.mark.parametrize("option", ["cnn", "resnet20", "airbench"])
def test_whitening_filters_come_from_training_images_and_stay_as_they_are(option: str) -> None:
    words = (f"model={option}", "model.whiten=true", "dataset.limit=200", "check=none", "trainer.threads=1")
    exp = build(composed(*words))
    filters = exp.model.get_parameter("whiten.conv.weight")
    x, _, _ = next(exp.batches(exp.data.train, batch_size=1000).epoch(0))
    fitted = Whitening(1)
    fitted.fit([x])
    assert torch.allclose(filters.detach(), fitted.weight, atol=1e-4)
    assert torch.equal(build(composed(*words, "seed=2")).model.get_parameter("whiten.conv.weight"), filters)
    before = filters.detach().clone()
    x, y, _ = next(exp.train.epoch(1))
    loop.step(exp, Batch(x, y))
    assert torch.equal(filters, before)
    assert any("whiten.conv.weight" in name for name in exp.model.state_dict())
