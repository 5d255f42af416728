"""RandAugment, TrivialAugment, AugMix and random erasing, against torchvision's on fixed parameters (D7)."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor
from torchvision.transforms import v2

from dlrun.data import crops, policies
from dlrun.data.augment import Augment, _drawn
from dlrun.data.batches import Batches
from dlrun.data.draws import REPEAT, Draws
from dlrun.data.held import Bytes, Floats
from dlrun.data.images import InMemory
from dlrun.data.policies import OPERATIONS, RAND, WIDE
from dlrun.data.splits import Split
from support.samples import smooth

SHAPE = 21, 26
# their names, and those of ours
THEIRS = {
    **{"ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "shift_x", "TranslateY": "shift_y", "Rotate": "rotate"},
    **{"Brightness": "brightness", "Color": "saturation", "Contrast": "contrast", "Sharpness": "sharpness"},
    **{"Posterize": "posterize", "Solarize": "solarize", "AutoContrast": "autocontrast", "Equalize": "equalize"},
    "Identity": "identity",
}


def operated(x: Tensor, numbers: Tensor, values: Tensor) -> Tensor:
    """Images (B, C, H, W) of floats after an operation each."""
    held = Floats(x.clone())
    policies.operate(held, numbers, values, reflect=False)
    return held.x


def bytes_of(x: Tensor) -> Tensor:
    return (x * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("kind", "made", "ours"), [("rand", v2.RandAugment, RAND), ("wide", v2.TrivialAugmentWide, WIDE)]
)
def test_every_operation_is_torchvisions_at_every_strength(kind: str, made: type, ours: policies.Strengths) -> None:
    before = bytes_of(smooth(3, *SHAPE, count=2))
    policy = made(interpolation=v2.InterpolationMode.BILINEAR)
    assert {THEIRS[name] for name in made._AUGMENTATION_SPACE} == set(OPERATIONS)
    for theirs, (values, signed) in made._AUGMENTATION_SPACE.items():
        name = THEIRS[theirs]
        number = torch.full((2,), OPERATIONS.index(name))
        found = values(31, *SHAPE) if values(31, *SHAPE) is not None else torch.zeros(31)
        for bin_ in (0, 9, 17, 30):
            for sign in (1, -1) if signed else (1,):
                strength = torch.full((2,), bin_ / 30)
                value = ours.values(number, strength, torch.full((2,), sign))
                after = operated(before / 255, number, value)
                magnitude = float(found[bin_]) * (-sign if name == "rotate" else sign)  # theirs turn the other way
                if name.startswith("shear"):  # theirs shear about a corner
                    angle = math.degrees(math.atan(magnitude))
                    shear = [angle, 0.0] if name == "shear_x" else [0.0, angle]
                    bilinear = v2.InterpolationMode.BILINEAR
                    expected = tvf.affine(before / 255, 0.0, [0, 0], 1.0, shear, bilinear)
                    torch.testing.assert_close(after, expected, atol=2e-3, rtol=0)
                    continue
                if name.startswith("shift"):  # theirs shift by whole pixels
                    side = SHAPE[name == "shift_x"]
                    part = 150 / 331 if kind == "rand" else 32 / 224
                    torch.testing.assert_close(value, torch.full((2,), part * bin_ / 30 * sign))
                    whole = round(part * bin_ / 30 * side) * sign
                    after = operated(before / 255, number, torch.full((2,), whole / side))
                    moved = [whole, 0] if name == "shift_x" else [0, whole]
                    expected = tvf.affine(before, 0.0, moved, 1.0, [0.0, 0.0]) / 255
                    torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)
                    continue
                # on bytes theirs truncate what they blend
                given = (
                    before / 255 if name in ("rotate", "brightness", "saturation", "contrast", "sharpness") else before
                )
                expected = policy._apply_image_or_video_transform(
                    given, theirs, magnitude, policy.interpolation, {torch.Tensor: None}
                )
                if given is not before:
                    torch.testing.assert_close(after, expected, atol=2e-3, rtol=0)
                    continue
                levels = (bytes_of(after).int() - expected.int()).abs()
                assert int((levels > 1).sum()) <= 0.01 * levels.numel(), (theirs, bin_, sign)


def test_each_sample_gets_its_own_operations_in_its_order() -> None:
    x, draws = smooth(3, *SHAPE, count=40), Draws(1, 1, torch.arange(40))
    found = Floats(x.clone())
    policies.rand(found, 2, 12, 0.0, draws, reflect=False)
    numbers = draws.integers("randaugment", len(OPERATIONS), 2)
    signs = draws.integers("randaugment signs", 2, 2) * 2 - 1
    values = RAND.values(numbers, torch.full((2, 40), 12 / 30), signs)
    for k in range(40):
        one = x[k : k + 1]
        for turn in range(2):
            one = operated(one, numbers[turn, k : k + 1], values[turn, k : k + 1])
        torch.testing.assert_close(found.x[k : k + 1], one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [3, 1, 4])
def test_bytes_become_what_floats_do(channels: int) -> None:
    before = bytes_of(smooth(channels, *SHAPE, count=60))
    before[:9] = 70  # constant channels
    for keys in ({"randaugment": 3, "magnitude": 17}, {"trivialaugment": True}, {"augmix": 4}, {"contrast": 0.5}):
        images, augment = before.permute(0, 2, 3, 1).contiguous(), Augment(**keys)
        kept, found = images.clone(), augment(images, Draws(1, 1, torch.arange(60)))
        assert torch.equal(images, kept)
        held = Floats(before / 255)
        draws = Draws(1, 1, torch.arange(60))
        augment._apply(held, draws, _drawn(draws))
        levels = (found.int() - held.bytes().int()).abs()
        assert int((levels > 0).sum()) <= 2e-3 * levels.numel(), keys  # a threshold may lie on a value
    x = before.permute(0, 2, 3, 1).contiguous()
    held = Bytes(x)
    held.tones("brightness", torch.tensor([3, 7]), torch.tensor([0.5, 1.5]))
    held.tones("contrast", torch.tensor([7, 20]), torch.tensor([1.8, 0.3]))
    held.write(out := torch.empty_like(x))
    changed = (out != x).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [3, 7, 20]


def test_choices_and_strengths_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(1, 1, torch.arange(28000))
    counts = torch.bincount(draws.integers("randaugment", len(OPERATIONS))[0], minlength=14)
    assert counts.sub(2000).abs().max() < 220
    flat = Floats(torch.full((4000, 1, 1, 1), 0.4))
    seen: list[Tensor] = []
    monkeypatch.setattr(policies, "operate", lambda x, numbers, values, reflect: seen.append(values))
    policies.rand(flat, 1, 9, 2.0, Draws(1, 1, torch.arange(4000)), reflect=False)
    draws = Draws(1, 1, torch.arange(4000))
    shears = seen[0][draws.integers("randaugment", 14)[0] == 1].abs() / RAND.shear * 30
    assert abs(float(shears.mean()) - 9) < 0.4
    assert abs(float(shears.std()) - 2) < 0.3
    assert shears.max() <= 30


def test_augmix_mixes_the_image_with_three_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    x = smooth(3, *SHAPE, count=300) * 0.5 + 0.25
    sample = torch.arange(300)
    held = Floats(x.clone())
    policies.augmix(held, 3, Draws(1, 1, sample), reflect=True)
    found = held.x
    assert found.shape == x.shape
    assert 0 <= found.min() <= found.max() <= 1 + 1e-5
    # shares add up to 1: a constant image of chains that leave it as it is stays
    same, chains = torch.full((300, 3, 9, 9), 0.5), list[Tensor]()
    monkeypatch.setattr(policies, "operate", lambda x, numbers, values, reflect: chains.append(numbers))
    held = Floats(same.clone())
    policies.augmix(held, 3, Draws(1, 1, sample), reflect=True)
    torch.testing.assert_close(held.x, same)
    lengths = torch.stack(chains).view(3, 3, 300).gt(0).sum(1)
    assert torch.bincount(lengths.flatten()).sub(torch.tensor([0, 300, 300, 300])).abs().max() < 75
    assert (found - x).abs().mean() > 0.01


def test_erasing_is_torchvisions() -> None:
    x, mean = 1 + torch.rand(4000, *SHAPE, 1), 0.3  # no value is the mean by chance
    augment = Augment(erase=0.6, mean_colour=[mean])
    found = augment(x, Draws(1, 1, torch.arange(4000)))
    erased = (found == mean).squeeze(3)
    share = erased.flatten(1).any(1)
    assert abs(float(share.float().mean()) - 0.6) < 0.03
    torch.testing.assert_close(found[~share], x[~share])
    heights, widths = erased.any(2).sum(1)[share].double(), erased.any(1).sum(1)[share].double()
    assert torch.equal(heights * widths, erased.sum((1, 2))[share].double())  # rectangles
    torch.manual_seed(0)
    theirs = v2.RandomErasing(p=1.0)
    asked = [theirs.make_params([torch.zeros(1, *SHAPE)]) for _ in range(3000)]
    expected = torch.tensor([[p["h"], p["w"]] for p in asked if p["v"] is not None]).double()
    quantiles = torch.tensor([0.1, 0.5, 0.9]).double()
    for ours, other in ((heights, expected[:, 0]), (widths, expected[:, 1])):
        assert (ours.quantile(quantiles) - other.quantile(quantiles)).abs().max() <= 1
    box = crops.boxes(Draws(2, 1, torch.arange(3)), SHAPE, (0.1, 0.2), (1.0, 2.0), purpose="erase", smaller=True)
    for k in range(3):
        top, left, height, width = (int(part[k]) for part in box)
        other = tvf.erase(torch.zeros(1, *SHAPE), top, left, height, width, torch.ones(1, 1, 1))
        assert torch.equal(crops.within(box, SHAPE)[k], other[0] > 0)


def test_a_repeated_image_is_changed_anew_each_time() -> None:
    count, repeats = 20, 3
    images = (smooth(3, 8, 8, count=count) * 255).permute(0, 2, 3, 1).contiguous()
    split = Split(InMemory(images), torch.arange(count) % 2, [str(n) for n in range(count)])
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3, "shuffle": True, "seed": 3}
    augment = Augment(rotate=30.0, repeats=repeats, span=(0.0, 255.0))
    x, y, index = (torch.cat(part) for part in zip(*Batches(split, 7, augment=augment, **plain).epoch(1), strict=True))
    assert torch.bincount(index, minlength=count).sort(descending=True).values.tolist() == [3] * 6 + [2] + [0] * 13
    assert torch.equal(y, index % 2)
    first = int(index[0])
    views = x[index == first]
    assert not torch.equal(views[0], views[1])
    for turn in range(repeats):
        expected = augment(images[first : first + 1], Draws(3, 1, torch.tensor([first + turn * REPEAT])))
        torch.testing.assert_close(views[turn : turn + 1].permute(0, 2, 3, 1), expected, atol=1e-3, rtol=0)
    others = torch.cat([index for _, _, index in Batches(split, 7, augment=augment, **plain).epoch(2)])
    assert not torch.equal(others.unique(), index.unique())
