"""Predict gives exactly the logits that evaluation gave: over formats, geometry, units, links, arrays and batches (E6).

Bit for bit, for images of every split: validation and test as stored at the end of training, those of training as the
finished model is evaluated on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.folders import reading
from dlrun.folders.run import claim
from dlrun.inference import classify
from dlrun.inference.predictor import Predictor, load, rebuilt
from dlrun.run.execute import execute
from dlrun.training import checkpoint, loop
from dlrun.training.evaluating import logits as evaluated
from dlrun.training.experiment import build_model
from dlrun.training.multi_crop import viewed
from support.composed import composed
from support.pixels import FILES, GRAY, SCENE, STORED, image

WORDS = ("check=none", "model.width=4", "trainer.threads=1", "trainer.report=false", "trainer.epochs=1", "run.dir=run")
WORDS += ("trainer.diagnostics=false", "dataset.cache=none", "trainer.device=cpu")


def deep(number: int, top: int) -> np.ndarray:
    """A 16-bit picture with values up to `top`."""
    noise = np.random.default_rng(number).integers(0, top // 4, GRAY.shape)
    return np.clip(GRAY.astype(np.int64) * top // 255 - noise, 0, top).astype(np.uint16)


def every_kind(root: Path) -> None:
    """Two classes with each kind of file: 65 with Pillow's usual formats."""
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for name, (write, _, _) in FILES.items():
            write(root / label / name)


def twelve_bits(root: Path) -> None:
    for k, label in enumerate(("a", "b") * 12):
        (root / label).mkdir(parents=True, exist_ok=True)
        if k % 6 == 5:
            image(SCENE).rotate(k).save(root / label / f"{k}.jpg")
        else:
            image(deep(k, 4095)).save(root / label / f"{k}.{('png', 'tif')[k % 2]}")


def floats(root: Path) -> None:
    for k, label in enumerate(("a", "b") * 10):
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(deep(k, 4095).astype(np.float32) / 5000).save(root / label / f"{k}.tif")


def turned_photos(root: Path) -> None:
    """Photos several times as large as needed, of which a decoder may read a reduced scale, in all eight turns."""
    for k, label in enumerate(("a", "b") * 12):
        (root / label).mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 1 + k % 8
        made = image(STORED[1 + k % 8](np.roll(SCENE, k, 1))).resize((200, 140 + 10 * k))
        made.save(root / label / f"{k}.jpg", exif=exif, quality=80)


def trained(*words: str) -> tuple[Predictor, dict[str, torch.Tensor]]:
    """A finished run, and by id the logits of its evaluation, in which those of training images are made again."""
    assert execute(composed(*WORDS, *words), claim("run", "")) == 0
    found = {}
    with np.load("run/predictions.npz") as arrays:
        for split in ("val", "test"):
            found |= dict(
                zip(arrays[f"{split}_ids"].tolist(), torch.from_numpy(arrays[f"{split}_logits"]), strict=True)
            )
    exp = rebuilt(Path("run"), [])
    file = reading.tested(Path("run"))
    checkpoint.load_weights(file, checkpoint.load(file), exp.model)
    model = viewed(exp.model, exp.cfg.trainer.multi_crop)
    train = loop.predict(exp, exp.batches(exp.data.train), model).logits
    return load(Path("run"), [], "cpu"), found | dict(zip(exp.data.train.ids, train, strict=True))


def logits(predictor: Predictor, *paths: str, size: int = 256) -> Iterator[tuple[str, torch.Tensor]]:
    """The name of each image and its logits, as `dlrun predict` computes them in batches of `size`."""
    done = classify.Outcome()
    for names, images in classify.batches(predictor, classify.Sources(paths), size, done):
        yield from zip(names, torch.from_numpy(predictor.logits(images)[0]), strict=True)
    assert not done.unreadable, done.unreadable


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (every_kind, ("dataset.image_size=12", "dataset.background=black", "dataset.decode=fast")),
        (every_kind, ("dataset.image_size=[10,14]", "dataset.resize=squash", "dataset.interpolation=area")),
        (every_kind, ("dataset.image_size=[20,12]", "dataset.resize=letterbox", "dataset.background=average")),
        (every_kind, ("dataset.image_size=0", "dataset.channels=1", "dataset.decode=exact")),
        (twelve_bits, ("dataset.image_size=[20,20]", "dataset.resize=letterbox", "dataset.interpolation=bicubic")),
        (twelve_bits, ("dataset.image_size=0", "dataset.channels=1", "dataset.memory_gb=0")),
        (floats, ("dataset.image_size=12", "dataset.channels=1")),
        (
            turned_photos,
            ("dataset.image_size=24", "dataset.decode=auto", "augment.crop=16", "augment.eval_crop=20"),
        ),
        (turned_photos, ("dataset.image_size=[16,24]", "dataset.decode=fast", "trainer.precision=bf16")),
        (turned_photos, ("dataset.image_size=[16,24]", "dataset.decode=exact", "trainer.multi_crop=mirror")),
    ],
)
def test_files_have_the_logits_of_the_evaluation(
    make: Callable[[Path], None], words: tuple[str, ...], here: Path
) -> None:
    make(here / "photos")
    predictor, expected = trained("dataset=image_folder", "dataset.root=photos", "model=cnn", *words)
    count = sum(path.is_file() for path in Path("photos").rglob("*"))
    assert len(expected) == count
    for size in (256, 5):  # in other batches than in training, the last of one image or more
        found = dict(logits(predictor, "photos", size=size))
        assert len(found) == count
        for name, row in expected.items():
            assert torch.equal(found[f"photos/{name}"], row), (name, size)
    # a link to an image is that image, and alone it is what it is among others
    for name in [*expected][:: count // 5]:
        link = Path(f"link-{name.replace('/', '-')}")
        link.symlink_to(here / "photos" / name)
        ((_, row),) = logits(predictor, str(link))
        assert torch.equal(row, expected[name]), name


BYTES = np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3), dtype=np.uint8)
LABELS = np.arange(40) % 2
ARRAYS = {
    "uint8": BYTES,
    "uint16": BYTES.astype(np.uint16) * 200,
    "float32": (BYTES / 255).astype(np.float32),
    "float64": BYTES / 7.0 - 9,
    "bool": BYTES > 90,
    "int64": BYTES.astype(np.int64),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "model"), [*((kind, "mlp") for kind in ARRAYS), ("uint16", "cnn")])
def test_arrays_have_the_logits_of_the_evaluation(kind: str, model: str, here: Path) -> None:
    np.save("x.npy", ARRAYS[kind])
    np.save("y.npy", LABELS)
    np.savez("first.npz", train_images=ARRAYS[kind].transpose(0, 3, 1, 2))
    words = ("dataset=arrays", "dataset.x=x.npy", "dataset.y=y.npy", f"model={model}", "dataset.split=position")
    predictor, expected = trained(*words)
    assert len(expected) == 40
    for path, name, size in (
        ("x.npy", "x.npy", 256),
        ("x.npy", "x.npy", 3),
        ("first.npz", "first.npz:train_images", 7),
    ):
        found = dict(logits(predictor, path, size=size))
        for given, row in expected.items():
            assert torch.equal(found[f"{name}[{given.split('/')[1]}]"], row), (given, path, size)


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_do_not_depend_on_the_batch(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    # sums of 1,024 products are divided between two threads, in other ways for other numbers of rows
    for words, shape in ((("model=mlp", "model.width=16"), (32, 32, 1)), (("model=cnn", "model.width=8"), (20, 16, 3))):
        node = composed(*words).plain["model"]
        model = build_model(node, [], shape, [str(k) for k in range(10)]).eval()
        x = torch.randn(70, *shape).permute(0, 3, 1, 2)
        with torch.inference_mode():
            whole = evaluated(model, x)
            for size in (1, 2, 3, 17, 33):
                found = torch.cat([evaluated(model, part) for part in torch.split(x, size)])
                assert torch.equal(found, whole), size
            turn = torch.randperm(len(x))
            assert torch.equal(evaluated(model, x[turn]), whole[turn])
            assert torch.allclose(whole, model(x), atol=1e-5)
    torch.set_num_threads(before)
