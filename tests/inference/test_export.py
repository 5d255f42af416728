"""`dlrun export`: one file that maps raw pixels to the run's logits, or none."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun.folders.run import claim
from dlrun.run.execute import execute
from support.commands import TINY, Outcome
from support.composed import composed


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

    def wrong(model: torch.nn.Module, images: torch.Tensor) -> object:
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
