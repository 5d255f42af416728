"""`dlrun export`: one file that maps raw pixels to the run's logits, or none."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.folders.run import claim
from dlrun.run.execute import execute
from support.commands import TINY, Outcome
from support.composed import composed
from support.photos import photo, root

__all__ = ["root"]  # a fixture


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    assert execute(composed(*TINY), claim(str(folder), "")) == 0
    return folder


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about its own internals
def test_a_file_of_torch_maps_raw_pixels_to_the_stored_logits(run: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("export", str(run), "--to", "torch_export", "--out", "m.pt2")
    assert done.code == 0, done.err
    assert float(re.findall(r"\d\S*\d", done.out)[-1]) <= 1e-4
    from dlrun.inference.predictor import rebuilt

    data = rebuilt(run, []).data
    raw = data.val.images.take(torch.arange(len(data.val))).permute(0, 3, 1, 2)
    assert raw.dtype == torch.uint8
    model = torch.export.load("m.pt2").module()
    with np.load(run / "predictions.npz") as found:
        for batch in (raw, raw[:1], raw[:7]):
            np.testing.assert_allclose(model(batch).detach().numpy(), found["val_logits"][: len(batch)], atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_differs_is_refused(
    run: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlrun.inference import export

    def wrong(model: torch.nn.Module, images: torch.Tensor, about: object) -> object:
        return b"", lambda x: model(torch.from_numpy(x)).detach().numpy() + 0.01

    monkeypatch.setitem(export.KINDS, "torch_export", wrong)
    done = dlrun("export", str(run), "--to", "torch_export")
    assert done.code == 1
    assert re.search(rf"^dlrun: {run}: .*\b0\.01\b", done.err)
    assert not list(Path().iterdir())


def test_without_what_verifies_it_nothing_is_written(
    run: Path, dlrun: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = dlrun("export", str(run), "--to", "onnx")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert re.search(r"--to onnx\b.*onnx, onnxscript, onnxruntime\b.*pip install 'dlrun\[onnx\]'", done.err)
    assert not list(Path().iterdir())


@pytest.mark.filterwarnings("ignore")
def test_onnx_gives_the_stored_logits(run: Path, dlrun: Callable[..., Outcome]) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra onnx is not installed")
    import onnxruntime

    done = dlrun("export", str(run), "--to", "onnx")
    assert done.code == 0, done.err
    from dlrun.inference.predictor import rebuilt

    data = rebuilt(run, []).data
    raw = data.val.images.take(torch.arange(len(data.val))).permute(0, 3, 1, 2).contiguous().numpy()
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    with np.load(run / "predictions.npz") as found:
        for batch in (raw, raw[:1]):
            logits = session.run(None, {"images": batch})[0]
            np.testing.assert_allclose(logits, found["val_logits"][: len(batch)], atol=1e-4)


PHOTOS: dict[str, tuple[Image.Image, dict[str, object]]] = {
    "wide.jpg": (photo(1, (40, 61, 3)), {}),
    "tall.png": (photo(2, (53, 20, 3)), {}),
    "exact.png": (photo(3, (16, 16, 3)), {}),
    "small.webp": (photo(4, (7, 11, 3)), {"lossless": True}),
    "clear.png": (photo(5, (30, 30, 4)), {}),
    "gray.png": (photo(6, (25, 31)), {}),
    "palette.png": (photo(7, (25, 31, 3)).convert("P"), {"transparency": 3}),
    "deep.png": (Image.fromarray(np.random.default_rng(8).integers(0, 2**16, (19, 23), dtype=np.uint16)), {}),
}
KINDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}


@pytest.fixture
def photographed(root: Path, tmp_path: Path, dlrun: Callable[..., Outcome]) -> Path:
    """A run trained on crops of photos of 16 pixels, four views at the end, and other photos to classify."""
    words = (
        "dataset=image_folder",
        f"dataset.root={root}",
        "dataset.image_size=16",
        "trainer.multi_crop=mirror_scales",
    )
    words += ("augment=resized_crop", "augment.crop=12", "augment.eval_crop=14")  # the model cuts out the centre
    done = dlrun("train", *words, "model=cnn", *TINY, "trainer.epochs=4", "run.dir=pictured")
    assert done.code == 0, done.err
    (tmp_path / "raw").mkdir()
    for name, (image, options) in PHOTOS.items():
        image.save(tmp_path / "raw" / name, **options)
    return tmp_path / "pictured"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_the_example_gives_the_probabilities_of_predict(
    photographed: Path, dlrun: Callable[..., Outcome], kind: str
) -> None:
    for name in KINDS[kind]:
        pytest.importorskip(name, reason="the extra onnx is not installed")
    Path("elsewhere").mkdir()
    done = dlrun("export", str(photographed), "--to", kind, "--out", "elsewhere/my model.bin")
    assert done.code == 0, done.err
    assert "elsewhere/my model.example.py" in done.out
    assert re.search(r"RGB.*\n.*\b16\b.*\b16×16\b", done.out)
    assert dlrun("predict", str(photographed), "raw").code == 0
    with open("predictions.csv", newline="") as file:
        expected = {row["file"]: row for row in csv.DictReader(file)}
    assert len(expected) == len(PHOTOS)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-I", "elsewhere/my model.example.py", *expected], capture_output=True, text=True, env=clean
    )
    assert ran.returncode == 0, ran.stderr
    found = [line.split("\t") for line in ran.stdout.splitlines()]
    assert len(found) == 2 * len(PHOTOS)
    for name, kind_of, share in found:
        assert float(share) == pytest.approx(float(expected[name][f"p_{kind_of}"]), abs=1e-4)
    assert [row[1] for row in found[::2]] == [row["class"] for row in expected.values()]
    assert len({row["confidence"] for row in expected.values()}) > 4  # the photos are told apart
    source = Path("elsewhere/my model.example.py").read_text()
    assert "dlrun" not in [word.split(".")[0] for word in re.findall(r"^\s*(?:from|import) (\S+)", source, re.M)]


@pytest.mark.filterwarnings("ignore")
def test_the_file_of_onnx_carries_what_a_program_needs(photographed: Path, dlrun: Callable[..., Outcome]) -> None:
    for name in KINDS["onnx"]:
        pytest.importorskip(name, reason="the extra onnx is not installed")
    import onnx

    assert dlrun("export", str(photographed), "--to", "onnx").code == 0
    about = {entry.key: json.loads(entry.value) for entry in onnx.load("model.onnx").metadata_props}
    data = json.loads((photographed / "result.json").read_text())["data"]
    assert (about["class_names"], about["image_size"]) == (["cat", "dog"], [16, 16])
    assert (about["mode"], about["resize"], about["dtype"]) == ("RGB", True, "uint8")
    assert about["normalisation"] == {"mean": data["mean"], "std": data["std"], "inside_the_model": True}


@pytest.mark.filterwarnings("ignore")
def test_an_example_is_not_overwritten(run: Path, dlrun: Callable[..., Outcome]) -> None:
    Path("model.example.py").write_text("mine")
    done = dlrun("export", str(run), "--to", "torch_export")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert re.search(r"model\.example\.py .*--force", done.err)
    assert Path("model.example.py").read_text() == "mine"
    assert not Path("model.pt2").exists()


def test_of_a_sweep_the_best_run_is_named(run: Path, dlrun: Callable[..., Outcome]) -> None:
    Path("sweep").mkdir()
    Path("sweep/sweep.yaml").write_text("search: {metric: val_loss, direction: auto}")
    done = dlrun("export", "sweep", "--to", "torch_export")
    assert "`dlrun resume sweep`" in done.err
    Path("model.pt2").write_text("mine")
    for number, loss in enumerate((0.5, 0.3, 0.4)):
        folder = Path(shutil.copytree(run, f"sweep/{number:04d}"))
        for file in ("config.yaml", "result.json"):
            text = (folder / file).read_text().replace('"lr": 0', f'"lr": {number}')
            (folder / file).write_text(text)
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "val_loss": loss}))
    for words in (("export", "sweep", "--to", "torch_export"), ("predict", "sweep", "sweep")):
        done = dlrun(*words)
        assert done.code == 2
        assert re.search(r"^dlrun: sweep\b.*\bsweep/0001\b.*\bval_loss$", done.err)
        assert done.err.count("\n") == 1


def test_mistakes_are_one_line(run: Path, dlrun: Callable[..., Outcome]) -> None:
    Path("model.pt2").write_text("mine")
    for words, pattern in {
        (str(run),): "--to",
        ("nowhere", "--to", "torch_export"): "nowhere: ",
        (str(run), "--to", "torch_export"): r"model\.pt2 .*--force",
        (str(run), "--to", "coreml"): r"--to\b.*\bcoreml\b",
    }.items():
        done = dlrun("export", *words)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert re.search(pattern, done.err)
    assert Path("model.pt2").read_text() == "mine"
