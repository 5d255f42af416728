"""Every operation of an augmentation against torchvision's on fixed parameters (D7)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor

from dlrun.data import colour, crops, geometry
from support.samples import smooth

COUNT = 6


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def same(found: Tensor, expected: list[Tensor], atol: float = 2e-6) -> None:
    torch.testing.assert_close(found, torch.stack(expected), atol=atol, rtol=0)


FACTORS = torch.tensor([0.0, 0.4, 0.9, 1.0, 1.3, 1.9])


@pytest.mark.parametrize("shape", [(3, 12, 17), (1, 9, 8)])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (colour.brightness, tvf.adjust_brightness),
        (colour.contrast, tvf.adjust_contrast),
        (colour.saturation, tvf.adjust_saturation),
        (colour.sharpness, tvf.adjust_sharpness),
    ],
)
def test_factors_do_what_torchvision_does(ours: Callable, theirs: Callable, shape: tuple[int, ...]) -> None:
    x = smooth(*shape)
    same(ours(x, FACTORS), [theirs(image, float(f)) for image, f in zip(x, FACTORS, strict=True)])


def test_hue_turns_as_torchvision_does_and_leaves_gray_alone() -> None:
    turns = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.3, 0.5])
    x = smooth(3, 12, 17)
    x[:, :, :3] = x[:, :1, :3]  # gray pixels have no hue
    x[:, :, 3:5] = 0.0
    same(colour.hue(x, turns), [tvf.adjust_hue(image, float(t)) for image, t in zip(x, turns, strict=True)])
    gray = smooth(1, 9, 8)
    assert torch.equal(colour.hue(gray, turns), gray)


@pytest.mark.parametrize("shape", [(3, 12, 17), (1, 33, 40)])
def test_the_rest_of_randaugment_does_what_torchvision_does(shape: tuple[int, ...]) -> None:
    x = (smooth(*shape) * 255).round() / 255 * 0.8 + 0.1
    x[0, 0] = 0.25  # a constant channel
    same(colour.autocontrast(x), [tvf.autocontrast(image) for image in x])
    thresholds = torch.tensor([0.0, 0.3, 0.5, 0.7, 1.0, math.inf])
    same(
        colour.solarize(x, thresholds),
        [tvf.solarize(image, float(t)) if t <= 1 else image for image, t in zip(x, thresholds, strict=True)],
    )
    whole = (x * 255).round().to(torch.uint8)
    x = whole / 255
    bits = torch.tensor([1, 3, 5, 6, 7, 8])
    expected = [tvf.posterize(image, int(b)) / 255 for image, b in zip(whole, bits, strict=True)]
    same(colour.posterize(x, bits), expected)
    same(colour.equalize(x), [tvf.equalize(image) / 255 for image in whole])
    if shape[0] == 3:
        same(colour.grayscale(x), [tvf.rgb_to_grayscale(image, 3) for image in x])


def test_blur_does_what_torchvision_does() -> None:
    x, sigmas = smooth(3, 12, 17), torch.tensor([0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
    expected = [
        tvf.gaussian_blur(image, [7, 7], [float(s)] * 2) if s else image for image, s in zip(x, sigmas, strict=True)
    ]
    same(colour.blur(x, sigmas, 1.0), expected)


def test_noise_has_the_spread_that_was_asked_for_and_is_clamped() -> None:
    sigmas = torch.linspace(0, 0.1, COUNT)
    drawn = torch.randn(COUNT, 3, 60, 70, generator=seeded())
    out = colour.noise(torch.full(drawn.shape, 0.5), sigmas, drawn)
    assert (out.std((1, 2, 3)) - sigmas).abs().max() < 0.002
    assert (out.mean((1, 2, 3)) - 0.5).abs().max() < 0.003
    out = colour.noise(torch.ones(COUNT, 3, 60, 70), sigmas, drawn)
    assert out.max() == 1
    assert out.min() > 0.5


def test_cutout_erases_what_torchvision_would() -> None:
    x, side = smooth(3, 12, 17), 5
    rows, columns = torch.tensor([0, 3, 6, 9, 11, 11]), torch.tensor([0, 16, 8, 2, 16, 5])
    expected = []
    for image, row, column in zip(x, rows.tolist(), columns.tolist(), strict=True):
        top, left = max(row - side // 2, 0), max(column - side // 2, 0)
        height, width = row - side // 2 + side - top, column - side // 2 + side - left
        black = torch.zeros(3, min(height, 12 - top), min(width, 17 - left))
        expected.append(tvf.erase(image, top, left, *black.shape[1:], black))
    box = rows - side // 2, columns - side // 2, torch.full((COUNT,), side), torch.full((COUNT,), side)
    found = crops.filled(x.permute(0, 2, 3, 1).contiguous(), box, torch.tensor(0.0))
    assert torch.equal(found.permute(0, 3, 1, 2), torch.stack(expected))


ANGLES = torch.tensor([0.0, 30.0, -75.0, 10.0, 0.0, 180.0])
SHEARS = torch.tensor([[0.0, 0.0, 0.0, 12.0, -20.0, 5.0], [0.0, 0.0, 0.0, -7.0, 15.0, 0.0]])
SCALES = torch.tensor([1.0, 1.0, 1.0, 0.8, 1.25, 1.1])
# torchvision shifts by whole pixels
SHIFTS = torch.tensor([[3.0, 0.0, -2.0, 1.0, 0.0, 4.0], [-2.0, 0.0, 1.0, 5.0, 0.0, 0.0]])
NONE = torch.zeros(COUNT)


@pytest.mark.parametrize("shape", [(3, 12, 17), (1, 16, 16)])
def test_one_resampling_is_torchvisions_affine(shape: tuple[int, ...]) -> None:
    x, (height, width) = smooth(*shape), shape[1:]
    tangents, sizes = SHEARS.deg2rad().tan(), torch.tensor([width, height])[:, None]
    parts = (ANGLES.deg2rad(), tuple(tangents), SCALES, tuple(SHIFTS / sizes), (NONE, NONE), (height, width))
    expected = [
        tvf.affine(
            *(x[i], float(ANGLES[i]), SHIFTS[:, i].int().tolist(), float(SCALES[i]), SHEARS[:, i].tolist()),
            interpolation=tvf.InterpolationMode.BILINEAR,
        )
        for i in range(COUNT)
    ]
    same(geometry.warp(x, geometry.matrices(*parts), reflect=False), expected, atol=5e-5)


def test_skew_is_torchvisions_perspective() -> None:
    (height, width), strengths = (12, 17), (torch.tensor([0.0, 0.2, 0.0, 0.3, -0.2, 0.1]), torch.linspace(0.3, -0.3, 6))
    x = smooth(3, height, width)
    still = (NONE, (NONE, NONE), torch.ones(COUNT), (NONE, NONE))
    found = geometry.warp(x, geometry.matrices(*still, strengths, (height, width)), reflect=False)
    corners = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    expected = []
    for image, right, down in zip(x, *strengths, strict=True):
        # torchvision maps four points of the old image to four of the new
        far = [1 + float(right) * u + float(down) * v for u, v in corners]
        old = [[(u / w + 1) * width / 2, (v / w + 1) * height / 2] for (u, v), w in zip(corners, far, strict=True)]
        new = [[(u + 1) * width / 2, (v + 1) * height / 2] for u, v in corners]
        bilinear = tvf.InterpolationMode.BILINEAR
        expected.append(tvf.perspective(image, old, new, interpolation=bilinear))  # type: ignore[arg-type]
    same(found, expected, atol=1e-4)


def test_a_reflected_border_has_no_black() -> None:
    x = torch.full((COUNT, 1, 9, 9), 0.7)
    matrix = geometry.matrices(NONE + 0.5, (NONE, NONE), NONE + 0.7, (NONE + 0.2, NONE), (NONE, NONE), (9, 9))
    torch.testing.assert_close(geometry.warp(x, matrix, reflect=True), x)
    assert geometry.warp(x, matrix, reflect=False).min() == 0
