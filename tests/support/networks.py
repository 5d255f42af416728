"""Networks shared by tests of models, and functions that inspect one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from dlrun.config.compose import builtin_conf
from dlrun.models.cnn import CNN
from dlrun.models.mlp import MLP
from dlrun.models.resnet import ResNet

__all__ = ["RESNETS", "count", "every", "resnet", "small_models"]

CONF = builtin_conf() / "model"
RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet18", "resnet34", "resnet50")


def resnet(name: str, channels: int = 3, classes: int = 10, **options: Any) -> ResNet:
    """The ResNet of an option file, as `model=name` with overrides makes it."""
    conf = OmegaConf.merge({"regularizer": {"dropout": 0.0}, "model": OmegaConf.load(CONF / f"{name}.yaml")})
    keys = OmegaConf.to_container(conf, resolve=True)["model"] | options  # type: ignore[index,call-overload]
    assert keys.pop("_target_") == "dlrun.models.resnet.ResNet"
    return ResNet(channels, classes, **keys)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def every(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, kind)]


def small_models(**style: Any) -> Iterator[nn.Module]:
    yield MLP(1, 8, 10, width=16, **style)
    yield CNN(1, 10, depth=4, width=8, **style)
    yield ResNet(1, 10, blocks=[1, 1], width=8, **style)
    yield ResNet(1, 10, blocks=[1, 1], width=4, block="bottleneck", shortcut="projection", **style)
