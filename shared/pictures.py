"""Pictures: files of many kinds flow in, upright RGB and squares of pixels flow out; figures become pictures.

Whatever is wrong with a file is a `UserError` of one line.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from unittest import mock

import numpy as np
from PIL import ExifTags, Image

from shared.config import UserError, missing_path, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")  # in lower case, of what is read in folders
LEAST_SIDE = 16  # pixels; a smaller picture shows nothing
KEPT_SIDE = 256  # pixels of the shorter side of what `encode_picture` returns
LONGEST_SIDE = 1 << 12  # pixels to which a longer one is squashed; JPEG has no more than 65,535
KEPT_BYTES = 1 << 18  # of a file that is kept as it is; much of a larger one is no picture, such as colour profiles

# What turns a picture upright, by EXIF's orientation.
TURNS = {
    **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
    **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE},
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A picture that was read."""

    pixels: Image.Image
    """Upright, RGB, the first frame."""
    format: str
    """Of its file, as Pillow calls it."""
    content: bytes = b""
    """The file, if it is a JPEG or PNG that holds just these pixels, else empty."""


def read_picture(source: str | Path | bytes, name: str, max_pixels: int) -> Picture:
    """The picture in a file, or in its content; transparent parts are laid on white.

    Args:
        name: what errors call it.
        max_pixels: a picture with more is refused by its header, before it is decoded.

    Raises UserError, too, for what cannot be read, is no picture of `FORMATS`, was cut off, or is too small.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file, _pillow():
            return _read(file, name, max_pixels)
    except FileNotFoundError as error:
        raise missing_path(source, "picture") from error
    except (OSError, ValueError) as error:  # the latter for names that no file can have
        raise UserError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or one_line(error)}") from error


def _read(file: BinaryIO, name: str, max_pixels: int) -> Picture:
    try:
        image = Image.open(file, formats=FORMATS)
    except Exception as error:  # Pillow's own, and whatever its readers stumble over
        known = f"not a picture that can be read, which {', '.join(FORMATS)} can, unless damaged"
        raise UserError(f"{name}: {known if file.seek(0, io.SEEK_END) else 'empty (0 bytes)'}") from error
    width, height = image.size
    if min(width, height) < LEAST_SIDE:
        raise UserError(f"{name}: {width}x{height} pixels are too few; each side needs {LEAST_SIDE}")
    if width * height > max_pixels:
        raise UserError(
            f"{name}: {width}x{height} pixels are more than data.max_pixels={max_pixels}; make the picture smaller"
        )
    try:
        image.load()
        pixels, turn = _rgb(image), TURNS.get(_orientation(image))
    except Exception as error:
        raise UserError(f"{name}: damaged or cut off: {one_line(error)}") from error
    if turn is not None:
        pixels = pixels.transpose(turn)
    file.seek(0)
    content = file.read()
    plain = image.format == "JPEG" or (image.format == "PNG" and content[24] == 8)  # bits of a channel
    if turn is not None or pixels is not image or getattr(image, "is_animated", False):
        plain = False
    return Picture(pixels, image.format, content if plain else b"")


@contextlib.contextmanager
def _pillow() -> Iterator[None]:
    """While it lasts, Pillow warns of nothing, and leaves it to others to say how large a picture may be."""
    with warnings.catch_warnings(), mock.patch.object(Image, "MAX_IMAGE_PIXELS", None):
        warnings.simplefilter("ignore")
        yield


def _rgb(image: Image.Image) -> Image.Image:
    """The same picture if it is RGB already."""
    if image.mode.startswith("I"):  # grey of 16 bits
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF, which Pillow reads by the same code as TIFF
        return 1


def encode_picture(picture: Picture) -> bytes:
    """A picture as a PNG, if it was one, else as a JPEG, at most `KEPT_SIDE` pixels on its shorter side.

    A file that is so already stays byte for byte as it is.
    """
    share = min(1, KEPT_SIDE / min(picture.pixels.size))
    size = tuple(min(round(side * share), LONGEST_SIDE) for side in picture.pixels.size)
    if size == picture.pixels.size and 0 < len(picture.content) <= KEPT_BYTES:
        return picture.content
    pixels, content = picture.pixels.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), io.BytesIO()
    kind = "PNG" if picture.format == "PNG" else "JPEG"
    # A picture that was read holds on to its file's comments and profiles.
    Image.fromarray(np.asarray(pixels)).save(content, kind, quality=95)
    return content.getvalue()


def decode_picture(content: bytes, size: int) -> np.ndarray:
    """What `encode_picture` returned, squashed to a square: uint8 (size, size, 3)."""
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def rendered(figure: "Figure") -> np.ndarray:
    """A figure as a picture, uint8 (height, width, 3), without any window or state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
