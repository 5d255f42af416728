"""Folds follow the content of an image, not its place in a list: what is added, removed or renamed moves no other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data import Raw, Split, identity, prepare
from dlrun.data.arrays import arrays
from dlrun.data.carving import carve, fold_of, slice_of
from dlrun.data.files import image_folder
from dlrun.data.images import InMemory
from dlrun.data.splits import Data
from dlrun.errors import UserError

KEYS = {"val_fraction": 0.1, "test_fraction": 0.2, "split_seed": 0}


def photo(path: Path, *seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for k, name in enumerate(("ant", "bee", "cat")):
        for number in range(100):
            photo(tmp_path / "photos" / name / f"{number:03}.png", k, number)
    return tmp_path / "photos"


def prepared(photos: Path, **keys) -> Data:
    return prepare(image_folder(str(photos)), **{**KEYS, **keys})


def folds(data: Data) -> dict[str, str]:
    splits = {"train": data.train, "val": data.val, "test": data.test().split}
    return {name: split for split, samples in splits.items() for name in samples.ids}


def moved(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [name for name in before if after.get(name, before[name]) != before[name]]


def added(photos: Path) -> None:
    for number in range(20):
        photo(photos / "ant" / f"00x{number}.png", 9, number)


def removed(photos: Path) -> None:
    for number in range(0, 100, 7):
        (photos / "bee" / f"{number:03}.png").unlink()


def renamed(photos: Path) -> None:
    for number in range(0, 100, 7):
        (photos / "bee" / f"{number:03}.png").rename(photos / "bee" / f"a{number}.png")


def another_class(photos: Path) -> None:
    for number in range(30):
        photo(photos / "aaa" / f"{number:03}.png", 8, number)


@pytest.mark.parametrize("split", ["content", "name"])
@pytest.mark.parametrize("happened", [added, removed, renamed, another_class])
def test_no_other_image_moves(photos: Path, happened: Callable[[Path], None], split: str) -> None:
    before = folds(prepared(photos, split=split))
    happened(photos)
    assert moved(before, folds(prepared(photos, split=split))) == []


def test_a_renamed_image_keeps_its_own_fold(photos: Path) -> None:
    before = folds(prepared(photos))
    renamed(photos)
    after = folds(prepared(photos))
    assert all(after[f"bee/a{n}.png"] == before[f"bee/{n:03}.png"] for n in range(0, 100, 7))


def test_the_order_of_arrays_does_not_matter(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3), dtype=np.uint8), np.arange(200) % 2
    order = np.random.default_rng(1).permutation(200)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x=x[order], y=y[order])
    a, b = (folds(prepare(arrays(str(tmp_path / name)), **KEYS)) for name in ("a.npz", "b.npz"))
    assert all(b[f"train/{here}"] == a[f"train/{there}"] for here, there in enumerate(order))
    one, other = (prepare(arrays(str(tmp_path / name)), **KEYS) for name in ("a.npz", "b.npz"))
    assert one.record(final=True)["identity"] == other.record(final=True)["identity"]
    assert one.record(final=True)["test_identity"] == other.record(final=True)["test_identity"]


def test_copies_stay_together_whatever_their_names_and_labels(photos: Path) -> None:
    for number in range(60):
        content = (photos / "ant" / f"{number:03}.png").read_bytes()
        (photos / "ant" / f"copy{number:03}.png").write_bytes(content)
        (photos / "cat" / f"copy{number:03}.png").write_bytes(content)
    for keys in ({}, {"split_seed": 3, "test_seed": 5}, {"folds": 4, "fold": 2}):
        found = folds(prepared(photos, **keys))
        for n in range(60):
            assert len({found[name] for name in (f"ant/{n:03}.png", f"ant/copy{n:03}.png", f"cat/copy{n:03}.png")}) == 1


def test_test_stays_when_the_seed_or_the_fold_of_validation_changes(photos: Path) -> None:
    first = prepared(photos)
    others = [prepared(photos, split_seed=5), prepared(photos, folds=5, fold=3), prepared(photos, limit=60)]
    assert all(one.test().split.ids == first.test().split.ids for one in others)
    assert len({tuple(one.val.ids) for one in (first, *others)}) == 4
    assert prepared(photos, test_seed=1).test().split.ids != first.test().split.ids


def test_sizes_are_binomial() -> None:
    keys = [f"{n}".encode() for n in range(20_000)]
    labels = torch.arange(20_000) % 20
    sizes = []
    for seed in range(20):
        rest, chosen = carve(labels, 0.1, seed, "val", keys)
        assert len(rest) + len(chosen) == 20_000
        sizes.append(torch.bincount(labels[chosen], minlength=20))
    counts = torch.stack(sizes).double()
    assert counts.mean() == pytest.approx(100, abs=3 * (1000 * 0.1 * 0.9 / 400) ** 0.5)
    assert counts.std() == pytest.approx((1000 * 0.1 * 0.9) ** 0.5, rel=0.15)


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_a_small_class_is_on_both_sides(fraction: float) -> None:
    for seed in range(40):
        counts = [1, 2, 3, 6]
        labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
        keys = [bytes([seed, n]) for n in range(12)]
        rest, chosen = carve(labels, fraction, seed, "test", keys)
        there = [torch.bincount(labels[part], minlength=4).bool().tolist() for part in (rest, chosen)]
        assert there == [[True] * 4, [False, True, True, True]]


def test_folds_are_a_partition_and_each_class_is_in_each_fold() -> None:
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 3, 7, 400]))
    keys = [f"{n}".encode() for n in range(411)]
    for given in (keys, None):
        found = fold_of(labels, 5, 0, given)
        assert found[0] == -1  # the only image of its class trains in every fold
        assert set(found[1:].tolist()) == {0, 1, 2, 3, 4}
        assert len(set(found[1:4].tolist())) == 3
        assert set(found[4:11].tolist()) == {0, 1, 2, 3, 4}
        sizes = torch.bincount(found[11:])
        assert sizes.sum() == 400
        assert (sizes - 80).abs().max() <= (1 if given is None else 4 * (400 * 0.2 * 0.8) ** 0.5)


def test_the_folds_of_a_folder_divide_its_training_images(photos: Path) -> None:
    parts = [prepared(photos, folds=3, fold=fold) for fold in range(3)]
    test = set(parts[0].test().split.ids)
    assert sorted(name for part in parts for name in part.val.ids) == sorted(folds(parts[0]).keys() - test)
    assert all({*part.train.ids, *part.val.ids} == folds(parts[0]).keys() - test for part in parts)
    assert {part.record()["fold"] for part in parts} == {0, 1, 2}


def test_a_limit_keeps_all_but_the_images_at_its_edge() -> None:
    labels = torch.arange(400) % 2
    keys = [f"{n}".encode() for n in range(400)]
    few, more = (set(slice_of(labels, limit, 2, 0, keys).tolist()) for limit in (50, 100))
    assert few < more
    grown = slice_of(torch.cat([labels, torch.zeros(1, dtype=torch.int64)]), 100, 2, 0, [*keys, b"new"])
    assert len(more - set(grown.tolist())) <= 1


def test_groups_are_never_divided() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3), dtype=np.uint8))
    names = np.array([f"patient{n % 40}" for n in range(300)])
    whole = Split(InMemory(pixels), torch.arange(300) % 2, [f"{n}" for n in range(300)], groups=names)
    data = prepare(Raw(whole, None, ["a", "b"]), **KEYS)
    splits = [set(split.groups) for split in (data.train, data.val, data.test().split) if split.groups is not None]
    assert len(splits) == 3
    assert sum(map(len, splits)) == len(set().union(*splits)) == 40


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"folds": 1}, "dataset.folds=1"),
        ({"folds": 5, "fold": 5}, "dataset.fold=5"),
        ({"fold": 1}, "dataset.fold=1"),
        ({"test_seed": -1}, "dataset.test_seed=-1"),
        ({"split": "hash"}, "dataset.split=hash"),
    ],
)
def test_impossible_folds_are_named(photos: Path, keys: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        prepared(photos, **keys)


def test_folds_of_a_dataset_with_its_own_validation_are_refused(photos: Path) -> None:
    for name in ("ant", "bee"):
        for split, rows in (("train", range(10)), ("val", range(10, 14))):
            for n in rows:
                photo(photos / "own" / split / name / f"{n}.png", n, len(name))
    with pytest.raises(UserError, match=r"dataset\.folds=2"):
        prepare(image_folder(str(photos / "own")), **KEYS, folds=2)


# ---- digests of files


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content was read for a digest."""
    seen: list[Path] = []
    original = identity._file

    def read(path: Path, name: str) -> bytes:
        seen.append(path)
        return original(path, name)

    monkeypatch.setattr(identity, "_file", read)
    return seen


def settle(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "UNSETTLED", -60.0)


def test_a_second_start_reads_only_new_files(photos, tmp_path, opened, monkeypatch) -> None:
    settle(photos, monkeypatch)
    first = prepared(photos, cache=str(tmp_path / "cache"))
    assert len(opened) == 300
    opened.clear()
    again = prepared(photos, cache=str(tmp_path / "cache"), split_seed=4)
    assert not opened
    assert first.test().split.digests is not None
    photo(photos / "ant" / "new.png", 77)
    photo(photos / "bee" / "000.png", 78)
    changed = prepared(photos, cache=str(tmp_path / "cache"))
    assert sorted(path.name for path in opened) == ["000.png", "new.png"]
    assert folds(changed) == folds(prepared(photos, cache="none"))
    assert again.record()["split_seed"] == 4


@pytest.mark.parametrize("content", [b"", b"nonsense", b"1" + bytes(31), b"1" + bytes(32)])
def test_a_damaged_table_of_digests_is_ignored(photos, tmp_path, opened, monkeypatch, content: bytes) -> None:
    settle(photos, monkeypatch)
    expected = folds(prepared(photos, cache=str(tmp_path / "cache")))
    (table,) = (tmp_path / "cache").glob("*.hashes")
    table.write_bytes(content)
    opened.clear()
    assert folds(prepared(photos, cache=str(tmp_path / "cache"))) == expected
    assert len(opened) == 300


def test_the_digest_of_a_file_that_has_just_changed_is_not_kept(photos, tmp_path, opened) -> None:
    prepared(photos, cache=str(tmp_path / "cache"))
    assert time.time() - os.stat(photos / "cat" / "099.png").st_ctime < 60
    opened.clear()
    photo(photos / "cat" / "099.png", 1234)
    prepared(photos, cache=str(tmp_path / "cache"))
    assert photos / "cat" / "099.png" in opened
