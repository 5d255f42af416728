"""dataset.audit: a sample of the files is read before training, the same in every run, and the output says so."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data import decoding, prepare
from dlrun.data.bad import BadData
from dlrun.data.datasets import digits
from dlrun.data.files import image_folder
from dlrun.data.first_pass import FirstPass, sample
from dlrun.data.images import Streamed, Unreadable
from dlrun.errors import UserError
from support.commands import Outcome
from support.ranks import ended, started

KEYS: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2, "split_seed": 0}
COUNT = 1200  # of which some 770 train: more than three samples of the least size


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("many")
    for number in range(COUNT):
        path = top / ("ant", "bee")[number % 2] / f"{number:04}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)
    return top


def test_a_sample_is_random_sorted_and_always_the_same() -> None:
    index = sample(100_000, 0.01)
    assert len(index) == 1000
    assert torch.equal(index, sample(100_000, 0.01))
    assert torch.equal(index, index.unique())
    assert len({int(n) % 100 for n in index}) > 90  # a step of 100 might be the step of the classes
    assert torch.equal(sample(200, 0.01), torch.arange(200))
    assert len(sample(1000, 0.01)) == 256


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_is_more_than_0_and_at_most_1(share: float) -> None:
    with pytest.raises(UserError, match=r"dataset\.audit"):
        FirstPass(share=share)


def test_only_the_sample_is_decoded_and_every_moment_is_its(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Counter[str]()
    monkeypatch.setattr("dlrun.data.images.decoded", lambda path, *a: (opened.update([path.name]), real(path, *a))[1])
    real = decoding.decoded
    data = prepare(image_folder(str(many)), audit=0.1, **KEYS)
    assert set(opened.values()) == {1}
    assert opened.total() == 256 + len(sample(len(data.val), 0.1))
    pixels = data.train.images.take(sample(len(data.train), 0.1)).double()
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), rel=1e-12)
    assert data.std == pytest.approx(pixels.std((0, 1, 2), correction=0).tolist(), rel=1e-9)
    assert isinstance(data.train.images, Streamed)
    total, looked = len(data.train) + len(data.val), 256 + len(sample(len(data.val), 0.1))
    assert any(f"dataset.audit=0.1: {looked:,} of {total:,} images" in n for n in data.notes)
    assert data.record()["audit"] == 0.1
    found = data.audit
    assert sum(found.sizes.values()) == 256 + sum(len(sample(len(s), 0.1)) for s in (data.val, data.test().split))
    assert f"a sample of {sum(found.sizes.values()):,} of {COUNT:,} images" in found.sample


def test_no_file_is_hashed_and_folds_stay_when_other_images_come(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrun.data.identity.content_of", lambda path: pytest.fail(f"{path} was read"))
    data = prepare(image_folder(str(many)), audit=0.1, **KEYS)
    try:
        Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(many / "ant" / "0000a.png")
        more = prepare(image_folder(str(many)), audit=0.1, **KEYS)
    finally:
        (many / "ant" / "0000a.png").unlink()
    assert {*data.val.ids} <= {*more.val.ids}
    assert {*data.train.ids} <= {*more.train.ids}


@contextmanager
def damaged(*paths: Path) -> Iterator[None]:
    """Files that cannot be decoded, of the same size, so that no fold changes."""
    whole = [path.read_bytes() for path in paths]
    for path, content in zip(paths, whole, strict=True):
        path.write_bytes(b"\x89PNG" + b"x" * (len(content) - 4))
    try:
        yield
    finally:
        for path, content in zip(paths, whole, strict=True):
            path.write_bytes(content)


def beyond(count: int) -> list[int]:
    """The numbers of the images of a split that the sample has not."""
    looked = {*sample(count, 0.1).tolist()}
    return [n for n in range(count) if n not in looked]


def test_the_next_image_of_the_class_stands_in_for_a_damaged_one_beyond_the_sample(
    many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepare(image_folder(str(many)), audit=0.1, **KEYS)
    ants = [n for n in beyond(len(data.train)) if not data.train.labels[n]]
    last = max(n for n in range(len(data.train)) if not data.train.labels[n])
    after = {n: min((m for m in range(n + 1, last + 1) if not data.train.labels[m]), default=0) for n in ants}
    one = next(n for n in ants if after[n] in ants)  # two in a row
    numbers, expected = torch.tensor([one, after[one], 3]), torch.tensor([after[after[one]]] * 2 + [3])
    with damaged(*(many / data.train.ids[n] for n in (one, after[one]))):
        strict = prepare(image_folder(str(many)), audit=0.1, **KEYS)
        assert strict.train.ids == data.train.ids
        with pytest.raises(Unreadable, match=Path(data.train.ids[one]).name):
            strict.train.images.take(numbers)
        mild = prepare(image_folder(str(many)), audit=0.1, on_bad="drop", **KEYS)
        assert mild.stand_ins is not None
        assert mild.stand_ins.bad == []
        for images, index in [(mild.train.images, numbers), (mild.train.images.subset(numbers), torch.arange(3))]:
            assert torch.equal(images.take(index), data.train.images.take(expected))
        assert [(bad.id, bad.split) for bad in mild.stand_ins.bad] == [
            (data.train.ids[n], "train") for n in (one, after[one])
        ]
        assert mild.record()["replaced"] == 2
        assert capsys.readouterr().err.count("takes its place") == 1
        with pytest.raises(BadData, match=Path(data.train.ids[one]).name):
            prepare(image_folder(str(many)), **KEYS)


def test_an_image_whose_whole_class_is_damaged_has_no_stand_in(many: Path) -> None:
    data = prepare(image_folder(str(many)), audit=0.1, on_bad="drop", **KEYS)
    ants = [n for n in range(len(data.train)) if not data.train.labels[n]]
    with damaged(*(many / data.train.ids[n] for n in ants)), pytest.raises(Unreadable) as caught:
        data.train.images.take(torch.tensor(ants[5:6]))
    assert Path(data.train.ids[ants[5]]).name in str(caught.value)


def test_damaged_images_of_validation_and_test_beyond_the_sample_are_dropped(many: Path) -> None:
    keys = {**KEYS, "val_fraction": 0.4, "test_fraction": 0.25}  # more of both than a sample of the least size
    whole = prepare(image_folder(str(many)), audit=0.1, **keys)
    val, test = (split.ids[beyond(len(split))[0]] for split in (whole.val, whole.test().split))
    with damaged(many / val, many / test):
        data = prepare(image_folder(str(many)), audit=0.1, on_bad="drop", **keys)
        assert data.val.ids == [one for one in whole.val.ids if one != val]
        assert data.test().split.ids == [one for one in whole.test().split.ids if one != test]
        assert [bad.id for bad in (*data.dropped, *data.test().dropped)] == [val, test]
        seen = sum(map(len, (data.train, data.val)))
        assert any(f"{256 + len(whole.val) - 1:,} of {seen:,} images" in note for note in data.notes)
        assert (data.mean, data.std) == (whole.mean, whole.std)


def test_the_audit_lists_a_damaged_image_that_only_it_met_as_bad(many: Path) -> None:
    data = prepare(image_folder(str(many)), audit=0.1, on_bad="drop", **KEYS)
    name = data.train.ids[int(sample(len(data.train), 0.1)[7])]
    with damaged(many / name):
        found = data.audit
    assert [one.id for one in found.of("bad")] == [name]
    assert not found.of("constant")


def test_a_share_of_what_is_no_files_is_an_error() -> None:
    with pytest.raises(UserError, match="no files"):
        prepare(digits(), audit=0.1, **KEYS)


def test_a_damaged_file_of_the_sample_is_bad(many: Path) -> None:
    data = prepare(image_folder(str(many)), audit=0.1, **KEYS)
    path = many / data.train.ids[int(sample(len(data.train), 0.1)[7])]
    whole = path.read_bytes()
    path.write_bytes(b"\x89PNG" + b"x" * (len(whole) - 4))
    try:
        with pytest.raises(BadData, match=path.name):
            prepare(image_folder(str(many)), audit=0.1, **KEYS)
        kept = prepare(image_folder(str(many)), audit=0.1, on_bad="drop", **KEYS)
        assert [bad.id for bad in kept.dropped] == [str(path.relative_to(many))]
        assert len(kept.train) == len(data.train) - 1
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
def test_train_says_that_it_looked_at_a_sample(many: Path, here: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun(
        "train", "dataset=image_folder", f"dataset.root={many}", "dataset.audit=0.1", "model=mlp", "model.width=4",
        "check.only=[data_audit]", "trainer.epochs=1", "trainer.threads=1", "trainer.report=false", "run.dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "dataset.audit=0.1: " in done.out
    assert "of 1,200 images" in Path("run/checks.csv").read_text()


@pytest.mark.slow
def test_runs_with_damaged_images_end_alike_resumed_and_on_two_processes(many: Path, tmp_path: Path) -> None:
    data = prepare(image_folder(str(many)), audit=0.1, val_fraction=0.5, test_fraction=0.2, split_seed=0)
    names = [data.train.ids[n] for n in beyond(len(data.train))[:60:2]]
    names += [data.val.ids[n] for n in beyond(len(data.val))[:3]]
    words = (
        "dataset=image_folder", f"dataset.root={many}", "dataset.audit=0.1", "dataset.on_bad=drop",
        "dataset.split_seed=0", "dataset.val_fraction=0.5", "model=mlp", "model.width=4", "model.norm=none",
        "check=none", "trainer.epochs=2", "trainer.threads=1", "trainer.report=false", "trainer.device=cpu",
        "trainer.precision=fp32",
    )  # fmt: skip
    with damaged(*(many / name for name in names)):
        for name, world in (("whole", 1), ("parts", 1), ("two", 2)):
            first = ("trainer.stop_after=1",) if name == "parts" else ()
            done = ended(started(tmp_path, world, "train", *words, *first, f"run.dir={name}"))
            assert done[0].code == 0, done
        again = ended(started(tmp_path, 1, "resume", "parts"))[0]
        assert again.code == 0, again
    assert f"{len(names) - 3} bad samples omitted (dataset.on_bad=drop)" in again.out
    one, two = (
        torch.load(tmp_path / run / "checkpoints/last.pt", weights_only=True)["model"] for run in ("whole", "parts")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    losses = [json.loads((tmp_path / run / "result.json").read_text())["test_loss"] for run in ("whole", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for run in ("whole", "parts", "two"):
        with (tmp_path / run / "dropped.csv").open() as file:
            assert sorted(row["id"] for row in csv.DictReader(file)) == sorted(names)
        assert json.loads((tmp_path / run / "result.json").read_text())["data"]["replaced"] == len(names) - 3
        with np.load(tmp_path / run / "predictions.npz") as found:
            assert not {*names} & {*found["val_ids"].tolist()}
