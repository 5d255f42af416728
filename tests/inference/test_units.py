"""A run predicts its own images as it was evaluated on them, whatever the files are, and holds others to its units."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from support.commands import TINY, Outcome
from support.pixels import GRAY, SCENE, STORED, image

Predict = Callable[..., dict[str, list[float]]]
WORDS = (*TINY, "model=cnn", "model.width=4", "trainer.epochs=1", "dataset.limit=0", "check=none")
PREDICTED = ("--device", "cpu", "--force")


def deep(number: int, top: int) -> np.ndarray:
    """A 16-bit picture with values up to `top`."""
    noise = np.random.default_rng(number).integers(0, top // 4, GRAY.shape)
    return np.clip(GRAY.astype(np.int64) * top // 255 - noise, 0, top).astype(np.uint16)


def twelve_bits(root: Path) -> None:
    for k, label in enumerate(("a", "b") * 12):
        (root / label).mkdir(parents=True, exist_ok=True)
        if k % 6 == 5:
            image(SCENE).rotate(k).save(root / label / f"{k}.jpg")
        else:
            image(deep(k, 4095)).save(root / label / f"{k}.{('png', 'tif')[k % 2]}")


def stored(run: str) -> dict[str, np.ndarray]:
    """The probabilities of the evaluation of validation and test, by id."""
    found = {}
    with np.load(Path(run) / "predictions.npz") as arrays:
        for split in ("val", "test"):
            z = arrays[f"{split}_logits"].astype(float)
            p = np.exp(z - z.max(1, keepdims=True))
            found |= dict(zip(arrays[f"{split}_ids"].tolist(), p / p.sum(1, keepdims=True), strict=True))
    return found


def rows(name: str = "predictions.csv") -> dict[str, list[float]]:
    with open(name, newline="") as file:
        return {row["file"]: [float(row[k]) for k in row if k.startswith("p_")] for row in csv.DictReader(file)}


def data_of(run: str) -> dict:
    return json.loads((Path(run) / "result.json").read_text())["data"]


def test_twelve_bits_keep_their_levels_and_the_run_knows_its_white(here: Path, dlrun: Callable[..., Outcome]) -> None:
    twelve_bits(here / "photos")
    for path in Path("photos").rglob("*.jpg"):
        path.unlink()
    words = ("dataset=image_folder", "dataset.root=photos", "dataset.channels=1", *WORDS)
    assert dlrun("train", *words, "run.dir=run").code == 0
    data = data_of("run")
    assert data["units"]["dtype"] == data["decoding"]["held"] == "uint16"
    assert data["units"]["white"] == data["decoding"]["whites"]["uint16"] == 4095
    assert data["units"]["high"] > 2048
    # files and arrays of 8 bits and of 0 to 1 are scaled to it, those of 16 bits refused
    eight = np.rint(SCENE[..., 0].astype(float)).astype(np.uint8)
    image(eight).save("eight.png")
    np.save("eight.npy", eight[None])
    np.save("one.npy", eight[None].astype(np.float32) / 255)
    np.save("twelve.npy", np.rint(eight[None] * (4095 / 255)).astype(np.uint16))
    np.save("sixteen.npy", np.full((1, *eight.shape), 60_000, np.uint16))
    files = ("eight.png", "eight.npy", "one.npy", "twelve.npy", "sixteen.npy")
    done = dlrun("predict", "run", *files, *PREDICTED)
    assert done.code == 0, done.err
    found = rows()
    assert list(found) == ["eight.png", "eight.npy[0]", "one.npy[0]", "twelve.npy[0]"]
    for one in found.values():
        np.testing.assert_allclose(one, found["eight.npy[0]"], atol=2e-3)
    assert "60000" in done.out
    assert done.out.count("sixteen.npy") == 1


def test_arrays_of_sixteen_bits_train_as_they_are(here: Path, dlrun: Callable[..., Outcome]) -> None:
    x = np.stack([deep(k, 1023) for k in range(40)])
    np.savez("mine.npz", x=x, y=np.arange(40) % 2)
    np.save("same.npy", x)
    done = dlrun("train", "dataset=arrays", "dataset.path=mine.npz", *WORDS, "augment=crop_flip", "run.dir=run")
    assert done.code == 0, done.err
    assert data_of("run")["units"] == {"dtype": "uint16", "low": 0.0, "high": 1023.0, "white": 1023.0}
    assert dlrun("predict", "run", "same.npy", *PREDICTED).code == 0
    assert len(rows()) == 40


SHADES = np.array([40, 120, 200])[np.arange(90) % 3][:, None, None, None]
PIXELS = (SHADES + np.random.default_rng(0).integers(-30, 30, (90, 8, 8, 3))).astype(np.uint8)
KINDS = {
    "bytes": PIXELS,
    "ones": (PIXELS / 255).astype(np.float32),
    "floats": PIXELS.astype(np.float32),
    "sixteen": PIXELS.astype(np.uint16) * 257,
    "whole": PIXELS.astype(np.int64),
}
# what is no brightness of known scale for a run: negative, 9 to 15 bits in 16, too large
STRANGE = {
    "centred": (PIXELS / 255 - 0.5).astype(np.float32),
    "twelve": (PIXELS.astype(np.uint16) * 16),
    "large": PIXELS.astype(np.int64) * 10**6,
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["bytes", "ones", "floats", "sixteen", "centred"])
def test_values_in_other_units_give_the_same_prediction_or_a_line(
    kind: str, here: Path, dlrun: Callable[..., Outcome]
) -> None:
    np.savez("mine.npz", x={**KINDS, **STRANGE}[kind], y=np.array(["dark", "grey", "bright"])[np.arange(90) % 3])
    words = ("dataset=arrays", "dataset.path=mine.npz", "trainer.epochs=2")
    assert dlrun("train", *WORDS, *words, "run.dir=run").code == 0
    for name, x in {**KINDS, **STRANGE}.items():
        np.save(f"{name}.npy", x[:12])
    Path("files").mkdir()
    for number in range(12):
        image(PIXELS[number]).save(f"files/{number:02}.png")
    arrays = [f"{name}.npy" for name in (*KINDS, *STRANGE)]
    done = dlrun("predict", "run", *arrays, *PREDICTED)
    assert done.code == 0, done.err
    found = rows()
    if kind == "centred":
        assert {name.partition(".")[0] for name in found} >= {"centred"}
        assert not {name.partition(".")[0] for name in found} & {"bytes", "sixteen", "whole", "twelve", "large"}
        done = dlrun("predict", "run", "files", *PREDICTED)
        assert (done.code, done.err.count("\n")) == (2, 1)
        return
    assert dlrun("predict", "run", "files", *PREDICTED, "--out", "files.csv").code == 0
    fits = {"twelve"} if kind == "sixteen" else set()  # of its type and in its range
    assert {name.partition(".")[0] for name in found} == set(KINDS) | fits
    for number in range(12):
        same = [found[f"{name}.npy[{number}]"] for name in KINDS]
        same.append(rows("files.csv")[f"files/{number:02}.png"])
        np.testing.assert_allclose(same, np.broadcast_to(same[0], np.shape(same)), atol=2e-5)
    for name in set(STRANGE) - fits:
        assert done.out.count(f"{name}.npy: ") == 1


def test_a_run_of_the_decoder_before_keeps_its_pixels(here: Path, dlrun: Callable[..., Outcome]) -> None:
    for label in ("a", "b"):
        (here / "photos" / label).mkdir(parents=True)
        for turn in (2, 3, 4) * 5:
            name = f"{turn}_{len(list((here / 'photos' / label).iterdir()))}.png"
            noise = np.random.default_rng(len(name)).integers(0, 30, SCENE.shape, dtype=np.uint8)
            exif = Image.Exif()
            exif[0x0112] = turn
            image(STORED[turn](SCENE // 2 + noise)).save(here / "photos" / label / name, exif=exif)
    words = ("dataset=image_folder", "dataset.root=photos", "dataset.decoder=1", *WORDS)
    assert dlrun("train", *words, "run.dir=run").code == 0
    # as a run before `decoder` was recorded
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    new = ("resize", "interpolation", "background", "decode", "max_pixels", "decoder")
    config["dataset"] = {key: value for key, value in config["dataset"].items() if key not in new}
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    result = json.loads(Path("run/result.json").read_text())
    del result["data"]["decoding"], result["data"]["units"]
    Path("run/result.json").write_text(json.dumps(result))
    done = dlrun("predict", "run", "photos", *PREDICTED)
    assert done.code == 0, done.err
    assert done.out.count("dataset.decoder=1") == 1
    found = rows()
    for name, p in stored("run").items():
        np.testing.assert_allclose(found[f"photos/{name}"], p, atol=1.01e-6)
    # evaluated again, it decodes as it did, too
    from dlrun.inference.predictor import rebuilt

    data = rebuilt(Path("run"), []).data
    assert data.record()["decoding"]["decoder"] == 1
    assert data.record()["content_sha256"] == result["data"]["content_sha256"]
