"""Unusable samples are refused by name, or omitted and listed, and no other sample moves (D1)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data import prepare
from dlrun.data.arrays import arrays
from dlrun.data.files import image_folder
from dlrun.data.images import InMemory, Streamed
from dlrun.data.splits import Bad, BadData
from dlrun.errors import UserError
from support.photos import BROKEN, KEYS, MEMORY, photo, ready, root, stored, truncate

__all__ = ["root"]  # a fixture


@pytest.mark.parametrize("memory_gb", MEMORY)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("kind", BROKEN)
def test_every_kind_of_broken_file_is_refused_by_name_and_dropped(tmp_path, kind, suffix, memory_gb):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            photo(number + 100 * (name == "b"), (40, 40, 3)).save(tmp_path / name / f"{number}.{suffix}")
    name = ready(tmp_path).train.ids[4]
    truncate(tmp_path / name, kind)
    with pytest.raises(BadData, match=rf"^{name}: .*{BROKEN[kind][1]}.*; .*dataset\.on_bad=drop$") as caught:
        ready(tmp_path, memory_gb=memory_gb)
    assert "\n" not in str(caught.value)
    assert [item.id for item in caught.value.bad] == [name]
    data = ready(tmp_path, memory_gb=memory_gb, on_bad="drop")
    assert [(item.id, item.split) for item in data.dropped] == [(name, "train")]
    assert name not in data.train.ids


@pytest.mark.parametrize("memory_gb", MEMORY)
def test_numbers_of_bad_images_hold_across_the_parts_of_a_scan(root, monkeypatch, memory_gb):
    monkeypatch.setattr("dlrun.data.scan.FILES", 3)
    names = [f"train/{name}/{number:02}.png" for name in ("cat", "dog") for number in (1, 9, 17)]
    for name in names:
        truncate(root / name)
    for workers in (1, 4):
        data = ready(root, on_bad="drop", memory_gb=memory_gb, workers=workers)
        assert [item.id for item in data.dropped] == names


def test_error_names_ten_and_counts_the_rest(root):
    names = [f"train/cat/{number:02}.png" for number in range(12)]
    for name in names:
        truncate(root / name)
    with pytest.raises(BadData, match=r"\b2 more\b.*\b12 of 40\b") as caught:
        ready(root)
    assert all(name in str(caught.value) for name in names[:10])
    assert not any(name in str(caught.value) for name in names[10:])
    assert [item.id for item in caught.value.bad] == names


@pytest.mark.parametrize("memory_gb", MEMORY)
def test_drop_leaves_out_what_is_bad_and_moves_nothing_else(tmp_path, memory_gb):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(40):
            photo(number + 100 * (name == "b")).save(tmp_path / name / f"{number}.png")
    whole = ready(tmp_path)
    before = {"train": whole.train.ids, "val": whole.val.ids, "test": whole.test().split.ids}
    pixels = {
        name: pixel
        for split in (whole.train, whole.val, whole.test().split)
        for name, pixel in zip(split.ids, split.images.take(torch.arange(len(split))), strict=True)
    }
    broken = {"train": before["train"][3:5], "val": before["val"][1:2], "test": before["test"][2:4]}
    for names in broken.values():
        for name in names:
            truncate(tmp_path / name)
    data = ready(tmp_path, memory_gb=memory_gb, on_bad="drop")
    assert isinstance(data.train.images, InMemory if memory_gb else Streamed)
    assert [(item.split, item.id) for item in data.dropped] == [
        (split, name) for split in ("train", "val") for name in broken[split]
    ]
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test().split)):
        assert split.ids == [one for one in before[name] if one not in broken[name]]
        assert split.labels.tolist() == [int(one.startswith("b")) for one in split.ids]
        for number, one in enumerate(split.ids):
            assert torch.equal(split.images.take(torch.tensor([number]))[0], pixels[one])
    assert [(item.split, item.id) for item in data.test().dropped] == [("test", name) for name in broken["test"]]
    assert "test" not in {item.split for item in data.dropped}  # which nothing has changed
    kept = torch.stack([pixels[one] for one in data.train.ids]).double()
    assert data.mean == pytest.approx(kept.mean((0, 1, 2)).tolist(), rel=1e-12)  # without the dropped images
    record = data.record()
    assert (record["train"], record["dropped"]) == (len(before["train"]) - 2, {"train": 2, "val": 1})
    assert data.record(final=True)["dropped"] == {"train": 2, "val": 1, "test": 2}
    assert record["val_sha256"] != whole.record()["val_sha256"]


def test_bad_test_images_are_an_error_too_and_only_when_test_is_read(root):
    truncate(root / "test" / "dog" / "05.png")
    data = ready(root)
    assert data.dropped == ()
    with pytest.raises(BadData, match=r"^test/dog/05\.png: .*on_bad=drop") as caught:
        data.test()
    assert [item.split for item in caught.value.bad] == ["test"]


def test_the_first_file_may_be_broken_though_it_gives_the_size(root):
    truncate(root / "train" / "cat" / "00.png", "empty")
    data = ready(root, on_bad="drop")
    assert data.shape == (8, 9, 3)
    assert [item.id for item in data.dropped] == ["train/cat/00.png"]
    for path in root.glob("train/*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"/train/cat/00\.png: .*\b39 others"):
        ready(root, on_bad="drop")


def test_an_image_of_another_size_is_a_setting_to_change_and_never_dropped(root):
    photo(1, (8, 8, 3)).save(root / "train" / "cat" / "07.png")
    with pytest.raises(UserError, match=r"train/cat/07\.png: .*9×8.*8×8.*dataset\.image_size=64"):
        ready(root, on_bad="drop")


def test_a_system_limit_drops_no_image(root, monkeypatch):
    def no_more_files(*_, **__):
        raise OSError(24, "Too many open files")

    raw = image_folder(str(root))
    monkeypatch.setattr(Image, "open", no_more_files)
    with pytest.raises(UserError, match=r"\(Too many open files\)") as caught:
        prepare(raw, **KEYS, on_bad="drop")
    assert not isinstance(caught.value, BadData)


def test_drop_that_empties_a_class_or_a_split_is_an_error(root):
    for path in root.glob("test/*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="test split"):
        ready(root, on_bad="drop").test()
    for path in root.glob("train/dog/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="class 'dog'"):
        ready(root, on_bad="drop")


def test_values_that_are_not_finite_and_labels_out_of_range_are_listed_together(tmp_path):
    path = stored(tmp_path / "a.npz", x=((7, 1, 2, 0), np.nan), y=(11, -1))
    with pytest.raises(BadData) as caught:
        prepare(arrays(path, num_classes=3), **KEYS)
    # by fold, and labels first since a sample without a class is in no fold
    reasons = {item.id: item.reason for item in caught.value.bad}
    assert list(reasons) == ["train/11", "train/7"]
    assert reasons["train/11"] == "has label -1, expected 0 to 2"
    assert "nan" in reasons["train/7"]
    data = prepare(arrays(path, num_classes=3, on_bad="drop"), **KEYS, on_bad="drop")
    assert sorted(item.id for item in data.dropped) == ["train/11", "train/7"]
    assert len(data.train) + len(data.val) == 58
    assert np.isfinite([*data.mean, *data.std]).all()
    assert not {"train/7", "train/11"} & {*data.train.ids, *data.val.ids}


def test_bad_values_and_labels_of_test(tmp_path):
    path = stored(tmp_path / "a.npz", y_test=(4, 3))
    with pytest.raises(BadData, match=r"^test/4: has label 3, expected 0 to 2; .*dataset\.on_bad=drop"):
        arrays(path)  # now, not after training
    path = stored(tmp_path / "b.npz", x_test=((5, 0, 0, 0), np.inf), y_test=(4, 3))
    data = prepare(arrays(path, on_bad="drop"), **KEYS, on_bad="drop")
    assert data.dropped == ()
    assert len(data.test().split) == 10
    assert [(item.id, item.split) for item in data.test().dropped] == [("test/4", "test"), ("test/5", "test")]
    assert data.dropped == ()


def test_num_classes_makes_a_bad_label_of_a_stray_one(tmp_path):
    path = stored(tmp_path / "a.npz", y=(30, 255))
    with pytest.raises(UserError, match=r"255 at index 30.*dataset\.num_classes=3"):
        arrays(path)
    raw = arrays(path, num_classes=3)
    with pytest.raises(BadData, match=r"^train/30: has label 255, expected 0 to 2"):
        prepare(raw, **KEYS)
    assert prepare(raw, **KEYS, on_bad="drop").dropped == (Bad("train/30", "train", "has label 255, expected 0 to 2"),)


def test_on_bad_is_checked():
    with pytest.raises(UserError, match=r"dataset\.on_bad=ignore: .*error.*drop"):
        prepare(SimpleNamespace(tasks=None), **KEYS, on_bad="ignore")
