"""Carving, limits, the record of the data and normalisation, on arrays small enough to count by hand (D3, D4, D10)."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data import Batches, datasets
from dlrun.data.files import image_folder
from dlrun.errors import UserError
from support.samples import counts, everything, made, raw, ready

RNG = np.random.default_rng(1)


# ---- splits


def test_counts_are_exact_and_splits_do_not_overlap():
    data = ready(raw(made([50, 30, 20])))
    test = data.test().split
    assert counts(test) == [10, 6, 4]
    assert counts(data.val) == [4, 2, 2]  # 8 of 40, 24, 16: 4.0, 2.4, 1.6
    assert counts(data.train) == [36, 22, 14]
    ids = [*data.train.ids, *data.val.ids, *test.ids]
    assert sorted(ids) == sorted(f"train/{number}" for number in range(100))


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ([7, 7, 7], 1 / 3, [3, 2, 2]),  # a tie goes to the lower class
        ([1000, 2, 1], 0.1, [99, 1, 0]),  # rare classes are in both, a single sample trains; the total holds
        ([2] * 30, 0.1, [1] * 30),  # every class in both comes before the fraction
        ([5, 5], 0.99, [4, 4]),
        ([500] * 10, 0.1, [50] * 10),
    ],
)
def test_stratification_bounds(sizes, fraction, expected):
    test = made([2] * len(sizes))
    data = ready(raw(made(sizes), test=lambda: test), val_fraction=fraction)
    assert np.bincount(data.val.labels, minlength=len(sizes)).tolist() == expected
    assert len(data.train) + len(data.val) == sum(sizes)


def test_folds_follow_their_seeds_alone():
    split = made([40, 40])
    first, again, other = (ready(raw(split), split_seed=seed) for seed in (3, 3, 4))
    moved = ready(raw(split), split_seed=3, test_seed=1)
    assert first.val.ids == again.val.ids
    assert first.test().split.ids == again.test().split.ids
    assert first.val.ids != other.val.ids
    assert first.test().split.ids == other.test().split.ids
    assert first.test().split.ids != moved.test().split.ids
    # what a stored run was measured on: a change here breaks every fold that was ever recorded
    digest = "830a1b1db3e4cf3db87ce3ba0ac6d866ce326ec9face9353fcdab8068e06dedd"
    assert ready(datasets.digits()).record()["val_sha256"] == digest


def test_pixels_labels_and_ids_stay_together():
    split = made([30, 20])
    data = ready(raw(split))
    for part in (data.train, data.val, data.test().split):
        numbers = torch.tensor([int(name.split("/")[1]) for name in part.ids])
        assert torch.equal(everything(part), split.images.pixels[numbers])
        assert torch.equal(part.labels, split.labels[numbers])
    assert data.train.images.pixels.data_ptr() == data.val.images.pixels.data_ptr()  # nothing copied


def test_limit_is_stratified_and_leaves_test_alone():
    split = made([600, 300, 100])
    whole, half = ready(raw(split)), ready(raw(split), limit=100)
    assert half.test().split.ids == whole.test().split.ids
    assert counts(half.train) == [54, 27, 9]
    assert counts(half.val) == [6, 3, 1]
    more = ready(raw(split), limit=200)
    small, large = ({*data.train.ids, *data.val.ids} for data in (half, more))
    assert small < large  # a larger slice contains the smaller one
    assert counts(ready(raw(split), limit=5000).train) == counts(whole.train)
    with pytest.raises(UserError, match=r"dataset.limit=5: 3 classes .* dataset.limit=6 or more"):
        ready(raw(split), limit=5)


def test_limit_decodes_nothing_else(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(20):
            Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    data = ready(image_folder(str(tmp_path), image_size=4), limit=6)
    used = {*data.train.ids, *data.val.ids}
    assert len(used) == 6
    for path in tmp_path.glob("*/*.png"):
        if path.relative_to(tmp_path).as_posix() not in used:
            path.write_bytes(b"broken")
    again = ready(image_folder(str(tmp_path), image_size=4), limit=6)
    assert torch.equal(everything(again.train), everything(data.train))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"val_fraction": -0.5}, "dataset.val_fraction=-0.5: must lie between 0 and 1"),
        ({"val_fraction": 1.0}, "dataset.val_fraction=1.0"),
        ({"test_fraction": -0.1}, "dataset.test_fraction=-0.1"),
        ({"split_seed": -1}, "dataset.split_seed=-1"),
        ({"limit": -5}, "dataset.limit=-5"),
    ],
)
def test_bad_keys_are_named(keys, message):
    with pytest.raises(UserError, match=message):
        ready(raw(made([20, 20])), **keys)


def test_classes_without_samples_and_other_shapes_are_errors():
    with pytest.raises(UserError, match="class 'c1'"):
        ready(raw(made([9, 0, 9])))
    with pytest.raises(UserError, match="one class"):
        ready(raw(made([9])))
    data = ready(raw(made([9, 9]), test=lambda: made([2, 2], shape=(4, 4, 3))))
    with pytest.raises(UserError, match=r"test images have .*\(4, 4, 3\), training images \(4, 5, 3\)"):
        data.test()


def test_test_split_is_read_when_asked_for():
    calls = []

    def read_test():
        calls.append(1)
        return made([2, 2])

    data = ready(raw(made([20, 20]), test=read_test))
    Batches(data.train, 8, mean=data.mean, std=data.std)
    assert calls == []
    assert counts(data.test().split) == [2, 2]
    assert calls == [1]


def test_record_is_json_with_the_fold():
    data = ready(raw(made([50, 30, 20])))
    record = json.loads(json.dumps(data.record()))
    assert (record["train"], record["val"]) == (72, 8)
    assert record["train_counts"] == [36, 22, 14]
    assert record["classes"] == ["c0", "c1", "c2"]
    assert record["mean"] == data.mean
    assert record["val_sha256"] == hashlib.sha256("\n".join(data.val.ids).encode()).hexdigest()
    assert (record["split_seed"], record["val_fraction"]) == (0, 0.1)


# ---- normalisation


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mean_and_std_are_those_of_train_alone(dtype):
    split = made([400, 300], shape=(80, 60, 3), dtype=dtype)  # more than one chunk
    split.images.pixels[..., 2] = 7
    data = ready(raw(split))
    split.images.pixels[[int(name[6:]) for name in data.val.ids + data.test().split.ids]] = 255
    data = ready(raw(split))
    x = everything(data.train).numpy().astype(np.float64)
    np.testing.assert_allclose(data.mean, x.mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(data.std[:2], x.std((0, 1, 2))[:2], rtol=1e-12)
    assert data.mean[2] == 7
    assert data.std[2] == 1  # a constant channel


def test_std_of_floats_far_from_zero_is_exact():
    split = made([40, 40], dtype=np.float32)
    split.images.pixels[:] = split.images.pixels / 1024 + 4096
    data = ready(raw(split))
    np.testing.assert_allclose(data.std, everything(data.train).double().numpy().std((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(value):
    split = made([20, 20], dtype=np.float32)
    name = ready(raw(split)).train.ids[11]
    split.images.pixels[int(name[6:]), 1, 1, 1] = value
    with pytest.raises(UserError, match=f"^{name}: .*nan"):
        ready(raw(split))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_batches_are_normalised_and_channels_last(dtype):
    data = ready(raw(made([40, 40], dtype=dtype)))
    batches = list(Batches(data.train, 20, mean=data.mean, std=data.std).epoch(1))
    assert [len(y) for _, y, _ in batches] == [20, 20, 18]  # the short one is included
    x = torch.cat([x for x, _, _ in batches])
    assert x.dtype == torch.float32
    assert batches[0][0].shape == (20, 3, 4, 5)
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    expected = (everything(data.train).double() - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(x.double(), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    assert torch.equal(torch.cat([y for _, y, _ in batches]), data.train.labels)
    assert torch.equal(torch.cat([i for _, _, i in batches]), torch.arange(58))
