"""Batches on the device: the processor's images, order and augmentation; where pixels lie, and how they get there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from support.card import waits

COUNT, SIZE = 240, 60
CHANGES = {
    "crop_flip": ("augment=crop_flip",),
    "reflect": ("augment=crop_flip", "augment.padding=reflect", "augment.pad=2"),
    "alternating": ("augment=crop_flip", "augment.flip=alternating"),
    "affine": ("augment=affine", "augment.skew=0.1"),
    "affine reflected": ("augment=affine", "augment.padding=reflect"),
    "colour": ("augment=colour",),
    "blur": ("augment=blur",),
    "noise": ("augment=noise",),
    "cutout": ("augment=cutout",),
    "randaugment": ("augment=randaugment",),
    "progressive": ("augment=crop_flip", "augment.progressive=[[24,1]]", "trainer.epochs=2"),
    "resized": ("augment=resized_crop",),
    "resized to 24": ("augment=resized_crop", "augment.crop=24", "augment.flip_vertical=true"),
    "erased": ("augment=crop_flip", "augment.erase=0.8"),
    "trivialaugment": ("augment=trivialaugment",),
    "augmix": ("augment=augmix",),
    "tones": (
        *("augment=crop_flip", "augment.sharpness=0.5", "augment.grayscale=0.3", "augment.autocontrast=0.3"),
        *("augment.equalize=0.3", "augment.posterize=3", "augment.solarize=0.3", "augment.repeats=2"),
    ),
}


class SameDraws(TorchFunctionMode):
    """Draws every random number on the processor, whatever the device: generators of devices differ."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(7)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in (torch.rand, torch.randint, torch.randn):
            return func(*args, **kwargs)
        device, out = kwargs.pop("device", None), kwargs.pop("out", None)
        made = func(*args, **{**kwargs, "generator": self.generator})
        if out is not None:
            return out.copy_(made)
        return made if device is None else made.to(device)


def batches(exp: Any, number: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All of an epoch, on the processor."""
    with SameDraws():
        found = list(exp.train.epoch(number))
    x, y, index = (torch.cat([batch[k].cpu() for batch in found]) for k in range(3))
    return x, y, index


@pytest.mark.parametrize("change", CHANGES)
def test_augmented_batches_are_the_processors(built: Callable[..., Any], change: str) -> None:
    words = ("dataset=arrays", "dataset.limit=300", f"trainer.batch_size={SIZE}", *CHANGES[change])
    mine, theirs = built(*words), built(*words, where="cpu")
    plain = built("dataset=arrays", "dataset.limit=300", f"trainer.batch_size={SIZE}", where="cpu")
    (x, y, index), (x_cpu, y_cpu, index_cpu) = batches(mine), batches(theirs)
    assert torch.equal(index, index_cpu)
    assert torch.equal(y, y_cpu)
    assert x.shape == x_cpu.shape
    raw = torch.tensor(mine.data.std)[None, :, None, None] * 1.0
    gap = ((x - x_cpu) * raw).abs()  # in units of the 256 values of a pixel
    # sums in another order may round another way: a value more or less, of few pixels
    if not change.startswith("resized"):  # which has another kernel on the processor, in whole numbers
        assert float((gap > 0.01).float().mean()) < 0.01
    # a coordinate on the edge between two pixels, or a threshold, may fall to the other side, of fewer still
    assert float((gap > 1.01).float().mean()) < 1e-3
    before = batches(plain)[0]
    assert x.shape != before.shape or not torch.equal(x, before)


@pytest.mark.parametrize("words", [("objective=mixup",), ("objective=cutmix", "objective.mixup=0.4")], ids=" ".join)
def test_mixed_batches_are_the_processors(
    built: Callable[..., Any], inner: SimpleNamespace, device: str, words: tuple[str, ...]
) -> None:
    found = []
    for where in (device, "cpu"):
        exp = built("dataset=arrays", "dataset.limit=300", f"trainer.batch_size={SIZE}", *words, where=where)
        (x, y, index), numbers = next(exp.train.epoch(1)), exp.train.numbers(1)[0]
        assert torch.equal(index.cpu(), numbers)
        with waits() as asked:  # the numbers of its samples are known
            made = inner.prepared(exp.objective, inner.Batch(x, y, index, epoch=1, seed=1, sample=numbers))
        assert dict(asked) == {}
        assert made.x.device.type == where
        assert made.x.is_contiguous(memory_format=torch.channels_last)
        assert not torch.equal(made.x, x)
        found.append([part.cpu() for part in (made.x, made.target, made.mix.index)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "words", [("dataset=digits",), ("dataset=arrays",), ("dataset=arrays", "dataset.balance=true")]
)
def test_plain_batches_are_the_processors(built: Callable[..., Any], words: tuple[str, ...]) -> None:
    for number in (1, 2):
        mine, theirs = (batches(built(*words, **more), number) for more in ({}, {"where": "cpu"}))
        assert torch.equal(mine[2], theirs[2])
        assert torch.equal(mine[1], theirs[1])
        torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=1e-5)


def test_draws_of_the_device_follow_from_seed_and_epoch(built: Callable[..., Any]) -> None:
    words = ("dataset=arrays", "dataset.limit=300", "augment=colour")
    first, again, other = (built(*words, f"seed={seed}") for seed in (1, 1, 2))

    def drawn(exp: Any, number: int) -> torch.Tensor:
        return torch.cat([x for x, _, _ in exp.train.epoch(number)])

    before = torch.get_rng_state()
    assert torch.equal(drawn(first, 1), drawn(again, 1))
    assert not torch.equal(drawn(first, 1), drawn(first, 2))
    assert not torch.equal(drawn(first, 1), drawn(other, 1))
    assert torch.equal(before, torch.get_rng_state())


def test_pixels_are_resident_where_they_fit(built: Callable[..., Any], card: torch.device) -> None:
    exp = built("dataset=arrays", "augment=crop_flip")
    assert exp.train.images.pixels.device.type == "cuda"
    assert exp.train.labels.device.type == "cuda"
    with waits() as found:
        epoch = exp.train.epoch(1)
        next(epoch)
        begun = sum(found.values())
        assert len(list(epoch)) == len(exp.train) - 1
    assert sum(found.values()) == begun, "a batch was fetched from the processor"


def test_pixels_that_do_not_fit_come_pinned_and_asynchronous(
    built: Callable[..., Any], card: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = built("dataset=arrays", "dataset.limit=600")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1000, 2000))
    exp = built("dataset=arrays", "dataset.limit=600")
    assert exp.train.images.pixels.device.type == "cpu"
    epoch = exp.train.epoch(1)
    next(epoch)
    with waits() as found:
        rest = list(epoch)
    assert dict(found) == {}
    for (x, y, _), (ours, theirs, _) in zip(rest, list(resident.train.epoch(1))[1:], strict=True):
        assert torch.equal(x, ours)
        assert torch.equal(y, theirs)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of small images, a folder for each class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", COUNT // 2), ("test", 10)):
        for label in ("ant", "bee"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_files_decoded_while_training_are_the_processors(
    built: Callable[..., Any], photos: Path, device: str, inner: SimpleNamespace
) -> None:
    words = ("dataset=image_folder", f"dataset.root={photos}", "dataset.cache=none", "dataset.memory_gb=1e-9")
    mine, theirs = built(*words, "model.depth=2"), built(*words, "model.depth=2", where="cpu")
    assert not hasattr(mine.train.images, "pixels"), "the images were read into memory"
    for ours, others in zip(mine.train.epoch(1), theirs.train.epoch(1), strict=True):
        assert ours[0].device.type == device
        torch.testing.assert_close(ours[0].cpu(), others[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(ours[1].cpu(), others[1])
    epoch = mine.train.epoch(2)
    next(epoch)
    with waits() as found:
        rest = len(list(epoch))
    assert rest > 3
    assert dict(found) == {}
