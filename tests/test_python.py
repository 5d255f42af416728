"""dlrun from Python: train, load and runs do what the shell does, and a notebook shows a bar."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dlrun as package
from dlrun.errors import UserError
from dlrun.vocabulary import Exit
from support.commands import Outcome

WORDS = [
    "dataset=image_folder", "dataset.root=photos", "dataset.image_size=8", "dataset.cache=none", "model=mlp",
    "model.width=8", "check=none", "trainer.threads=1", "trainer.report=false",
    "trainer.diagnostics=false",
]  # fmt: skip
TWO = [*WORDS, "trainer.epochs=2"]


@pytest.fixture
def photos(here: Path) -> Path:
    """Sixty photos of two classes, of 10 × 12 pixels, bright and dark."""
    for name, least in (("ant", 0), ("bee", 120)):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(30):
            pixels = np.random.default_rng(number).integers(least, least + 130, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / f"photos/{name}/{number:02}.png")
    return here / "photos"


def predicted(path: Path) -> tuple[list[str], np.ndarray[Any, Any]]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["class"] for row in rows], np.array([[float(row["p_ant"]), float(row["p_bee"])] for row in rows])


def test_train_load_and_predict_give_what_the_shell_gives(photos: Path, dlrun: Callable[..., Outcome]) -> None:
    done = package.train([*TWO, "run.dir=run"])
    assert (done.code, done.status, done.path, done.best) == (0, "completed", Path("run"), Path("run"))
    assert f"{done.result['test_acc']:.4f}" in repr(done)
    assert len(repr(done)) < 100
    assert dlrun("train", *TWO, "run.dir=shell").code == 0
    model = done.load(device="cpu")
    theirs = torch.load("shell/checkpoints/best.pt", weights_only=True)["model"]
    ours = torch.load("run/checkpoints/best.pt", weights_only=True)["model"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    assert dlrun("predict", "run", "photos", "--out", "p.csv").code == 0
    shell_classes, shell_p = predicted(Path("p.csv"))
    classes, probabilities = found = model.predict("photos")
    assert classes == shell_classes
    assert model.classes == ["ant", "bee"]
    assert np.abs(probabilities - shell_p).max() <= 1e-6  # the CSV has six digits
    assert found.names == [str(path) for path in sorted(Path("photos").rglob("*.png"))]

    files = [Path("photos/bee/03.png"), Path("photos/ant/07.png")]
    arrays = [np.asarray(Image.open(path)) for path in files]  # of another size than the model takes
    assert np.array_equal(model.predict(files).probabilities, model.predict(arrays).probabilities)
    assert np.array_equal(model.predict(files).probabilities, model.predict(np.stack(arrays)).probabilities)
    mixed = model.predict([files[0], arrays[1]])
    assert np.array_equal(mixed.probabilities, model.predict(files).probabilities)
    assert mixed.classes == model.predict(files).classes
    assert mixed.names[0] == str(files[0])


def test_a_model_is_a_module_of_raw_images(photos: Path) -> None:
    model = package.train([*TWO, "run.dir=run"]).load(device="cpu")
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    assert model.shape == (8, 8, 3)
    raw = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    x = torch.from_numpy(raw).permute(0, 3, 1, 2)
    logits = model(x)
    assert logits.shape == (5, 2)
    assert logits.requires_grad
    expected = torch.softmax(logits.detach().double(), 1).numpy()
    for images in (raw, x, x.numpy()):
        assert np.abs(model.predict(images).probabilities - expected).max() < 1e-6
    assert model.predict(raw[0]).probabilities.shape == (1, 2)


@pytest.mark.slow
def test_ensembles_vote(photos: Path, dlrun: Callable[..., Outcome]) -> None:
    swept = package.train(["-m", *TWO, "seed=1,2", "sweep.dir=sweep"])
    assert swept.code == 0
    assert swept.path == Path("sweep")
    assert swept.best.parent == swept.path
    assert swept.result["status"] == "completed"
    assert package.load("sweep").path == swept.best
    assert dlrun("ensemble", "sweep", "--out", "votes").code == 0
    model = package.load("votes", device="cpu")
    assert dlrun("predict", "votes", "photos", "--out", "p.csv").code == 0
    found = model.predict("photos")
    classes, p = predicted(Path("p.csv"))
    assert found.classes == classes
    assert np.abs(found.probabilities - p).max() <= 1e-6
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8))
    assert torch.allclose(model(raw).exp(), torch.from_numpy(model.predict(raw).probabilities), atol=1e-6)
    table = package.runs()
    assert table.empty  # outputs/ is the default, and these are elsewhere
    table = package.runs("sweep")
    assert sorted(table["seed"]) == [1, 2]
    assert table["val_acc"].dtype == float
    assert table["run"][0] == str(swept.best)


def test_wrong_input_is_one_line(photos: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.epochs"):
        package.train([*WORDS, "trainer.epoch=3"])
    with pytest.raises(UserError, match=r"\['model=cnn', 'seed=1'\]"):
        package.train("model=cnn seed=1")
    with pytest.raises(UserError, match="nowhere"):
        package.load("nowhere")
    assert package.train([*TWO, "run.dir=run"]).code == 0
    model = package.load("run", device="cpu")
    (Path("broken.png")).write_bytes(b"no image")
    for wrong, named in (
        (["photos/ant/00.png", "broken.png"], "broken.png"),
        ("none.png", "none.png"),
        ([], "empty"),
        (np.zeros((2, 3, 4, 5, 6), np.uint8), r"\(2, 3, 4, 5, 6\)"),
        (np.zeros((7, 9, 3), np.float32), r"\(1, 7, 9, 3\)"),
    ):
        with pytest.raises(UserError, match=named):
            model.predict(wrong)
    with pytest.raises(AttributeError):
        package.evaluate  # noqa: B018


def test_a_failed_check_is_a_status(photos: Path) -> None:
    words = [word for word in TWO if word != "check=none"]
    done = package.train([*words, "optimizer=sgd", "optimizer.lr=0", "run.dir=run"])
    assert (done.code, done.status) == (Exit.CHECK_FAILED, "check_failed")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, dlrun; print(sorted({'torch', 'numpy', 'pandas', 'hydra'} & {*sys.modules}), dir(dlrun))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ")


class _Cell:
    """Stands in for IPython: keeps what an output of a cell shows."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        return SimpleNamespace(update=lambda data, raw: self.shown.append(data["text/plain"]))


def test_a_notebook_shows_a_bar_in_place(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlrun import console

    cell = _Cell()
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=cell.display))
    monkeypatch.setattr(console, "IN_NOTEBOOK", 0.0)
    assert package.train([*TWO, "run.dir=run"]).code == 0
    assert any(text.startswith("epoch 1/2 ━") for text in cell.shown)
    assert any("epoch 2/2" in text and "loss" in text for text in cell.shown)
    assert cell.shown[-1] == ""  # removed at the end


@pytest.mark.slow
def test_in_the_kernel_of_a_notebook(photos: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat, nbclient and ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbformat, nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbformat, nbclient and ipykernel")
    cells = [
        f"import dlrun\nrun = dlrun.train({[*WORDS, 'run.dir=run', 'trainer.epochs=60']!r})",
        "print(run.status)\nclasses, p = run.load().predict('photos/ant')\nprint(classes, p.shape)",
        "dlrun.train(['model=nothing'])",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=120).execute()
    first, second, third = (cell["outputs"] for cell in notebook["cells"])
    printed = "".join(out["text"] for out in first if out["output_type"] == "stream")
    assert "epoch  1/60" in printed
    assert "epoch 60/60" in printed
    assert "\x1b" not in printed
    assert [out for out in first if out["output_type"] == "display_data"]
    assert second[0]["text"].startswith("completed")
    assert third[-1]["ename"] == "UserError"
