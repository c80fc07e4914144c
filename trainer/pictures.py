"""A picture file becomes RGB pixels of a bucket's size. No torch here."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "QOI": (".qoi",),
    "TGA": (".tga",),
}  # Pillow's name -> the usual extensions. Only these are tried: others start programs, or hold no picture to train

PICTURE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    OverflowError,
    IndexError,
    KeyError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)  # what Pillow raises at damaged files

Image.init()  # registers every format; doing so on the first use is not safe among threads
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `check_size` refuses these


class PictureError(Exception):
    """A picture cannot be decoded: `PictureError(path, reason)`."""

    advice = "Replace or remove it; python -m trainer dataset --deep finds all such files."

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path} cannot be read: {reason}"

    @property
    def reason(self) -> str:
        return str(self.args[1])


def check_size(size: tuple[int, int]) -> None:
    """Raises Pillow's DecompressionBombError above Image.MAX_IMAGE_PIXELS, where Pillow itself only warns."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise Image.DecompressionBombError(
            f"{size[0]} x {size[1]} pixels could be a decompression bomb; at most {limit:,} pixels are read"
        )


def open_picture(path: Path) -> Image.Image:
    """The whole picture in 8-bit RGB: turned upright by its EXIF orientation; of several frames, the first.

    16 bits and more are scaled to 8. Colour profiles are not applied, as in sd-scripts. Transparency is laid on
    white, as viewers show it; sd-scripts drops it instead and trains whatever colours lie hidden beneath.
    Raises PictureError when it cannot be read.
    """
    try:
        with Image.open(path, formats=tuple(FORMATS)) as opened:
            check_size(opened.size)
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except PICTURE_ERRORS as error:
        raise PictureError(path, str(error) or type(error).__name__) from error


def thumbnail(path: Path, side: int) -> Image.Image:
    """The picture upright in RGB, scaled down to at most side x side; of a JPEG only as much as that takes is decoded.

    Raises PictureError when it cannot be read.
    """
    try:
        with Image.open(path, formats=tuple(FORMATS)) as opened:
            check_size(opened.size)
            opened.draft("RGB", (2 * side, 2 * side))
            opened.load()
            small = _to_rgb(ImageOps.exif_transpose(opened))
            small.thumbnail((side, side))
            return small
    except PICTURE_ERRORS as error:
        raise PictureError(path, str(error) or type(error).__name__) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) // 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        values = np.asarray(picture, dtype=np.float64)
        values = values / 257 if values.max(initial=0) > 255 else values
        picture = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        with_alpha = picture.convert("RGBA")
        picture = Image.new("RGBA", with_alpha.size, "white")
        picture.alpha_composite(with_alpha)
    return picture.convert("RGB")


def open_alpha(path: Path) -> Image.Image | None:
    """How opaque each pixel is, in mode L, turned like the picture; None where all are. Raises PictureError."""
    try:
        with Image.open(path, formats=tuple(FORMATS)) as opened:
            check_size(opened.size)
            opened.load()
            picture = ImageOps.exif_transpose(opened)
            return picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    except PICTURE_ERRORS as error:
        raise PictureError(path, str(error) or type(error).__name__) from error


def to_pixels(picture: Image.Image) -> NDArray[np.float32]:
    """(3, height, width), from -1 for black to 1 for white."""
    values = np.asarray(picture, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(values.transpose(2, 0, 1))
