"""Shifted, cropped, turned and mirrored copies across splits are found, and other images are not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from dlrun.checks.audit import data_duplicates
from dlrun.config.settings import Settings
from dlrun.data import moved, near, prepare
from dlrun.data.images import InMemory
from dlrun.data.splits import Raw, Split
from support.structured import photo

COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "shifted": lambda image: ImageOps.expand(image, 24).crop((9, 30, 209, 230)),
    "shifted and mirrored": lambda image: ImageOps.mirror(ImageOps.expand(image, 24).crop((42, 12, 242, 212))),
    "the middle": lambda image: image.crop((12, 12, 188, 188)),
    "a corner": lambda image: image.crop((0, 0, 178, 178)),
    "the other corner": lambda image: image.crop((22, 22, 200, 200)),
    "turned": lambda image: image.rotate(9, Image.Resampling.BILINEAR),
    "turned and mirrored": lambda image: ImageOps.mirror(image.rotate(-12, Image.Resampling.BILINEAR)),
}
COUNT, EACH = 60, 10


def images(pictures: list[Image.Image], side: int) -> InMemory:
    arrays = [np.asarray(one.resize((side, side), Image.Resampling.BILINEAR)) for one in pictures]
    return InMemory(torch.from_numpy(np.stack(arrays)))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [photo(seed) for seed in range(2 * COUNT)]


@pytest.mark.parametrize("side", [64, 24])
def test_most_copies_are_found_whichever_split_has_the_original(pictures: list[Image.Image], side: int) -> None:
    train, others = images(pictures[:COUNT], side), images(pictures[COUNT : COUNT + 5], side)
    copies = images([change(one) for change in COPIES.values() for one in pictures[:EACH]], side)
    for splits in ([train, copies], [copies, others, train]):
        found = moved.moved(splits)
        last = sum(len(part) for part in splits[:-1])
        hits = dict.fromkeys(COPIES, 0)
        for one in found:
            here, there = one.number - last, one.other
            copy, original = (here, there) if splits[0] is train else (there, here)
            assert copy % EACH == original
            name = list(COPIES)[copy // EACH]
            assert (one.moved, one.mirrored) == (True, "mirrored" in name)
            hits[name] += 1
        assert min(hits.values()) >= EACH / 2, hits


def test_the_comparison_of_whole_images_misses_them(pictures: list[Image.Image]) -> None:
    train = images(pictures[:COUNT], 64)
    copies = images([COPIES["shifted"](one) for one in pictures[:10]], 64)
    assert near.near([train, copies]) == []


def digits(side: int, frame: int) -> InMemory:
    found = torch.from_numpy(np.pad(load_digits().images[:400], ((0, 0), (frame, frame), (frame, frame))) * 15.9)
    made = torch.nn.functional.interpolate(found[:, None].float(), (side, side), mode="bilinear").to(torch.uint8)
    return InMemory(made.permute(0, 2, 3, 1).repeat(1, 1, 1, 3))


def one_camera(count: int) -> InMemory:
    pixels = np.stack([np.asarray(photo(0, 64)) for _ in range(count)])
    for k in range(count):
        pixels[k, k : k + 3, :9] = 0
    return InMemory(torch.from_numpy(pixels))


@pytest.mark.parametrize(("side", "frame"), [(8, 0), (28, 2), (64, 0)])
def test_digits_are_no_copies(side: int, frame: int) -> None:
    data = digits(side, frame)
    assert moved.moved([data.subset(torch.arange(250)), data.subset(torch.arange(250, 400))]) == []


def test_other_pictures_noise_and_a_fixed_camera_are_no_copies(pictures: list[Image.Image]) -> None:
    noise = InMemory(torch.from_numpy(np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)))
    for data in (images(pictures, 64), images(pictures, 24), noise, one_camera(40)):
        half = len(data) // 2
        parts = [data.subset(torch.arange(half)), data.subset(torch.arange(half, len(data)))]
        assert moved.moved(parts) == []
    assert moved.moved([noise]) == moved.moved([noise, noise.subset(torch.arange(0))]) == []


def test_the_audit_lists_images_augmented_before_the_split(pictures: list[Image.Image]) -> None:
    train = [*pictures, *(COPIES["shifted and mirrored"](one) for one in pictures[:30])]
    split = Split(images(train, 32), torch.arange(len(train)) % 2, [str(k) for k in range(len(train))])
    data = prepare(Raw(split, None, ["a", "b"]), val_fraction=0.2, test_fraction=0.2, split_seed=0)
    found = data.audit.of("near duplicate")
    assert len(found) >= 8
    assert all(abs(int(one.id) - int(one.other_id)) == 2 * COUNT for one in found)
    assert all("mirrored, moved" in one.detail and one.split != one.other_split for one in found)
    cfg = Settings.of({"dataset": {"limit": 0, "balance": False}})
    verdict = data_duplicates(SimpleNamespace(data=data, num_classes=2, cfg=cfg))  # type: ignore[arg-type]
    assert (verdict.status, f"{len(found)} near duplicates" in verdict.value) == ("warn", True)
