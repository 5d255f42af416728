"""Augmentations as drawn per sample, in their order, in a run, and as a picture (D7)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor

from dlrun.data import colour, crops, geometry, policies
from dlrun.data.augment import Augment, CropFlip
from dlrun.data.batches import Batches
from dlrun.data.draws import Draws
from dlrun.data.held import Floats
from dlrun.data.images import InMemory
from dlrun.data.splits import Split
from dlrun.errors import UserError
from dlrun.training.experiment import build
from support.commands import Outcome
from support.composed import composed
from support.samples import smooth

COUNT = 6
ALL = {
    **{"pad": 2, "flip": True, "rotate": 15.0, "shift": 0.1, "shear": 10.0, "scale": 0.1, "skew": 0.1},
    **{"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1, "blur": 1.0, "noise": 0.05},
    **{"cutout": 4, "randaugment": 2, "magnitude": 9, "trivialaugment": True, "augmix": 3},
    **{"flip_vertical": True, "sharpness": 0.5, "grayscale": 0.3, "autocontrast": 0.3, "equalize": 0.3},
    **{"posterize": 4, "solarize": 0.3, "erase": 0.5},
}
SINGLE = [{k: v} for k, v in ALL.items() if k != "magnitude"]


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


# ---- drawn, in order


def raw(*shape: int, dtype: torch.dtype = torch.uint8, count: int = COUNT) -> Tensor:
    """Random images (count, H, W, C)."""
    return torch.randint(0, 256, (count, *shape), generator=seeded(3), dtype=torch.uint8).to(dtype)


def test_everything_on_is_every_operation_in_its_order() -> None:
    height, width = 14, 11
    before = raw(height, width, 3)
    found = Augment(**ALL)(before, seeded(5))
    drawn = Draws.of(seeded(5), COUNT)
    x = CropFlip(2, flip_vertical=True)(before, drawn).permute(0, 3, 1, 2) / 255
    u, tangent = drawn.uniform("changes", 22) * 2 - 1, math.tan(math.radians(10))
    held = Floats(x.contiguous())
    policies.rand(held, 2, 9, 0.0, drawn, reflect=False)
    policies.trivial(held, drawn, reflect=False)
    policies.augmix(held, 3, drawn, reflect=False)
    x = held.x
    matrix = geometry.matrices(
        u[0] * math.radians(15),
        (u[1] * tangent, u[2] * tangent),
        1 + 0.1 * u[3],
        (0.1 * u[4], 0.1 * u[5]),
        (0.1 * u[6], 0.1 * u[7]),
        (height, width),
    )
    x = geometry.warp(x, matrix, reflect=False)
    x = colour.sharpness(colour.blur(x, u[12].abs(), 1.0), 1 + 0.5 * u[16])
    x = colour.brightness(x, 1 + 0.2 * u[8])
    x = colour.contrast(x, 1 + 0.2 * u[9])
    x = colour.hue(colour.saturation(x, 1 + 0.2 * u[10]), 0.1 * u[11])
    gray, solar, auto, equal = ((u[k] + 1) / 2 < 0.3 for k in (18, 19, 20, 21))
    for change, chosen in ((colour.grayscale, gray), (colour.autocontrast, auto), (colour.equalize, equal)):
        x = torch.where(chosen[:, None, None, None], change(x), x)
    x = colour.posterize(x, 8 - ((u[17] + 1) / 2 * 5).floor())
    x = colour.solarize(x, torch.where(solar, 0.5, 2.0))
    x = colour.noise(x, 0.05 * u[13].abs(), drawn.normal("noise", x.shape[1:], x.device))
    centre = (((u[15] + 1) / 2 * height).long(), ((u[14] + 1) / 2 * width).long())
    four = torch.full((COUNT,), 4)
    expected = crops.filled(x.permute(0, 2, 3, 1), (centre[0] - 2, centre[1] - 2, four, four), torch.tensor(0.0))
    expected = expected.permute(0, 3, 1, 2)
    box = crops.boxes(drawn, (height, width), (0.02, 0.33), (1 / 3.3, 1 / 0.3), purpose="erase", smaller=True)
    inside = crops.within(box, (height, width)) & (drawn.uniform("erase whether")[0] < 0.5)[:, None, None]
    expected = torch.where(inside[:, None], 0.5, expected)
    torch.testing.assert_close(found, (expected * 255).round().to(torch.uint8).permute(0, 2, 3, 1), atol=1, rtol=0)


@pytest.mark.parametrize("shape", [(9, 12, 3), (12, 9, 1), (8, 8, 4)])
@pytest.mark.parametrize("keys", [*SINGLE, ALL], ids=lambda keys: "+".join(keys))
def test_each_sample_has_draws_of_its_own_and_a_seed_repeats_them(keys: dict, shape: tuple[int, ...]) -> None:
    before = raw(*shape, count=1).expand(24, *shape).contiguous()
    kept, augment = before.clone(), Augment(**keys)
    found = augment(before, seeded(1))
    assert torch.equal(found, augment(before, seeded(1)))
    assert torch.equal(before, kept)
    assert (found.dtype, found.shape, found.is_contiguous()) == (before.dtype, before.shape, True)
    if keys.keys() <= {"autocontrast", "equalize"}:
        return  # images of so few pixels, black and white among them, stay as they are
    colours = keys.keys() <= {"hue", "saturation", "grayscale"}
    if colours and shape[2] != 3:
        assert torch.equal(found, before)
        return
    assert not torch.equal(found, augment(before, seeded(2)))
    different = {image.numpy().tobytes() for image in found}
    few = keys.keys() <= {"flip", "flip_vertical", "grayscale", "autocontrast", "equalize", "solarize", "posterize"}
    assert len(different) >= (2 if few else 6)
    # floats of the same values do the same, before rounding
    floats = Augment(**keys, span=(0.0, 255.0))(before.float(), seeded(1))
    assert floats.dtype == torch.float32
    # thresholds may separate values that differ by rounding
    if not keys.keys() & {"randaugment", "trivialaugment", "augmix", "solarize", "posterize", "equalize"}:
        torch.testing.assert_close(floats, found.float(), atol=0.51, rtol=0)


def test_floats_keep_their_range_whatever_it_is() -> None:
    before = raw(9, 12, 3, dtype=torch.float32) / 255 * 5 - 3  # from -3 to 2
    keys = {**ALL, "randaugment": 0, "trivialaugment": False, "augmix": 0, "solarize": 0.0, "posterize": 0, "pad": 0}
    keys |= {"equalize": 0.0}  # a crop's border is 0 in any units
    found = Augment(**keys, span=(-3.0, 2.0))(before, seeded(1))
    assert found.min() >= -3 - 1e-6
    assert found.max() <= 2 + 1e-6
    expected = Augment(**keys)((before + 3) / 5, seeded(1)) * 5 - 3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_numbers_are_drawn_evenly_to_either_side() -> None:
    flat = torch.full((4000, 2, 2, 1), 0.5)
    seen = Augment(brightness=0.4)(flat, seeded())[:, 0, 0, 0]
    assert torch.histc(seen, 4, 0.3, 0.7).sub(1000).abs().max() < 120
    bright = torch.full((4000, 20, 30, 1), 1.0)
    black = 1 - Augment(shift=0.2)(bright, seeded()).mean(1)[:, :, 0]
    left, right = black[:, 0] > 0.5, black[:, -1] > 0.5  # half a pixel and more of 6
    assert abs(int(left.sum()) - 1850) < 120
    assert abs(int(right.sum()) - 1850) < 120
    assert black[:, 7:-7].max() < 0.21  # only what moved up or down


# ---- in a run


def test_crop_flip_draws_and_costs_what_it_did() -> None:
    exp = build(composed("augment=crop_flip", "dataset.limit=100", "check=none", "trainer.threads=1"))
    augment, before = exp.train.augment, raw(16, 16, 3)
    assert isinstance(augment, Augment)
    assert not augment.beyond_crop
    assert torch.equal(augment(before, seeded(4)), CropFlip(4)(before, seeded(4)))


def mirrored(batches: Batches, epoch: int) -> Tensor:
    """By number of the sample: whether the epoch mirrors it. Unmirrored images get brighter to the right."""
    found = torch.zeros(len(batches.labels), dtype=torch.bool)
    for x, _, index in batches.epoch(epoch):
        found[index] = x[:, 0, 0, 0] > x[:, 0, 0, -1]
    return found


def rising(count: int, seed: int, flip: bool | str = "alternating") -> Batches:
    images = torch.arange(4.0).view(1, 1, 4, 1).repeat(count, 3, 1, 1)
    split = Split(InMemory(images), torch.zeros(count, dtype=torch.int64), [str(n) for n in range(count)])
    return Batches(split, 64, mean=[0.0], std=[1.0], shuffle=True, augment=Augment(flip=flip, pad=0), seed=seed)


def test_alternating_flip_mirrors_each_image_every_other_epoch() -> None:
    batches = rising(1000, seed=3)
    first = mirrored(batches, 1)
    assert 440 < int(first.sum()) < 560
    for epoch in (2, 3, 4, 5):
        assert torch.equal(mirrored(batches, epoch), first if epoch % 2 else ~first)
    # a resumed run rebuilds its batches and starts where it stopped
    assert torch.equal(mirrored(rising(1000, seed=3), 4), ~first)
    assert not torch.equal(mirrored(rising(1000, seed=4), 1), first)
    plain = rising(1000, seed=3, flip=True)
    assert not torch.equal(mirrored(plain, 2), ~mirrored(plain, 1))


def test_flip_is_true_false_or_alternating() -> None:
    assert build(composed("augment.flip=alternating", "dataset.limit=100", "check=none")).train.augment.alternates
    for wrong in ("alternate", "1", "null", "[true]"):
        with pytest.raises(UserError, match=r"^augment\.flip=.*: .*\bfalse\b"):
            build(composed(f"augment.flip={wrong}"))


def test_images_of_the_first_epochs_are_smaller_as_torchvision_makes_them() -> None:
    pixels = smooth(3, 16, 20).permute(0, 2, 3, 1).contiguous()
    split = Split(InMemory(pixels), torch.arange(COUNT), [str(n) for n in range(COUNT)])
    plain = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "shuffle": True, "seed": 5}
    whole = Batches(split, 4, augment=Augment(flip=True, pad=2), **plain)
    early = Batches(split, 4, augment=Augment(flip=True, pad=2, progressive=[[8, 2], [12, 1]]), **plain)
    for epoch, size in ((1, [8, 10]), (2, [8, 10]), (3, [12, 15]), (4, [16, 20]), (0, [16, 20])):
        for (x, y, index), (x0, y0, index0) in zip(early.epoch(epoch), whole.epoch(epoch), strict=True):
            expected = tvf.resize(x0, size, antialias=True) if size[0] < 16 else x0
            torch.testing.assert_close(x, expected, atol=2e-6, rtol=0)
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(y, y0)
            assert torch.equal(index, index0)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["[4,1]"], r": .*\[\[24,4\]\], found 4$"),
        (["[[4,0]]"], r": .*\[\[24,4\]\], found \[4, 0\]$"),
        (["[[8,1]]"], r"=\[\[8, 1\]\]: .*\b8 pixels\b"),
        (["[[4,2],[6,1]]"], r"=\[\[4, 2\], \[6, 1\]\]: .*\btrainer\.epochs=3\b"),
        (["[[4,1]]", "model=mlp"], r"=\[\[4, 1\]\]: .*\b4 pixels.*\bmat1\b"),
    ],
)
def test_smaller_images_that_cannot_be_are_refused_before_training(
    dlrun: Callable[..., Outcome], words: list[str], answer: str
) -> None:
    outcome = dlrun("train", f"augment.progressive={words[0]}", *words[1:], "trainer.epochs=3", "check=none")
    assert outcome.code == 2
    assert re.match(rf"dlrun: augment\.progressive{answer}", outcome.err)
    assert outcome.err.count("\n") == 1


def test_nothing_but_training_images_is_augmented() -> None:
    words = [f"augment.{k}={str(v).lower()}" for k, v in ALL.items()]
    plain = ("dataset.limit=100", "check=none", "trainer.threads=1")
    on, off = build(composed(*plain, *words)), build(composed(*plain))
    for one, other in (
        (on.val, off.val),
        (on.batches(on.data.test().split), off.batches(off.data.test().split)),
    ):
        assert all(torch.equal(a[0], b[0]) for a, b in zip(one.epoch(1), other.epoch(1), strict=True))
    assert not torch.equal(next(on.train.epoch(1))[0], next(off.train.epoch(1))[0])
    assert torch.equal(next(on.train.epoch(1))[0], next(on.train.epoch(1))[0])
    assert not torch.equal(next(on.train.epoch(1))[0], next(on.train.epoch(2))[0])


def test_black_and_white_of_floats_are_measured_on_training_images(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "floats", x=x, y=np.arange(60) % 3)
    words = ("dataset=arrays", f"dataset.path={tmp_path}/floats.npz", "augment=colour", "check=none")
    exp = build(composed(*words, "trainer.threads=1"))
    pixels = exp.data.train.images.take(torch.arange(len(exp.data.train.labels)))
    assert exp.train.augment.span == (float(pixels.min()), float(pixels.max()))


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("augment.rotate=-3", r"\b0\b.*\b180\b"),
        ("augment.hue=2", r"\b0\b.*\b0\.5\b"),
        ("augment.scale=1.0", r"\b0\b.*\b1\b"),
        ("augment.magnitude=31", r"whole number.*\b0\b.*\b30\b"),
        ("augment.cutout=2.5", "whole number"),
        ("augment.rotat=3", r"\baugment\.rotate\b"),
        ("augment.padding=wrap", "zero, reflect"),
    ],
)
def test_a_wrong_value_is_answered_in_one_line(dlrun: Callable[..., Outcome], word: str, answer: str) -> None:
    outcome = dlrun("train", word)
    program, key, rest = outcome.err.split(": ", 2)
    assert (outcome.code, program, key.partition("=")[0]) == (2, "dlrun", word.partition("=")[0])
    assert key in (word, word.partition("=")[0])
    assert re.search(answer, rest)
    assert rest.find("\n") == len(rest) - 1


def test_a_square_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"augment\.cutout=8: .*8×9"):
        Augment(cutout=8)(raw(8, 9, 3), seeded())


# ---- as a picture


def test_show_draws_a_picture_of_what_training_sees(dlrun: Callable[..., Outcome], here: Path) -> None:
    from PIL import Image

    words = ("show", "augment", "augment.rotate=20", "augment.cutout=3", "dataset.limit=100", "trainer.threads=1")
    outcome = dlrun(*words, "run.dir=shown")
    assert (outcome.code, outcome.out, outcome.err) == (0, "picture: shown/show.png\n", "")
    assert [file.name for file in (here / "shown").iterdir()] == ["show.png"]
    with Image.open(here / "shown" / "show.png") as picture:
        assert min(picture.size) > 900
    assert dlrun(*words).code == 0
    (again,) = here.glob("outputs/show/*-digits-cnn-*/show.png")
    assert again.read_bytes() == (here / "shown" / "show.png").read_bytes()  # drawn with the seed


def test_show_says_what_it_cannot_draw(dlrun: Callable[..., Outcome]) -> None:
    off = dlrun("show", "augment", "dataset.limit=100")
    assert off.code == 2
    assert "augment=crop_flip" in off.err
    assert "augment.rotate=15" in off.err
    assert off.err.count("\n") == 1
    for words in ((), ("augmnt",), ("augment=crop_flip",)):
        wrong = dlrun("show", *words)
        assert wrong.code == 2
        assert "dlrun show augment" in wrong.err


def test_show_draws_a_few_images_of_classes_in_turn() -> None:
    from dlrun.probes.augmentations import _classes_in_turn

    assert _classes_in_turn(torch.tensor([2, 2, 0, 1, 1, 0, 2])).tolist() == [2, 3, 0, 5, 4, 1]
    assert _classes_in_turn(torch.tensor([1, 0])).tolist() == [1, 0]
