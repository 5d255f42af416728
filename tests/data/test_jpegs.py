"""JPEGs decoded on a device, here the processor, which runs the same lines; and what is left to the usual decoder."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from dlrun.data import Split, jpegs
from dlrun.data.batches import Batches
from dlrun.data.decoding import Decoding
from dlrun.data.images import InMemory, Streamed
from dlrun.data.jpegs import NoRoom, read_on
from dlrun.errors import UserError
from support.tars import jpeg

# torchvision 0.29 announces that it will drop its decoder one day
pytestmark = pytest.mark.filterwarnings("ignore:.*TorchCodec:DeprecationWarning")
CPU = torch.device("cpu")
SIDE = 24


def files_of(folder: Path, **contents: bytes) -> list[Path]:
    """A file of each content, by the order of their names."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def streamed(files: list[Path], side: int = SIDE, **how: Any) -> Streamed:
    return Streamed(files, (side, side, 3), True, decoding=Decoding(decoder=3, **how))


def everything(images: Streamed, batch: int = 64, workers: int = 1) -> NDArray[np.uint8]:
    order = torch.split(torch.arange(len(images)), batch)
    return torch.cat([*read_on(images, order, CPU, workers)]).numpy()


def ordinary(images: Streamed) -> NDArray[np.uint8]:
    return images.take(torch.arange(len(images))).numpy()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many JPEGs each call of torchvision decodes."""
    jpegs.broken(CPU)
    counts, real = list[int](), jpegs._torchvision

    def counting(contents: Any, device: torch.device) -> Any:
        counts.append(len(contents))
        return real(contents, device)

    monkeypatch.setattr(jpegs, "_torchvision", counting)
    return counts


def saved(image: Image.Image, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "JPEG", "quality": 90, **more})
    return buffer.getvalue()


def picture(seed: int = 3, shape: tuple[int, ...] = (40, 60, 3)) -> Image.Image:
    return Image.open(io.BytesIO(jpeg(seed, shape, 95)))


def turned(orientation: int) -> bytes:
    image = picture()
    exif = image.getexif()
    exif[0x0112] = orientation
    return saved(image, exif=exif)


def profile(name: bytes) -> bytes:
    """The profile of sRGB, under another name of four letters."""
    made: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return made.replace(b"sRGB", name).replace("sRGB".encode("utf-16-be"), name.decode().encode("utf-16-be"))


@pytest.mark.parametrize("how", [{}, {"crop": 0.875}, {"resize": "squash"}], ids=str)
def test_photographs_differ_by_at_most_1_from_those_decoded_whole(how: Any) -> None:
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    photos = sorted(Path(spec.submodule_search_locations[0], "datasets", "images").glob("*.jpg"))
    assert len(photos) == 2  # of 640 by 427 pixels
    for side in (224, 96, 32):
        whole = ordinary(streamed(photos, side, decode="exact", **how)).astype(int)
        gap = np.abs(everything(streamed(photos, side, **how)) - whole)
        assert gap.max() == 1  # one rounding in place of two
        assert gap.mean() < 0.2


def test_an_image_of_the_size_is_as_it_is_stored(tmp_path: Path, decoded: list[int]) -> None:
    images = streamed(files_of(tmp_path, a=jpeg(1, (SIDE, SIDE, 3))))
    assert np.array_equal(everything(images), ordinary(images))
    unsized = Streamed(images.files, images.shape, False, decoding=images.decoding)
    assert np.array_equal(everything(unsized), ordinary(images))
    assert decoded == [1, 1]
    with pytest.raises(UserError, match=r"a: .* 20×20 pixels .* 24×24"):
        everything(Streamed(images.files, (20, 20, 3), False, decoding=images.decoding))


ODD: dict[str, Callable[[], bytes]] = {
    "gray": lambda: jpeg(1, (40, 60)),
    "cmyk": lambda: saved(picture().convert("CMYK")),
    "png": lambda: saved(picture(), format="PNG"),
    "turned": lambda: turned(6),
    "another profile": lambda: saved(picture(), icc_profile=profile(b"XRGB")),
    "stored as RGB": lambda: saved(picture(), keep_rgb=True),
    "several pictures": lambda: saved(picture(), format="MPO", save_all=True, append_images=[picture(4)]),
    "bytes after its end": lambda: jpeg(1, (40, 60, 3)) + b"more",
    "a strip": lambda: jpeg(1, (4, 2000, 3)),
}
USUAL: dict[str, Callable[[], bytes]] = {
    "plain": lambda: jpeg(1, (40, 60, 3)),
    "upright by EXIF": lambda: turned(1),
    "progressive": lambda: saved(picture(), progressive=True),
    "profile sRGB": lambda: saved(picture(), icc_profile=profile(b"sRGB")),
    "without subsampling": lambda: saved(picture(), subsampling=0),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_usual_jpeg_has_the_pixels_of_the_usual_decoder(
    name: str, tmp_path: Path, decoded: list[int]
) -> None:
    images = streamed(files_of(tmp_path, first=jpeg(5, (40, 60, 3)), odd=ODD[name](), last=jpeg(6, (40, 60, 3))))
    found, known = everything(images), ordinary(images)
    assert decoded == [2]
    assert np.array_equal(found[1], known[1])
    assert np.abs(found.astype(int) - known).max() <= 1
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("name", USUAL)
def test_usual_jpegs_are_decoded_on_the_device(name: str, tmp_path: Path, decoded: list[int]) -> None:
    images = streamed(files_of(tmp_path, a=USUAL[name]()))
    assert np.abs(everything(images).astype(int) - ordinary(images)).max() <= 1
    assert decoded == [1]


@pytest.fixture
def many(tmp_path: Path) -> Streamed:
    return streamed(files_of(tmp_path, **{f"{n:02}": jpeg(n, (30 + n, 50, 3)) for n in range(12)}))


def test_pixels_do_not_depend_on_batch_threads_or_pieces(
    many: Streamed, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = everything(many)
    assert decoded == [12]
    assert np.array_equal(everything(many, batch=5, workers=3), whole)
    monkeypatch.setattr(jpegs, "AT_ONCE", 5000)  # pixels: three images, or two
    decoded.clear()
    assert np.array_equal(everything(many), whole)
    assert [sum(decoded), max(decoded)] == [12, 3]
    monkeypatch.setattr(jpegs, "AT_ONCE", 1600)  # larger ones are left to the processor
    decoded.clear()
    assert np.abs(everything(many).astype(int) - whole).max() <= 1
    assert decoded == [1] * 3


def test_an_image_that_the_device_refuses_leaves_the_others_of_its_batch_alone(
    many: Streamed, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, real, known = everything(many), jpegs._torchvision, ordinary(many)
    refused = many.files[7].read_bytes()

    def strict(contents: Any, device: torch.device) -> Any:
        if any(one.tobytes() == refused for one in contents):
            raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 4")
        return real(contents, device)

    monkeypatch.setattr(jpegs, "_torchvision", strict)
    found = everything(many)
    assert np.array_equal(found[7], known[7])
    assert np.array_equal(np.delete(found, 7, 0), np.delete(whole, 7, 0))


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: c[:300] + b"\xff\xd9", lambda c: b""])
def test_a_damaged_jpeg_is_named(many: Streamed, damage: Callable[[bytes], bytes]) -> None:
    many.files[4].write_bytes(damage(many.files[4].read_bytes()))
    with pytest.raises(UserError, match=r"04: .*dataset\.on_bad=drop"):
        everything(many)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 20 MiB",
        "Error while decoding JPEG images: Failed to decode batch: 5\nException raised from decode_images",
    ],
)
def test_a_device_without_memory_is_one_line(many: Streamed, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(contents: Any, device: torch.device) -> Any:
        raise torch.OutOfMemoryError(said) if "CUDA" in said else RuntimeError(said)

    jpegs.broken(CPU)
    monkeypatch.setattr(jpegs, "_torchvision", full)
    with pytest.raises(NoRoom, match=r"^dataset\.jpeg=device: no memory .* dataset\.jpeg=processor$"):
        everything(many)


def test_a_device_that_fills_up_while_images_are_resized_is_one_line(
    many: Streamed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(pixels: Any, images: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(jpegs, "_fitted", full)
    with pytest.raises(NoRoom):
        everything(many)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("decode_jpegs_cuda: no nvJPEG\nmore"), ImportError("gone")],
)
def test_a_torchvision_that_cannot_decode_is_said_and_not_passed_over(
    many: Streamed, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(contents: Any, device: torch.device) -> Any:
        raise error

    monkeypatch.setattr(jpegs, "_torchvision", missing)
    jpegs.broken.cache_clear()
    try:
        assert jpegs.broken(CPU) == str(error).splitlines()[0]
        with pytest.raises(UserError, match=rf" cpu \({str(error).splitlines()[0]}\)"):
            everything(many)
    finally:
        jpegs.broken.cache_clear()


def test_batches_take_files_that_lie_in_memory_anew(many: Streamed) -> None:
    held = InMemory(torch.zeros(12, SIDE, SIDE, 3, dtype=torch.uint8), source=many)
    split = Split(held.subset(torch.tensor([3, 1, 2])), torch.zeros(3, dtype=torch.int64), ["a", "b", "c"])
    batches = Batches(split, 2, mean=[0.0] * 3, std=[1.0] * 3, jpegs=True)
    found = torch.cat([x for x, _, _ in batches.epoch(1)])
    known = everything(many)[[3, 1, 2]]
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), known)
    assert np.array_equal(batches.take(torch.tensor([1]), 1, 0).permute(0, 2, 3, 1).numpy(), known[1:2])
