"""`dlrun embed` writes what the last layer gets; `dlrun explain-image` draws what a class depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dlrun as package
from support.commands import Outcome

WORDS = (
    "dataset=image_folder", "dataset.root=photos", "dataset.cache=none", "trainer.epochs=8", "optimizer=adam",
    "optimizer.lr=0.01", "trainer.threads=1", "check=none", "trainer.report=false", "trainer.diagnostics=false",
)  # fmt: skip
CNN = ("model=cnn", "model.width=4", "model.depth=2", "trainer.batch_size=16")


def squares(folder: Path) -> None:
    """Noise with a red or a blue square, which alone tells the classes apart: at the left, or for odd numbers right."""
    for name, channel in (("red", 0), ("blue", 2)):
        (folder / name).mkdir(parents=True)
        for number in range(30):
            pixels = np.random.default_rng(number).integers(0, 90, (16, 16, 3), dtype=np.uint8)
            pixels[6:11, (place := 1 + 9 * (number % 2)) : place + 5] = 30
            pixels[6:11, place : place + 5, channel] = 250
            Image.fromarray(pixels).save(folder / f"{name}/{number:02}.png")


@pytest.fixture
def run(here: Path, dlrun: Callable[..., Outcome]) -> Path:
    squares(here / "photos")
    done = dlrun("train", *WORDS, *CNN, "run.dir=run")
    assert done.code == 0, done.err
    return here / "run"


def test_the_last_layer_maps_the_features_to_the_probabilities(run: Path, dlrun: Callable[..., Outcome]) -> None:
    done = dlrun("embed", "run", "photos", "--out", "f.npz")
    assert done.code == 0, done.err
    with np.load("f.npz", allow_pickle=False) as found:
        arrays = dict(found)
    model = package.load("run", device="cpu")
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert arrays["features"].shape == (60, head.in_features)
    logits = head(torch.from_numpy(arrays["features"]))
    assert torch.allclose(logits.softmax(1), torch.from_numpy(arrays["probabilities"]), atol=1e-5)
    expected = model.predict("photos")
    assert arrays["names"].tolist() == expected.names
    assert arrays["classes"].tolist() == expected.classes
    assert np.array_equal(arrays["probabilities"], expected.probabilities)


def test_wrong_words_are_one_line(run: Path, dlrun: Callable[..., Outcome]) -> None:
    Path("f.npz").write_bytes(b"mine")
    for words, named in (
        (("embed", "run", "photos"), ""),
        (("embed", "run", "photos", "--out", "f.npz"), "--force"),
        (("embed", "run", "nowhere"), "nowhere"),
        (("embed", "nothing", "photos"), "nothing"),
    ):
        done = dlrun(*words)
        assert (done.code == 0) == (not named), words
        assert named in done.err
    assert Path("f.npz").read_bytes() == b"mine"


def test_the_map_lies_on_what_tells_the_classes_apart(run: Path, dlrun: Callable[..., Outcome]) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="the extra explain is not installed")
    from dlrun.inference.activation import activations
    from dlrun.inference.predictor import load

    predictor = load(run, [], "cpu")
    files = ("blue/02", "blue/03", "red/02", "red/03")
    images = torch.from_numpy(np.stack([np.asarray(Image.open(f"photos/{file}.png")) for file in files]))
    found = activations(predictor, images, None)
    assert [predictor.classes[one.label] for one in found] == ["blue", "blue", "red", "red"]
    for one, at_left in zip(found, (True, False, True, False), strict=True):
        sides = one.heat[:, :8].mean(), one.heat[:, 8:].mean()
        assert (sides[0] > 2 * sides[1]) if at_left else (sides[1] > 2 * sides[0])

    done = dlrun("explain-image", "run", "photos/red/02.png", "photos/blue/03.png", "--out", "e.png")
    assert done.code == 0, done.err
    with Image.open("e.png") as picture:
        assert picture.size[0] > 2 * picture.size[1]
    done = dlrun("explain_image", "run", "photos/red/03.png", "--class", "bleu", "--out", "f.png")
    assert done.code == 2
    assert "blue" in done.err
    done = dlrun("train", *WORDS, "model=mlp", "model.width=4", "run.dir=flat")
    assert done.code == 0
    done = dlrun("explain-image", "flat", "photos/red/03.png", "--out", "f.png")
    assert done.code == 2
    assert not Path("f.png").exists()
