"""Every option in conf/ is composed, built and held to its family's contract; a new YAML file needs no test."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dlrun.config.compose import builtin_conf
from dlrun.data.batches import Batch
from dlrun.data.crops import fed
from dlrun.training.experiment import build
from support.composed import composed
from support.tars import labelled, tar

CHEAP = ("trainer.threads=1", "dataset.limit=100", "check=none")
# options that need external data or packages: what this test uses instead
NEEDS = {
    "dataset=image_folder": ("photos", "dataset.root={}"),
    "dataset=arrays": ("arrays", "dataset.path={}"),
    "dataset=table": ("table", "dataset.csv={} dataset.image_size=16"),
    "dataset=shards": ("tar", "dataset.urls={}"),
    "dataset=huggingface": ("photos", "dataset.path={}"),
    "model=custom": ("", "model._target_=torchmodel.Net trust=[torchmodel]"),
    "objective=distill": ("teacher", "objective.teacher={}"),
    "objective=pseudo_label": ("photos", "objective.unlabelled={}"),
    "objective=fixmatch": ("photos", "objective.unlabelled={}"),
    "experiment=cifar10_speedrun": ("", "dataset=digits augment.progressive=[[6,1]]"),  # its own dataset is a download
    "experiment=scratch": ("photos", "dataset.root={} dataset.image_size=16 model.width=8"),
    "experiment=fast": ("photos", "dataset.root={} dataset.image_size=16 model.width=8"),
    "experiment=linear_probe": ("photos", "dataset.root={} model.name=mobilenet_v3_small model.weights=null"),
    "experiment=finetune": ("photos", "dataset.root={} model.name=mobilenet_v3_small model.weights=null"),
    "model=torchvision": ("", "model.name=mobilenet_v3_small"),
    "model=timm": ("", "model.name=test_resnet dataset.limit=40"),
}
FURTHER = ("optimizer=lion", "optimizer=lamb", "optimizer=adan")  # of an extra
DOWNLOADED = (
    "mnist",
    "fashion_mnist",
    "kmnist",
    "cifar10",
    "cifar100",
    "svhn",
    "stl10",
)  # in data/test_files.py


def options() -> Iterator[str]:
    for file in sorted(builtin_conf().glob("*/*.yaml")):
        if file.parent.name not in ("hydra", "study") and not (
            file.parent.name == "dataset" and file.stem in DOWNLOADED
        ):
            yield f"{file.parent.name}={file.stem}"


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    for label in ("ant", "bee"):
        for i in range(20):
            path = tmp_path / "photos" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    np.savez(tmp_path / "arrays", x=np.random.default_rng(0).random((60, 8, 8, 1)), y=np.arange(60) % 3)
    tar(tmp_path / "train.tar", labelled(range(40)))
    rows = [f"photos/{label}/{i},{label}\n" for label in ("ant", "bee") for i in range(20)]
    (tmp_path / "table.csv").write_text("id,label\n" + "".join(rows))
    (tmp_path / "torchmodel.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, in_channels, num_classes, image_size):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.sampled(3)
@pytest.mark.parametrize("option", [*options()])
def test_every_option_builds_and_makes_a_step(option: str, outside: Path) -> None:
    from dlrun.training import loop

    group, _, name = option.partition("=")
    if option in FURTHER:
        pytest.importorskip("pytorch_optimizer", reason="the extra optimizers is not installed")
    if group == "logger" and name != "none":
        pytest.importorskip(name, reason=f"the extra {name} is not installed")
    for extra, package in (("huggingface", "datasets"), ("shards", "braceexpand")):
        if name == extra:
            pytest.importorskip(package, reason=f"the extra {extra} is not installed")
    if option == "model=timm":
        pytest.importorskip("timm", reason="the extra timm is not installed")
    where, words = NEEDS.get(option, ("", ""))
    if where == "teacher":
        from dlrun.folders.run import claim
        from dlrun.run.execute import execute

        tiny = (*CHEAP, "trainer.epochs=1", "trainer.report=false", "model.width=4")
        assert execute(composed(*tiny), claim(str(outside / "teacher"), "")) == 0
    source = {
        "photos": "photos",
        "arrays": "arrays.npz",
        "table": "table.csv",
        "tar": "train.tar",
        "teacher": "teacher",
    }.get(where, "")
    more = words.format(outside / source).split()
    limit = ["dataset.limit=0"] if where == "photos" or "dataset" in option else []
    exp = build(composed(*CHEAP, *limit, option, *more))
    x, y, _ = next(exp.train.epoch(exp.cfg.trainer.epochs))  # the first may have smaller images
    height, width, channels = fed(exp.cfg.augment, exp.data.shape)
    assert x.shape[1:] == (channels, height, width)
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 1.0  # normalised: raw pixels would be around 100
    logits = exp.model(x)
    assert logits.shape == (len(y), exp.num_classes)
    loss = exp.loss(logits, y)
    assert loss.shape == ()
    assert math.isfinite(loss.item())
    before = [p.detach().clone() for p in exp.model.parameters()]
    exp.scheduler.set(0.5)
    assert torch.isfinite(torch.stack(loop.step(exp, Batch(x, y)))).all()
    assert any(not torch.equal(a, b) for a, b in zip(before, exp.model.parameters(), strict=True))
    assert isinstance(exp.model, nn.Module)
