"""The depth of every parameter, for layer decay and freezing, of all the networks that dlrun can build."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from dlrun.models.airbench import Airbench
from dlrun.models.cnn import CNN
from dlrun.models.depths import classifiers, depths
from dlrun.models.mlp import MLP
from support.networks import resnet

# blocks, and layers outside of blocks, counted in the papers
TORCHVISION = {"resnet18": 10, "mobilenet_v3_small": 15, "vit_b_16": 14, "convnext_tiny": 23, "densenet121": 63}


def levels(model: nn.Module) -> dict[int, str]:
    """The first parameter of every depth."""
    found: dict[int, str] = {}
    for name, depth in depths(model, 10).items():
        found.setdefault(depth, name)
    assert sorted(found) == [*range(len(found))]
    return found


def test_a_convolution_with_its_norm_and_a_block_are_one_depth_each() -> None:
    assert list(levels(CNN(3, 10, depth=4)).values()) == [
        *(f"stage{stage}.conv{conv}.conv.weight" for stage, conv in ((1, 1), (1, 2), (2, 1), (3, 1))),
        "head.weight",
    ]
    model = resnet("resnet20")
    found = depths(model, 10)
    assert len(levels(model)) == 11
    assert found["stem.norm.bias"] == found["stem.conv.weight"] == 0
    assert {depth for name, depth in found.items() if name.startswith("stage3.block3.")} == {9}
    assert found["head.weight"] == found["head.bias"] == 10
    assert [len(levels(model)) for model in (MLP(3, 8, 10), Airbench(3, 10))] == [3, 8]


@pytest.mark.parametrize("name", TORCHVISION)
def test_models_of_torchvision_have_as_many_depths_as_blocks(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=10)
    assert depths(model, 10).keys() == dict(model.named_parameters()).keys()
    found = levels(model)
    assert len(found) == TORCHVISION[name]
    assert [found[len(found) - 1].rpartition(".")[0]] == classifiers(model, 10)


def test_a_classifier_that_is_registered_first_is_still_the_deepest() -> None:
    model = nn.ModuleDict({"head": nn.Linear(4, 10), "body": nn.Linear(8, 4)})
    assert depths(model, 10) == {"head.weight": 1, "head.bias": 1, "body.weight": 0, "body.bias": 0}


def test_a_convolution_can_be_the_classifier() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1))
    assert classifiers(model, 10) == ["2"]
    assert classifiers(model, 7) == []


@pytest.mark.parametrize(("name", "count", "last"), [("resnet18", 10, ["fc"]), ("vit_tiny_patch16_224", 14, ["head"])])
def test_models_of_timm_have_the_depths_that_they_name(name: str, count: int, last: list[str]) -> None:
    timm = pytest.importorskip("timm", reason="an extra")
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    found = depths(model, 10)
    assert (len(set(found.values())), classifiers(model, 10)) == (count, last)
    assert found.get("cls_token", 0) == found.get("pos_embed", 0) == 0
