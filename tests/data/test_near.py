"""Near duplicates are found whatever was done to the copy, and images that only resemble each other are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_digits

from dlrun.checks.audit import data_duplicates
from dlrun.config.settings import Settings
from dlrun.data import near, prepare
from dlrun.data.files import image_folder
from dlrun.data.images import InMemory
from dlrun.data.splits import Raw, Split
from support.structured import photo

SIDE = 64


def again(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": lambda image: again(image, 40),
    "smaller": lambda image: image.resize((90, 90)),
    "larger": lambda image: image.resize((333, 333)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "cropped": lambda image: image.crop((3, 3, 198, 198)),
    "cropped at a corner": lambda image: image.crop((4, 4, 200, 200)),
    "mirrored": ImageOps.mirror,
    "mirrored and compressed": lambda image: again(ImageOps.mirror(image), 40),
}


def images(pictures: list[Image.Image], side: int = SIDE, mode: str = "RGB") -> InMemory:
    arrays = [np.asarray(one.convert(mode).resize((side, side), Image.Resampling.BILINEAR)) for one in pictures]
    return InMemory(torch.from_numpy(np.stack(arrays).reshape(len(arrays), side, side, -1)))


@pytest.fixture(scope="module")
def others() -> list[Image.Image]:
    return [photo(seed) for seed in range(1, 40)]


@pytest.fixture(scope="module", params=["RGB", "L"])
def train(others: list[Image.Image], request: pytest.FixtureRequest) -> tuple[InMemory, str]:
    """Forty pictures, in colour and gray; the first is that of the copies."""
    return images([photo(0), *others], mode=request.param), request.param


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found_in_another_split(train: tuple[InMemory, str], name: str) -> None:
    pictures, mode = train
    (pair,) = near.near([pictures, images([COPIES[name](photo(0))], mode=mode)]) or ()
    assert (pair.number, pair.other, pair.mirrored) == (40, 0, "mirrored" in name)
    assert near.EDGES <= pair.similarity <= 1.0001


def test_distances_are_the_same_without_the_newest_numpy(
    others: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [images([photo(0), *others, COPIES["compressed"](photo(0))])]
    found = near.near(data)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert near.near(data) == found != []


def test_pairs_are_those_of_a_comparison_of_all_with_all() -> None:
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 256, (300, near.BANDS), dtype=np.uint8)
    codes[150:] = codes[:150] ^ (1 << draw.integers(0, 8, (150, near.BANDS))).astype(np.uint8)  # 8 bits differ
    codes[150:, : near.BANDS // 2] = codes[:150, : near.BANDS // 2]  # now 4
    bits = np.unpackbits(codes, axis=1)
    distance = (bits[:, None] != bits[None]).sum(-1)
    expected = [(a, b) for a, b in np.argwhere(distance <= near.DISTANCE).tolist() if a < b]
    first, second = near._close(codes, codes)
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert len(expected) >= 150


def digits(side: int) -> InMemory:
    found = load_digits().images[:300] * 15.9
    return images([Image.fromarray(np.pad(image, 2).astype(np.uint8)) for image in found], side, "L")


def tilted(count: int) -> InMemory:
    """Frames of one camera: the same picture with a small change in each."""
    frames = []
    for k in range(count):
        pixels = np.asarray(photo(0)).copy()
        pixels[(7 * k) % 190 : (7 * k) % 190 + 8, :8] = 0
        frames.append(Image.fromarray(pixels))
    return images(frames)


NOISE = InMemory(torch.from_numpy(np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)))
PLAIN = InMemory(torch.full((50, 64, 64, 3), 77, dtype=torch.uint8))
FLOATS = InMemory(torch.zeros(50, 64, 64, 3))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (digits(8), []), (digits(28), []), (digits(64), []), (NOISE, []), (PLAIN, []), (FLOATS, []),
        (tilted(30), None), (PLAIN.subset(torch.arange(1)), []), (PLAIN.subset(torch.arange(0)), []),
    ],
    ids=["8", "28", "64", "noise", "plain", "floats", "frames", "one", "none"],
)  # fmt: skip
def test_no_false_alarm(data: InMemory, expected: Any) -> None:
    assert near.near([data]) == expected


def test_the_audit_lists_them_and_the_check_warns(tmp_path: Path, others: list[Image.Image]) -> None:
    for k, image in enumerate(others):
        path = tmp_path / f"{'test' if k < 8 else 'train'}/{'ab'[k % 2]}/{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    COPIES["smaller"](others[0]).save(tmp_path / "train/a/small.jpg")  # of test/a/0.png
    COPIES["mirrored"](others[20]).save(tmp_path / "train/b/mirrored.png")  # of train/a/20.png
    raw = image_folder(str(tmp_path), image_size=SIDE)
    data = prepare(raw, val_fraction=0.1, test_fraction=0.2, split_seed=0)
    pairs = {frozenset((one.id, one.other_id)): one for one in data.audit.of("near duplicate")}
    leak = frozenset(("test/a/0.png", "train/a/small.jpg"))
    contradiction = frozenset(("train/b/mirrored.png", "train/a/20.png"))
    assert pairs.keys() == {leak, contradiction}
    assert pairs[leak].split == "test"
    assert {pairs[contradiction].label, pairs[contradiction].other_label} == {"a", "b"}
    assert "mirrored" in pairs[contradiction].detail
    cfg = Settings.of({"dataset": {"limit": 0, "balance": False}})
    found = data_duplicates(SimpleNamespace(data=data, num_classes=2, cfg=cfg))  # type: ignore[arg-type]
    assert found.status == "warn"
    assert "2 near duplicates" in found.value
    assert all(name in found.message for name in ("train/a/small.jpg", "train/b/mirrored.png"))


def test_images_that_all_look_alike_are_not_listed(tmp_path: Path) -> None:
    split = Split(tilted(30), torch.arange(30) % 2, [str(k) for k in range(30)])
    data = prepare(Raw(split, None, ["a", "b"]), val_fraction=0.2, test_fraction=0.2, split_seed=0)
    assert (data.audit.alike, data.audit.of("near duplicate")) == (True, [])
