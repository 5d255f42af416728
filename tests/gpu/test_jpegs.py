"""JPEGs decoded on the card: the processor's pixels within a bound, the same bits always, and what auto records."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from dlrun.data.decoding import Decoding
from dlrun.data.images import Streamed
from dlrun.data.jpegs import broken, read_on
from support.card import DEVICE, Run
from support.commands import Outcome

SIDE = 96
WORDS = (
    "dataset=image_folder", "dataset.root=photos", "dataset.image_size=32", "dataset.decoder=3", "dataset.cache=none",
    "dataset.memory_gb=0", "model=cnn", "model.width=4", "trainer.batch_size=8", "trainer.epochs=2",
    "trainer.deterministic=true", "augment=crop_flip",
)  # fmt: skip


def photographs() -> list[Image.Image]:
    """The two photographs of scikit-learn, 640 by 427 pixels."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    files = sorted(Path(spec.submodule_search_locations[0], "datasets", "images").glob("*.jpg"))
    return [Image.open(file).convert("RGB") for file in files]


def written(folder: Path, **how: Any) -> list[Path]:
    """Forty parts of the photographs, in folders of two classes."""
    made = []
    for label, photo in enumerate(photographs()):
        for number in range(20):
            part = photo.crop((10 * number, 5 * number, 10 * number + 300 + number, 5 * number + 260))
            made.append(folder / f"class{label}" / f"{number:02}.jpg")
            made[-1].parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            part.save(buffer, "JPEG", quality=92, **how)
            made[-1].write_bytes(buffer.getvalue())
    return made


@pytest.fixture
def photos(here: Path) -> list[Path]:
    return written(here / "photos")


@pytest.fixture(autouse=True)
def _usable() -> None:
    if why := broken(torch.device(DEVICE)):
        pytest.skip(f"torchvision cannot decode JPEGs here: {why}")


def streamed(files: list[Path]) -> Streamed:
    return Streamed(files, (SIDE, SIDE, 3), True, decoding=Decoding(decoder=3, decode="exact"))


def decoded(images: Streamed, batch: int = 64) -> torch.Tensor:
    order = torch.split(torch.arange(len(images)), batch)
    found = [*read_on(images, order, torch.device(DEVICE))]
    assert all(part.device.type == DEVICE for part in found)
    return torch.cat(found).cpu()


@pytest.mark.parametrize(
    "how", [{"subsampling": 0}, {"subsampling": 2}, {"subsampling": 0, "progressive": True}], ids=str
)
def test_pixels_are_the_processors_within_a_bound(how: dict[str, Any], here: Path) -> None:
    images = streamed(written(here / "photos", **how))
    gap = (decoded(images).int() - images.take(torch.arange(len(images)))).abs()
    print(f"{how}: differs by {gap.float().mean():.3f} of 255, at most {gap.max()}")
    assert float(gap.float().mean()) <= 2  # colours of halved planes are interpolated in another way
    assert how["subsampling"] or int(gap.max()) <= 4


def test_an_image_has_the_same_bits_in_every_batch_and_while_the_card_works(photos: list[Path]) -> None:
    images = streamed(photos)
    whole = decoded(images)
    assert torch.equal(decoded(images, batch=7), whole)
    busy = torch.randn(2048 if DEVICE == "cuda" else 64, device=DEVICE).expand(2048 if DEVICE == "cuda" else 64, -1)
    for _ in range(3):
        for _ in range(50):
            busy = (busy @ busy).clamp(-1, 1)
        assert torch.equal(decoded(images, batch=9), whole)


def test_a_resumed_run_ends_with_the_same_bits(
    photos: list[Path], train: Callable[..., Run], dlrun: Callable[..., Outcome], here: Path
) -> None:
    words = (*WORDS, "dataset.jpeg=device")
    whole = train(*words, folder="whole").checkpoint()["model"]
    parts = train(*words, "trainer.stop_after=1", folder="parts")
    assert dlrun("resume", "parts").code == 0
    assert all(torch.equal(tensor, whole[name]) for name, tensor in parts.checkpoint()["model"].items())


def test_auto_measures_and_records_its_choice(
    photos: list[Path], train: Callable[..., Run], dlrun: Callable[..., Outcome], card: torch.device
) -> None:
    run = train(*WORDS, "trainer.stop_after=1")
    taken = yaml.safe_load((run.path / "config.yaml").read_text())["dataset"]["jpeg"]
    assert taken in ("device", "processor")
    lines = [line for line in run.log.splitlines() if line.startswith("dataset.jpeg=auto")]
    print(*lines)
    assert len(lines) == 1
    assert f"dataset.jpeg={taken}" in lines[0]
    assert dlrun("resume", "run").code == 0
    assert run.log.count("dataset.jpeg=auto") == 1


def test_what_was_decoded_on_a_card_is_evaluated_there_alike(photos: list[Path], train: Callable[..., Run]) -> None:
    found = [train(*WORDS, f"dataset.jpeg={how}", folder=how).column("val_loss") for how in ("device", "processor")]
    assert found[0] == pytest.approx(found[1], rel=0.2)
