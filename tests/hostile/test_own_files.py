"""dlrun deletes and overwrites what carries its own mark, and no file of the user or of another program."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.commands import TINY, Outcome
from support.hostile import change, some
from support.stored import write


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "files",
    [
        ("checkpoints/best.pt", "checkpoints/epoch_0001.pt"),
        ("checkpoints/epoch_0003_val_acc_0.5000.pt",),
        ("log.txt",),
        ("notes.md",),
        ("layers.csv", "metrics.csv"),
        ("result.json",),
    ],
    ids=" ".join,
)
def test_a_folder_of_another_program_is_no_place_for_a_run(
    files: tuple[str, ...], here: Path, dlrun: Callable[..., Outcome]
) -> None:
    for name in files:
        write(here / "theirs" / name, "mine")
    before = content(here / "theirs")
    for words in (["run.dir=theirs", *TINY], ["-m", "seed=1,2", "sweep.dir=theirs", *TINY])[: 1 + ("log.txt" in files)]:
        done = dlrun("train", *words)
        assert done.code == 2
        assert files[0].split("/")[0] in done.err
        assert content(here / "theirs") == before


@pytest.mark.slow
def test_a_run_that_died_before_its_config_can_be_started_again(here: Path, dlrun: Callable[..., Outcome]) -> None:
    write(here / "run/.owner", "{}")
    write(here / "run/log.txt", "loading")
    write(here / "run/checkpoints/.last.pt.123.tmp", "")
    assert dlrun("train", *TINY, "run.dir=run", "dataset.limit=60").code == 0


@pytest.mark.parametrize("damage", some(["lost", "edited", "other scores"], 3))
@pytest.mark.parametrize("keep", some(["all", "top3"], 2))
def test_what_is_kept_is_what_the_checkpoint_remembers(
    keep: str, damage: str, here: Path, dlrun: Callable[..., Outcome]
) -> None:
    """Not what metrics.csv says, which is an ordinary table that people open and save."""
    words = [*TINY[1:], f"trainer.keep={keep}", "trainer.epochs=6", "run.dir=run", "dataset.limit=60"]
    assert dlrun("train", *words, "trainer.stop_after=4").code == 0
    shutil.copytree("run", "whole")
    write(here / "run/checkpoints/epoch_0099_val_acc_0.1000.pt", "of the user")
    table = here / "run/metrics.csv"
    lines = table.read_text().splitlines()
    if damage == "lost":
        table.unlink()
    else:
        change_to = [lines[0], lines[-1]] if damage == "edited" else [lines[0], *lines[:0:-1]]
        table.write_text("\n".join(change_to) + "\n")
    for name in ("run", "whole"):
        assert dlrun("resume", name).code == 0
    found, expected = ({file.name for file in (here / name / "checkpoints").iterdir()} for name in ("run", "whole"))
    assert found == expected | {"epoch_0099_val_acc_0.1000.pt"}


@pytest.mark.slow
def test_names_in_a_checkpoint_delete_nothing_else(theirs: Path, dlrun: Callable[..., Outcome]) -> None:
    """What a checkpoint of somebody else remembers are names of files of single epochs in that run alone."""
    last = theirs / "run/checkpoints/last.pt"
    found = torch.load(last, weights_only=True)
    names = ("../../images.npy", str(theirs / "images.npy"), "best.pt", "../config.yaml", "last.pt")
    found["files"] = [{"name": name, "value": -1.0, "val_loss": 9.0} for name in (*names, *names)]
    torch.save(found, last)
    kept = [theirs / "images.npy", theirs / "run/config.yaml", theirs / "run/checkpoints/best.pt", last]
    assert dlrun("resume", "run").code == 0
    assert all(file.exists() for file in kept)


@pytest.mark.slow
def test_a_folder_for_the_cache_keeps_its_other_files(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for seed, root in enumerate(("photos", "photos2")):
        for k, name in enumerate("ab"):
            for i in range(40):
                pixels = np.random.default_rng([seed, k, i]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
                write(here / root / name / f"{i}.txt", "")
                Image.fromarray(pixels).save(here / root / name / f"{i}.png")
                (here / root / name / f"{i}.txt").unlink()
    digest = "0123456789abcdef" * 2
    for name in ("labels.json", f"{digest}.json", f"{digest}.pack", f"{digest}.lock.txt", "a.hashes", "a.tmp"):
        write(here / "data" / name, '{"annotations": []}')
    before = content(here / "data")
    for root in ("photos", "photos2"):
        words = [word for word in TINY if "limit" not in word]
        cache = (f"dataset.root={root}", "dataset=image_folder", "dataset.cache=data", "dataset.cache_gb=0.0014")
        assert dlrun("train", *words, *cache).code == 0
    after = content(here / "data")
    assert {name: after.get(name) for name in before} == before
    assert len(after) > len(before)  # the cache was in use


def test_pages_and_tables_of_others_are_not_overwritten(theirs: Path, dlrun: Callable[..., Outcome]) -> None:
    for name in ("page.html", "labels.csv", "project/report.html", "project/plots/loss.png"):
        write(theirs / name, "id,label\n")
    write(theirs / "project/config.yaml", "learning_rate: 1\n")
    before = content(theirs)
    for words in (
        "compare run --csv labels.csv",
        "board run --out page.html",
        "report run finished --out page.html",
        "report project",
        "export finished --to torch_export --out labels.csv",
        "predict finished images.npy --out labels.csv",
        "embed finished images.npy --out labels.csv",
        "explain_image finished images.npy --out labels.csv",
        "evaluate finished images.npy --out project",
        "ensemble finished run --out project",
    ):
        done = dlrun(*words.split())
        assert (done.code, done.err.count("\n")) == (2, 1), words
        assert {name: text for name, text in content(theirs).items() if name in before} == before, words
    for _ in range(2):  # its own are
        assert dlrun("compare", "run", "--csv", "table.csv").code == 0
        assert dlrun("board", "run", "--out", "board.html").code == 0


def test_configs_of_others_are_no_runs_to_delete(theirs: Path, dlrun: Callable[..., Outcome]) -> None:
    write(theirs / "project/config.yaml", "learning_rate: 1\n")
    write(theirs / "finished/notes.md", "mine")
    change(theirs / "run/config.yaml", seed=1)
    for words in (["project"], ["finished"], ["--failed", "project"]):
        done = dlrun("rm", *words, "--yes")
        assert (theirs / "project/config.yaml").exists(), done
        assert (theirs / "finished/notes.md").exists()
