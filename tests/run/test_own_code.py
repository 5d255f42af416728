"""Own code is copied and hashed with a run; later commands say when it changed, and refuse when its answers did."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support import warm
from support.commands import TINY, Outcome

NET = """
import torch
from torch import nn
from blocks import scaled

class Net(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))

    def forward(self, x):
        return scaled(self.layers(x))
"""
OWN = ("model=custom", "model._target_=mynet.Net", "trust=[mynet]")
SHORT = tuple(word for word in TINY if not word.startswith("model."))


def call(folder: Path, *words: str, **env: str) -> Outcome:
    """Run a command in a process of its own, which imports the code as it is now, like the installed script."""
    code = "from dlrun.cli import main; main()"
    return warm.call(folder, *words, code=code, PYTHONDONTWRITEBYTECODE="1", **env)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own code with two completed runs, one that stands after its first epoch, and images."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mynet.py").write_text(NET)
    (folder / "blocks.py").write_text("def scaled(x):\n    return 2 * x\n")
    (folder / "unused.py").write_text("raise ImportError\n")
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 17, (20, 8, 8, 1)).astype(np.uint8))
    for words in (
        ("run.dir=one",),
        ("run.dir=two", "seed=2"),
        ("run.dir=half", "trainer.epochs=2", "trainer.stop_after=1"),
    ):
        done = call(folder, "train", *SHORT, *OWN, *words)
        assert done.code == 0, done.err
    return folder


@pytest.fixture
def place(trained: Path, here: Path) -> Path:
    """A copy of it."""
    shutil.copytree(trained, here, dirs_exist_ok=True)
    return here


def confidences(file: str) -> list[float]:
    """The column of a CSV that `dlrun predict` wrote."""
    with open(file, newline="") as opened:
        return [float(row["confidence"]) for row in csv.DictReader(opened)]


def test_the_imported_files_are_copied_and_hashed(place: Path) -> None:
    copies = {file.name: file.read_bytes() for file in Path("one/code").rglob("*") if file.is_file()}
    assert copies == {name: Path(name).read_bytes() for name in ("mynet.py", "blocks.py")}
    code = json.loads(Path("one/result.json").read_text())["code"]
    assert code["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in copies.items()}
    assert code["not_copied"] == []
    done = call(place, "predict", "one", "images.npy", "trust=[mynet]")
    assert done.code == 0, done.err
    assert "mynet.py" not in done.out
    assert len(confidences("predictions.csv")) == 20


def test_a_change_without_effect_is_named_in_one_line_by_every_command(place: Path) -> None:
    Path("mynet.py").write_text(f"{NET}# a comment\n")
    commands = {
        "predict": ("one", "images.npy"),
        "export": ("one", "--to", "torch_export"),
        "ensemble": ("one", "two", "--fresh"),
        "resume": ("half",),
    }
    for verb, words in commands.items():
        done = call(place, verb, *words, "trust=[mynet]")
        assert done.code == 0, done.err
        lines = [line for line in done.out.splitlines() if "mynet.py" in line]
        assert len(lines) == 1, (verb, done.out)
        assert re.search(rf"\b{words[0]}/code\b", lines[0])
        assert "blocks.py" not in lines[0]
    assert Path("half/code/mynet.py").read_bytes() == Path("mynet.py").read_bytes()  # what it was trained with last
    assert "mynet.py" not in call(place, "predict", "half", "images.npy", "--force", "trust=[mynet]").out


def test_other_answers_are_refused_and_the_stored_code_gives_them_again(place: Path) -> None:
    assert call(place, "predict", "one", "images.npy", "trust=[mynet]", "--out", "before.csv").code == 0
    Path("blocks.py").write_text("def scaled(x):\n    return 2.1 * x\n")
    for words in (
        ("predict", "one", "images.npy", "--out", "after.csv"),
        ("export", "one", "--to", "torch_export", "--out", "after.pt2"),
    ):
        done = call(place, *words, "trust=[mynet]")
        assert (done.code, done.err.count("\n")) == (1, 1), done.err
        assert re.search(
            r"^dlrun: one\b.*\b0\.\d+\b.*\bblocks\.py\b.*`PYTHONPATH=one/code dlrun .*trust=\[mynet\]`", done.err
        )
    assert not Path("after.csv").exists()
    assert not Path("after.pt2").exists()
    done = call(
        place, "predict", "one", "images.npy", "trust=[mynet]", "--out", "again.csv", PYTHONPATH=str(place / "one/code")
    )
    assert done.code == 0, done.err
    assert confidences("again.csv") == confidences("before.csv")
    assert "blocks.py" not in done.out


@pytest.mark.slow
def test_an_ensemble_answers_only_if_its_members_do(place: Path) -> None:
    assert call(place, "ensemble", "one", "two", "--out", "both").code == 0
    assert call(place, "predict", "both", "images.npy", "trust=[mynet]").code == 0
    Path("blocks.py").write_text("def scaled(x):\n    return 3 * x\n")
    done = call(place, "predict", "both", "images.npy", "--force", "trust=[mynet]")
    assert done.code == 1
    assert "blocks.py" in done.err


@pytest.mark.slow
def test_a_deleted_file_counts_as_changed_and_a_large_one_is_only_hashed(place: Path) -> None:
    Path("mynet.py").write_text(NET.replace("from blocks import scaled", "def scaled(x):\n    return 2 * x\n"))
    Path("blocks.py").unlink()
    done = call(place, "predict", "one", "images.npy", "trust=[mynet]")
    assert done.code == 0, done.err
    assert re.search(r"^blocks\.py and 1 more\b", done.out, re.M)
    with open("mynet.py", "a") as file:
        file.write("#" * 1_100_000)
    assert call(place, "train", *SHORT, *OWN, "run.dir=large").code == 0
    code = json.loads(Path("large/result.json").read_text())["code"]
    assert (list(code["files"]), code["not_copied"]) == (["mynet.py"], ["mynet.py"])
    assert not Path("large/code").exists()
    differing = call(place, "diff", "one", "large").out
    assert re.search(r"^code\n  blocks\.py +[0-9a-f]{12}  –\n  mynet\.py +[0-9a-f]{12}  [0-9a-f]{12}$", differing, re.M)
    assert call(place, "rm", "one", "--yes").code == 0
    assert not Path("one").exists()


def test_a_built_in_model_is_held_to_its_probe_as_well(dlrun: Callable[..., Outcome], here: Path) -> None:
    assert dlrun("train", *TINY, "run.dir=run", "trainer.multi_crop=mirror", "trainer.ema=0.9").code == 0
    np.save("images.npy", np.zeros((2, 8, 8, 1), np.uint8))
    assert not Path("run/code").exists()
    assert dlrun("predict", "run", "images.npy").code == 0
    with np.load("run/probe.npz") as found:
        arrays = dict(found)
    assert arrays["images"].shape == (4, 8, 8, 1)
    np.savez("run/probe.npz", **{**arrays, "logits": arrays["logits"] + 0.01})
    done = dlrun("predict", "run", "images.npy", "--force")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert re.search(r"^dlrun: run\b.*\b0\.01\b.*\bdlrun \d", done.err)
    np.savez("run/probe.npz", **{**arrays, "logits": arrays["logits"].astype(str)})
    done = dlrun("predict", "run", "images.npy", "--force")
    assert (done.code, done.err.count("\n")) == (1, 1)
    np.savez("run/probe.npz", **{**arrays, "logits": arrays["logits"] + 1e-6})  # rounding
    assert dlrun("predict", "run", "images.npy", "--force").code == 0
    Path("run/probe.npz").unlink()  # a run of an older version
    assert dlrun("predict", "run", "images.npy", "--force").code == 0
    Path("run/probe.npz").write_bytes(b"no archive")
    assert dlrun("predict", "run", "images.npy", "--force").code == 0


def test_a_model_that_answers_at_random_gets_no_probe(place: Path) -> None:
    Path("mynet.py").write_text(NET.replace("scaled(self.layers(x))", "self.layers(x) + torch.randn(10)"))
    assert call(place, "train", *SHORT, *OWN, "run.dir=random").code == 0
    assert not Path("random/probe.npz").exists()
    assert call(place, "predict", "random", "images.npy", "trust=[mynet]").code == 0
