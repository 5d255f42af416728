"""dataset.audit: a sample of the files is read before training, the same in every run, and the output says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
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


def test_a_damaged_file_beyond_the_sample_stops_or_is_black(many: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = prepare(image_folder(str(many)), audit=0.1, **KEYS)
    looked = {*sample(len(data.train), 0.1).tolist()}
    number = next(n for n in range(len(data.train)) if n not in looked)
    path = many / data.train.ids[number]
    whole = path.read_bytes()
    path.write_bytes(b"\x89PNG" + b"x" * (len(whole) - 4))  # of the same size, so that no fold changes
    try:
        strict = prepare(image_folder(str(many)), audit=0.1, **KEYS)
        assert strict.train.ids == data.train.ids
        with pytest.raises(Unreadable, match=path.name):
            strict.train.images.take(torch.tensor([number]))
        mild = prepare(image_folder(str(many)), audit=0.1, on_bad="drop", **KEYS)
        for _ in range(2):
            assert not mild.train.images.take(torch.tensor([number])).any()
        assert capsys.readouterr().err.count("it is black") == 1
        with pytest.raises(BadData, match=path.name):
            prepare(image_folder(str(many)), **KEYS)
    finally:
        path.write_bytes(whole)


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
