"""`dlrun predict` with real runs and real files: the run's preprocessing, and unreadable files by name."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dlrun.folders.run import claim
from dlrun.run.execute import execute
from support.commands import Outcome
from support.composed import composed

WORDS = ("check=none", "model.width=4", "trainer.threads=1", "trainer.report=false", "trainer.diagnostics=false")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs on 8 × 8 photographs of three classes, and an ensemble of them."""
    root = tmp_path_factory.mktemp("predict")
    draw = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 6)):
        for label, shade in {"ant": 60, "bee": 120, "cat": 180}.items():
            folder = root / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(shade - 50, shade + 50, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    where = ("dataset=image_folder", f"dataset.root={root / 'photos'}", "trainer.epochs=2", "trainer.batch_size=16")
    for seed in range(3):
        ema = ("trainer.ema=0.9",) if seed == 0 else ()
        cfg = composed(*WORDS, *where, f"seed={seed}", *ema)
        assert execute(cfg, claim(str(root / "sweep" / f"{seed:04d}"), "")) == 0
    return root


@pytest.fixture
def there(sweep: Path, here: Path) -> Path:
    for name in ("photos", "sweep"):
        (here / name).symlink_to(sweep / name)
    return here


def table(name: str = "predictions.csv") -> list[dict[str, str]]:
    with open(name, newline="") as file:
        return list(csv.DictReader(file))


def stored(run: Path, split: str = "test") -> dict[str, Any]:
    with np.load(run / "predictions.npz") as found:
        z = found[f"{split}_logits"].astype(float)
        p = np.exp(z - z.max(1, keepdims=True))
        return dict(zip(found[f"{split}_ids"].tolist(), p / p.sum(1, keepdims=True), strict=True))


@pytest.mark.parametrize("run", ["0000", "0001"])  # the first with averaged weights, if they were better
def test_a_folder_gets_the_probabilities_that_the_run_stored(
    run: str, there: Path, dlrun: Callable[..., Outcome]
) -> None:
    done = dlrun("predict", f"sweep/{run}", "photos/test", "--device", "cpu")
    assert done.code == 0, done.err
    assert re.search(r"\b18\b.*\bpredictions\.csv", done.out)
    expected = stored(there / "sweep" / run)
    rows = table()
    assert len(rows) == 18
    assert list(rows[0]) == ["file", "class", "confidence", "p_ant", "p_bee", "p_cat"]
    for row in rows:
        p = [float(row[f"p_{name}"]) for name in ("ant", "bee", "cat")]
        np.testing.assert_allclose(p, expected[row["file"].removeprefix("photos/")], atol=2e-5)
        assert row["class"] == ("ant", "bee", "cat")[int(np.argmax(p))]
        assert float(row["confidence"]) == max(p)


def test_an_ensemble_predicts_what_its_vote_stored(there: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("ensemble", "sweep", "--out", "e").code == 0
    expected = stored(Path("e"))
    # 18 photos have too few errors to fit a temperature, so it is written here
    file = Path("e/ensemble.yaml")
    for temperature in (1.0, 2.0):
        file.write_text(re.sub(r"temperature: .*", f"temperature: {temperature}", file.read_text()))
        done = dlrun("predict", "e", "photos/test", "--force")
        assert done.code == 0, done.err
        for row in table():
            p = [float(row[f"p_{name}"]) for name in ("ant", "bee", "cat")]
            wanted = np.array(expected[row["file"].removeprefix("photos/")]) ** (1 / temperature)
            np.testing.assert_allclose(p, wanted / wanted.sum(), atol=5e-5)
    whole = file.read_text()
    for key, value in {"vote": "{a: b}", "temperature": ".inf"}.items():
        file.write_text(re.sub(rf"(?m)^{key}: .*", f"{key}: {value}", whole))
        done = dlrun("predict", "e", "photos/test", "--force")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert key in done.err


def test_an_ensemble_without_its_members_names_what_to_copy(there: Path, dlrun: Callable[..., Outcome]) -> None:
    assert dlrun("ensemble", "sweep", "--out", "e").code == 0
    Path("elsewhere").mkdir()
    shutil.copytree("e", "elsewhere/e")
    done = dlrun("predict", "elsewhere/e", "photos/test")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert re.search("^dlrun: elsewhere/e: .*sweep/000[01] .*copy", done.err), done.err


def test_arrays_and_files_of_other_sizes(there: Path, dlrun: Callable[..., Outcome]) -> None:
    files = sorted(Path("photos/test").rglob("*.png"))
    x = np.stack([np.asarray(Image.open(f)) for f in files])
    np.save("x.npy", x)
    np.savez("x.npz", x=x.transpose(0, 3, 1, 2), y=np.zeros(18))
    Image.open(files[0]).resize((16, 16), Image.Resampling.NEAREST).save("large.png")
    done = dlrun("predict", "sweep/0001", "x.npy", "x.npz", "photos/test", "large.png")
    assert done.code == 0, done.err
    rows = table()
    assert len(rows) == 3 * 18 + 1
    by_file = {row["file"]: row["p_ant"] for row in rows}
    for k, file in enumerate(files):
        assert float(by_file[f"x.npy[{k}]"]) == pytest.approx(float(by_file[str(file)]), abs=2e-6)
        assert float(by_file[f"x.npz[{k}]"]) == pytest.approx(float(by_file[str(file)]), abs=2e-6)
    assert "large.png" in by_file


def test_unreadable_images_are_named_and_the_others_predicted(there: Path, dlrun: Callable[..., Outcome]) -> None:
    Path("bad.png").write_bytes(b"no image")
    Path("empty.jpg").touch()
    np.save("odd.npy", np.zeros((2, 5, 5, 3), np.uint8))
    np.save("code.npy", np.array([Boom()], dtype=object))
    done = dlrun("predict", "sweep/0001", "bad.png", "photos/test/ant", "empty.jpg", "odd.npy", "code.npy")
    assert done.code == 0
    for reason in (r"bad\.png: ", r"empty\.jpg: .*empty\)", r"odd\.npy: .*uint8 \(2, 5, 5, 3\)", r"code\.npy: "):
        assert len(re.findall(rf"\b{reason}", done.out)) == 1
    assert re.search(r"\b6 images\b.*\b4\b", done.out)
    assert not Path("boom").exists()
    assert [Path(row["file"]).name for row in table()] == [f"{k:02d}.png" for k in range(6)]


def test_nothing_predicted_leaves_no_file(there: Path, dlrun: Callable[..., Outcome]) -> None:
    Path("bad.png").write_bytes(b"no image")
    done = dlrun("predict", "sweep/0001", "bad.png")
    assert done.code == 1
    assert re.search(r"^dlrun: .*: bad\.png: ", done.err)
    assert not Path("predictions.csv").exists()
    assert not list(Path().glob(".*.tmp"))


def test_a_file_that_is_there_is_not_overwritten_without_force(there: Path, dlrun: Callable[..., Outcome]) -> None:
    Path("predictions.csv").write_text("mine")
    done = dlrun("predict", "sweep/0001", "photos/test/ant")
    assert (done.code, Path("predictions.csv").read_text()) == (2, "mine")
    assert re.search(r"predictions\.csv .*--force", done.err)
    for words in (("sweep/0001", "nowhere"), ("nowhere", "photos/test")):
        assert "dlrun: nowhere: " in dlrun("predict", *words).err  # nothing to overwrite
    assert dlrun("predict", "sweep/0001", "photos/test/ant", "--force").code == 0
    assert len(table()) == 6


class Boom:
    """Creates a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("boom",)


def copied(run: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run, to))


def test_an_untrusted_run_executes_nothing(there: Path, dlrun: Callable[..., Outcome]) -> None:
    evil = copied(there / "sweep" / "0001", there / "evil")
    config = yaml.safe_load((evil / "config.yaml").read_text())
    config["model"] = {"_target_": "evilpackage.Net"}
    config["trust"] = ["evilpackage"]  # a stored trust list does not count
    (evil / "config.yaml").write_text(yaml.safe_dump(config))
    Path("evilpackage.py").write_text("import os; os.mkdir('boom')")
    done = dlrun("predict", "evil", "photos/test/ant")
    assert done.code == 2
    assert "model._target_=evilpackage.Net: " in done.err
    assert "trust=[evilpackage]" in done.err
    code = copied(there / "sweep" / "0001", there / "code")
    for file in (code / "checkpoints").glob("*.pt"):
        torch.save({"model": Boom()}, file)
    done = dlrun("predict", "code", "photos/test/ant")
    assert done.code == 2
    assert re.search(r"^dlrun: .*code/checkpoints/\w+\.pt\b.*\bcheckpoint\b", done.err)
    assert not Path("boom").exists()


def test_mistakes_are_one_line(there: Path, dlrun: Callable[..., Outcome]) -> None:
    Path("nothing").mkdir()
    for words, named in {
        ("sweep/0001", "nowhere.png"): "nowhere.png: ",
        ("sweep/0001", "nothing"): "nothing: no images",
        ("nothing", "photos/test"): "nothing: no completed run",
        ("sweep/0001", "photos", "--out", "no/where.csv"): "--out=no/where.csv: ",
    }.items():
        done = dlrun("predict", *words)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert f"dlrun: {named}" in done.err


def test_what_is_not_finite_or_in_other_units_is_left_out(there: Path, dlrun: Callable[..., Outcome]) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (4, 8, 8, 3)).astype(np.float32)
    np.save("units.npy", pixels / 255)
    pixels[1, 0, 0, 0], pixels[3, 7, 7, 2] = np.nan, np.inf
    np.save("holes.npy", pixels)
    np.savez("whole.npz", x=pixels)
    Path("cut.npz").write_bytes(Path("whole.npz").read_bytes()[:900])
    np.save("bits.npy", (pixels[:1] * 12).astype(np.uint16))  # 12 bits, or 16 and dark
    done = dlrun("predict", "sweep/0000", "units.npy", "holes.npy", "cut.npz", "bits.npy")
    assert done.code == 0, done.err
    rows = {row["file"]: row["p_ant"] for row in table()}
    assert list(rows) == [*(f"units.npy[{k}]" for k in range(4)), "holes.npy[0]", "holes.npy[2]"]
    assert float(rows["units.npy[0]"]) == pytest.approx(float(rows["holes.npy[0]"]), abs=2e-6)
    for reason in (
        r"units\.npy: .*\b255\b",
        r"bits\.npy: .*uint16\b.*uint8\b",
        r"cut\.npz: ",
        r"holes\.npy\[1\]: .*nan",
        r"holes\.npy\[3\]: .*inf",
    ):
        assert len(re.findall(rf"\b{reason}", done.out)) == 1, reason
