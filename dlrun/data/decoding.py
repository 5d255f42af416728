"""From an image file to pixels: the one decoder of training, audit, cache, `dlrun predict` and `dlrun export` (D1).

Photos stand upright, transparent pixels lie on a stated ground, embedded colour profiles become sRGB, and values of
more than 8 bits stay as they are. `dlrun train dataset=image_folder dataset.background=white dataset.resize=crop`. The
script beside an export contains this module, so it imports only NumPy and Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.Image import Image as Picture
from PIL.Image import Transpose

from dlrun.data.fitting import FILTERS, Held, fitted, ground, scaled, wider
from dlrun.data.sixteen import LUMA, of_sixteen, opaque, sixteen

__all__ = ["FULL", "KINDS", "TWELVE_BITS", "VERSION", "Decoding", "OtherSize", "decoded", "deep", "kind_of", "opened"]
__all__ += ["to_srgb", "turn_of", "upright"]

VERSION = 2  # 1: EXIF orientation, transparency and colour profiles were ignored, and 16 bits were cut to 8
FULL = {"uint8": 255.0, "uint16": 65535.0}  # the white level of a kind of values, if none was measured
# sides of a reduced JPEG in units of the sides that are needed; 2 as in Pillow's thumbnail
GAPS = {"fast": 1.0, "auto": 2.0}
DECODERS = (1, VERSION, 3)  # 3: as 2, but resized by dlrun/data/resizing.py, if that is given to `decoded`
KINDS = ("uint8", "uint16", "int32", "float32")  # of values; the last one present is held
RESIZES, GROUNDS = ("crop", "squash", "letterbox", "none"), ("white", "black", "average")
TWELVE_BITS = 4095
AT_ONCE = 1 << 16  # bytes
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
ORIENTATION, UNSIGNED = 0x0112, 339  # tags of TIFF; the second, SampleFormat, is 1 for unsigned integers
# where Pillow looks for an orientation
METADATA = ("exif", "Raw profile type exif", "Raw profile type APP1", "XML:com.adobe.xmp", "xmp")


@dataclass(frozen=True)
class Decoding:
    """How files become pixels, as a run records it (`data.decoding` in result.json).

    `resize`: crop (shorter side resized, centre cut out), squash, letterbox, or none for files that have the size.
    `background`: white, black or average (of the visible pixels): under transparent pixels and around a letterbox.
    `decode`: exact, or fast and auto, which decode large JPEGs at 1/2, 1/4 or 1/8. `dtype` of the pixels; `whites`:
    white level by kind of value (uint8, uint16, int32, float32), to scale kinds other than `held`. `crop`: the share of
    the shorter side that crop keeps.
    """

    resize: str = "crop"
    interpolation: str = "bilinear"
    background: str = "white"
    decode: str = "auto"
    max_pixels: int = 178_956_970  # of Pillow, which refuses more
    held: str = "uint8"
    whites: dict[str, float] = field(default_factory=dict)
    decoder: int = VERSION
    crop: float = 1.0

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Decoding:
        """Return what a run recorded. Raises ValueError for what is no such record."""
        made = cls(**{one.name: record[one.name] for one in fields(cls) if one.name in record})
        words = made.resize in RESIZES and made.interpolation in FILTERS and made.background in GROUNDS
        words = words and made.decode in ("exact", *GAPS) and made.held in KINDS and made.decoder in DECODERS
        words = words and isinstance(made.crop, (int, float)) and 0 < made.crop <= 1
        if not words or not isinstance(made.max_pixels, int) or not isinstance(made.whites, dict):
            raise ValueError("decoding")
        return replace(made, whites={str(kind): float(level) for kind, level in made.whites.items()})

    @property
    def dtype(self) -> str:
        """The NumPy type of the pixels: integers of 32 bits are held as floats."""
        return "float32" if self.held == "int32" else self.held

    def record(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)

    def scale(self, kind: str) -> float:
        """By what values of a kind are multiplied to be held. Raises ValueError if a white level is not known."""
        have, want = (self.whites.get(one) or FULL.get(one) for one in (kind, self.held))
        if not have or not want:
            raise ValueError(f"has {kind} values, the training images have {self.held}; convert it")
        return want / have


class OtherSize(ValueError):
    """An intact image whose size is not the expected one; `found` is (width, height)."""

    def __init__(self, found: tuple[int, int]) -> None:
        super().__init__("has another size")
        self.found = found


def decoded(path: Path | Held, shape: tuple[int, int, int], how: Decoding, fit: Any = fitted) -> NDArray[Any]:
    """Return the pixels (H, W, C) of a file, C 1 (gray) or 3 (RGB), in how.dtype; `fit` resizes as `fitted` does.

    Raises OtherSize for how.resize none, and whatever Pillow raises for a file that is not an intact image.
    """
    height, width, channels = shape
    if how.decoder == 1:
        return _as_before(path, shape, how)
    with opened(path) as image:
        if how.resize != "none" and how.decode != "exact":
            _draft(image, height, width, how)
        _require_room(image, how)
        kind = kind_of(image)  # loading forgets how the values are stored
        if deep(image):
            planes = _planes(path, image, channels, how)
        elif kind == "uint8":
            image.load()
            shown = _displayed(upright(image), how.background)
            wanted = "RGB" if channels == 3 else "L"
            planes = [shown if shown.mode == wanted else shown.convert(wanted)]
        else:
            image.load()
            planes = [upright(_values(image, kind, how))]
        if planes[0].size != (width, height):
            if how.resize == "none":
                raise OtherSize(planes[0].size)
            white = 255 if kind == "uint8" else how.whites.get(kind, 0)
            planes = [fit(plane, height, width, how, white) for plane in planes]
    pixels = np.dstack([np.asarray(plane) for plane in planes]) if len(planes) > 1 else np.asarray(planes[0])
    if kind != how.held:
        pixels = pixels * how.scale(kind)
    if pixels.dtype != how.dtype:
        if how.dtype != "float32":
            pixels = np.clip(np.rint(pixels), 0, np.iinfo(how.dtype).max)
        pixels = pixels.astype(how.dtype)
    return pixels if pixels.shape == shape else np.broadcast_to(pixels.reshape(height, width, -1), shape)


@contextmanager
def opened(path: Path | Held) -> Iterator[Picture]:
    """Open a file without decoding it. HEIC needs the package pillow-heif; raises ValueError that names it."""
    Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit, and it counts what is decoded
    if path.name.lower().endswith((".heic", ".heif")):
        try:
            import pillow_heif  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise ValueError("HEIC needs a package: pip install 'dlrun[heic]'") from None
        pillow_heif.register_heif_opener()
    with Image.open(_at_once(path)) as image:
        yield image


def _at_once(path: Path | Held) -> Path | io.BytesIO:
    """The bytes of a small file: Pillow reads it in forty pieces, and decoding threads wait for each other at each."""
    if not isinstance(path, Path):
        return io.BytesIO(path.read_bytes())
    with open(path, "rb", buffering=0) as file:
        start = file.read(AT_ONCE)
    return io.BytesIO(start) if len(start) < AT_ONCE else path


def kind_of(image: Picture) -> str:
    """The type of an image's values, opened and not loaded: uint8, uint16, int32 or float32."""
    if image.mode.startswith("I;16") or deep(image):
        return "uint16"
    # Pillow opens PGM of more than 8 bits as integers scaled to 16 bits; older Pillow 16-bit PNG as well
    if image.mode == "I":
        return "uint16" if image.format in ("PNG", "PPM") else "int32"
    return "float32" if image.mode == "F" else "uint8"


def deep(image: Picture) -> bool:
    """Whether an image, opened and not loaded, has colours of 16 bits that all count.

    In another colour space than sRGB the high bytes do: Pillow converts 8 bits.
    """
    profile = image.info.get("icc_profile") or b""
    return of_sixteen(image) and (not profile or to_srgb(profile, "RGB", "RGB") is None)


def upright(image: Picture) -> Picture:
    """Turn and mirror a decoded image as its EXIF or XMP orientation says."""
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def turn_of(image: Picture) -> Transpose | None:
    """Return how EXIF or XMP turn an image, None if it stands upright; damaged metadata count as none."""
    if not any(name in image.info for name in METADATA):
        return None  # reading none takes a tenth of the time of a small image; Pillow turns TIFF itself
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the parser of a file's metadata raises many kinds, and the pixels are intact
        return None


def _require_room(image: Picture, how: Decoding) -> None:
    if image.width * image.height > how.max_pixels:
        size = f"{image.width:,}×{image.height:,} pixels"
        raise ValueError(f"{size} are more than dataset.max_pixels={how.max_pixels}; raise it or reduce the image")


def _draft(image: Picture, height: int, width: int, how: Decoding) -> None:
    """Let a JPEG be decoded at the smallest of 1, 1/2, 1/4, 1/8 that leaves the pixels that resizing needs."""
    small = min(image.size) < 2 * min(height, width) and how.resize != "letterbox"
    if small or image.format not in ("JPEG", "MPO"):
        return
    try:
        turned = image.getexif().get(ORIENTATION, 1) >= 5
    except Exception:
        turned = False
    columns, rows = (height, width) if turned else (width, height)
    if how.resize != "squash":
        columns, rows = scaled(image.size, *wider(columns, rows, how), inside=how.resize == "letterbox")
    image.draft(None, (round(columns * GAPS[how.decode]), round(rows * GAPS[how.decode])))


def _planes(path: Path | Held, image: Picture, channels: int, how: Decoding) -> list[Picture]:
    """The colours of 16 bits of an image, or its brightness, one plane each, upright and opaque."""
    clear = image.info.get("transparency")
    with opened(path) as again:
        values = sixteen(image, again)
    if isinstance(clear, tuple) and values.shape[2] == 3:
        hidden = (values == np.array(clear, dtype=np.float32)).all(2)
        values = np.dstack((values, np.where(hidden, np.float32(0), np.float32(65535))))
    _require_known(values, how)
    if values.shape[2] == 4:
        white = how.whites.get("uint16") or float(values[..., :3].max())
        values = opaque(values, how.background, white)
    found = [values[..., band] for band in range(3)] if channels == 3 else [values @ LUMA]
    planes = []
    for band in found:
        plane = Image.fromarray(np.ascontiguousarray(band, dtype=np.float32))
        plane.info = {key: value for key, value in image.info.items() if key in METADATA}
        planes.append(upright(plane))
    return planes


def _require_known(values: NDArray[np.float32], how: Decoding) -> None:
    """Raise ValueError for dark values of 16 bits among images of another kind: their white level is not known."""
    if how.held != "uint16" and not how.whites.get("uint16") and 0 < values.max() <= TWELVE_BITS:
        bits = f"values of 16 bits up to {values.max():.0f}, which may be of 8 or 12 bits and not dark"
        raise ValueError(f"has {bits}; convert it to 8 bits, or scale it to 65535")


def _values(image: Picture, kind: str, how: Decoding) -> Picture:
    """The values of an image of more than 8 bits, as floats; the transparent value of a PNG becomes the ground."""
    stored = np.asarray(image)
    if kind == "int32" and image.format == "TIFF" and np.all(getattr(image, "tag_v2", {}).get(UNSIGNED, 2) == 1):
        stored = stored.view(np.uint32)  # Pillow has no mode for it
    values = stored.astype(np.float32)
    if kind == "uint16":
        _require_known(values, how)
    if not np.isfinite(values).all():
        raise ValueError("contains nan or inf")
    clear = image.info.get("transparency")
    if isinstance(clear, int) and not (hidden := values == clear).all():
        visible = values[~hidden]
        grounds = {"black": 0.0, "average": visible.mean(), "white": visible.max()}
        values = np.where(hidden, np.float32(grounds[how.background]), values)
    made = Image.fromarray(values)
    made.info = {key: value for key, value in image.info.items() if key in METADATA}
    return made


def _displayed(image: Picture, background: str) -> Picture:
    """An image of 8 bits as a viewer shows it: sRGB or gray, opaque."""
    clear = "transparency" in image.info
    if image.mode in ("P", "PA"):
        clear = clear or image.mode == "PA" or (image.palette is not None and image.palette.mode.endswith("A"))
        image = image.convert("RGBA" if clear else "RGB")
    elif image.mode == "1" or (clear and image.mode in ("L", "RGB")):
        image = image.convert(image.mode.replace("1", "L") + ("A" if clear else ""))
    elif image.mode in ("La", "RGBa"):  # multiplied by alpha
        image = image.convert(image.mode.upper())
    image = _srgb(image)
    return _on_ground(image, background) if image.mode in ("LA", "RGBA") else image


def _srgb(image: Picture) -> Picture:
    """An image in sRGB if it embeds another profile; one that does not fit its pixels is ignored, as viewers do."""
    profile = image.info.get("icc_profile") or b""
    if image.mode != "LAB" and (not profile or image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK")):
        return image
    if image.mode == "LA":
        gray, alpha = image.split()
        if (transform := to_srgb(profile, "L", "RGB")) is None:
            return image
        colours = ImageCms.applyTransform(gray, transform)
        assert colours is not None
        colours.putalpha(alpha)
        return colours
    transform = to_srgb(profile, image.mode, "RGBA" if image.mode == "RGBA" else "RGB")
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=64)
def to_srgb(profile: bytes, mode: str, to: str) -> ImageCms.ImageCmsTransform | None:
    """The transform of a profile to sRGB (of LAB without one); None if it is sRGB already or of no use."""
    try:
        source: Any = ImageCms.createProfile("LAB")
        if mode != "LAB":
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            if "sRGB" in (source.profile.profile_description or ""):
                return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, to)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


def _on_ground(image: Picture, background: str) -> Picture:
    """An image with alpha on an opaque ground."""
    colours, alpha = image.convert(image.mode[:-1]), image.getchannel("A")
    below = Image.new(colours.mode, image.size, ground(colours, background, alpha, 255))
    below.paste(colours, mask=alpha)
    return below


def _as_before(path: Path | Held, shape: tuple[int, int, int], how: Decoding) -> NDArray[Any]:
    """The pixels that decoder 1 made, for runs that were trained with it."""
    height, width, channels = shape
    with opened(path) as file:
        _require_room(file, how)
        image: Picture = file
        if file.mode == "P" and "transparency" in file.info:
            image = file.convert("RGBA")
        elif kind_of(file) == "uint16" and file.format != "PPM" and not deep(file):
            image = Image.fromarray((np.asarray(file).astype(np.uint32) >> 8).astype(np.uint8))
        image = image.convert("RGB" if channels == 3 else "L")
    if image.size != (width, height):
        if how.resize == "none":
            raise OtherSize(image.size)
        image = fitted(image, height, width, Decoding(resize="crop"), white=255)
    return np.asarray(image).reshape(shape)
