"""A run that continues keeps the images that it began with, whatever became of the folder meanwhile (D4)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.commands import Outcome

WORDS = (
    "dataset=image_folder", "dataset.root=photos", "dataset.cache=none", "model=mlp", "model.width=4", "check=none",
    "trainer.epochs=3", "trainer.threads=1", "trainer.report=false", "trainer.diagnostics=false",
)  # fmt: skip


def photo(top: Path, name: str, seed: int) -> Path:
    path = top / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def photos(here: Path) -> Path:
    """Sixty images in two classes."""
    for number in range(30):
        photo(here / "photos", f"ant/{number:02}.png", number)
        photo(here / "photos", f"bee/{number:02}.png", 100 + number)
    return here / "photos"


@pytest.fixture
def paused(photos: Path, dlrun: Callable[..., Outcome]) -> Path:
    """A run that stopped after its first epoch, and beside it what it becomes if nothing changes."""
    done = dlrun("train", *WORDS, "trainer.stop_after=1", "run.dir=run")
    assert done.code == 0, done.err
    return Path("run")


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def used(folder: Path, *splits: str) -> list[str]:
    with np.load(folder / "identity.npz") as found:
        ids = found["ids"].tobytes().decode().split("\0")
        return [name for name, split in zip(ids, found["splits"], strict=True) if split in splits]


def add(photos: Path, run: Path) -> str:
    photo(photos, "ant/0005.png", 999)
    return "ant/0005.png"


def remove(photos: Path, run: Path) -> str:
    name = used(run, "train")[0]
    (photos / name).unlink()
    return name


def change(photos: Path, run: Path) -> str:
    name = used(run, "val")[0]
    photo(photos, name, 998)
    return name


def rename(photos: Path, run: Path) -> str:
    name = used(run, "train")[3]
    (photos / name).rename(photos / "bee" / "zz.png" if name.startswith("bee") else photos / "ant" / "zz.png")
    return "zz.png"


def rename_class(photos: Path, run: Path) -> str:
    (photos / "ant").rename(photos / "zant")
    return "zant"


def relabel(photos: Path, run: Path) -> str:
    name = next(name for name in used(run, "train") if name.startswith("ant"))
    (photos / name).rename(photos / "bee" / "was_ant.png")
    return "was_ant.png"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("happened", [add, remove, change, rename, rename_class, relabel])
def test_resume_refuses_what_has_changed_and_names_it(
    photos: Path, paused: Path, dlrun: Callable[..., Outcome], happened: Callable[[Path, Path], str]
) -> None:
    before = (paused / "result.json").read_bytes()
    name = happened(photos, paused)
    done = dlrun("resume", "run")
    assert done.code == 2
    assert name in done.err
    assert len(done.err.strip().splitlines()) == 1
    recoverable = happened in (add, rename)
    assert ("dataset.changed=accept" in done.err) == recoverable
    assert json.loads((paused / "result.json").read_bytes()) == json.loads(before)
    if not recoverable:
        assert dlrun("resume", "run", "dataset.changed=accept").code == 2


@pytest.mark.parametrize("happened", [add, rename])
def test_accepted_changes_continue_with_the_recorded_images(
    photos: Path, paused: Path, dlrun: Callable[..., Outcome], happened: Callable[[Path, Path], str]
) -> None:
    shutil.copytree("run", "undisturbed")
    assert dlrun("resume", "undisturbed").code == 0
    happened(photos, paused)
    done = dlrun("resume", "run", "dataset.changed=accept")
    assert done.code == 0, done.err
    mine, other = result(paused), result(Path("undisturbed"))
    for key in ("val_loss", "test_loss", "val_acc", "test_acc"):
        assert mine[key] == other[key], key
    assert mine["data"] == other["data"]
    assert used(paused, "train", "val", "test") == used(Path("undisturbed"), "train", "val", "test")


def test_an_undisturbed_folder_resumes_and_touched_files_are_the_same(
    photos: Path, paused: Path, dlrun: Callable[..., Outcome]
) -> None:
    for file in photos.glob("*/*.png"):
        file.touch()
    done = dlrun("resume", "run")
    assert done.code == 0, done.err
    assert set(used(paused, "train", "val", "test")) == {p.relative_to(photos).as_posix() for p in photos.glob("*/*")}


def test_rows_of_arrays_that_were_added_are_named(here: Path, dlrun: Callable[..., Outcome]) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (80, 4, 4, 3), dtype=np.uint8), np.arange(80) % 2
    np.savez("mine.npz", x=x[:70], y=y[:70])
    words = ("dataset=arrays", "dataset.path=mine.npz", *WORDS[2:])
    done = dlrun("train", *words, "trainer.stop_after=1", "run.dir=run")
    assert done.code == 0, done.err
    np.savez("mine.npz", x=x, y=y)
    done = dlrun("resume", "run")
    assert done.code == 2
    assert "10 added" in done.err
    assert dlrun("resume", "run", "dataset.changed=accept").code == 0
    y[:70] = 1 - y[:70]
    np.savez("mine.npz", x=x[:70], y=y[:70])
    shutil.copytree("run", "again")
    edited = result(Path("again")) | {"status": "paused"}
    (Path("again") / "result.json").write_text(json.dumps(edited))
    done = dlrun("resume", "again")
    assert done.code == 2
    assert "70 with another label" in done.err


def test_a_run_without_records_of_its_images_is_held_to_its_hashes(
    photos: Path, paused: Path, dlrun: Callable[..., Outcome]
) -> None:
    """As those of older versions are."""
    shutil.copytree("run", "kept")
    (paused / "identity.npz").unlink()
    name = used(Path("kept"), "val")[0]
    content = (photos / name).read_bytes()
    (photos / name).unlink()
    done = dlrun("resume", "run")
    assert done.code == 2
    assert "dataset.changed=accept" not in done.err
    (photos / name).write_bytes(content)
    assert dlrun("resume", "run").code == 0
