"""A picture file becomes RGB pixels of a bucket's size. No torch here."""

from __future__ import annotations

import hashlib
import io
import logging
import struct
import time
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trainer import read_speed
from trainer.data.captions import Shown

logger = logging.getLogger(__name__)
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

PAUSES = (0.5, 1, 2, 4, 8, 15)  # seconds between attempts to read a file: a network drive may be back by then

Image.init()  # registers every format; doing so on the first use is not safe among threads
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `check_size` refuses these


class PictureError(Exception):
    """A picture cannot be decoded: `PictureError(path, reason)`."""

    advice = (
        "Replace or remove it; python -m trainer dataset --deep finds all such files. A checkpoint can be continued "
        'with the others: resume_allow = ["dataset"].'
    )

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path} cannot be read: {reason}"

    @property
    def reason(self) -> str:
        return str(self.args[1])


class PictureGone(PictureError):
    """A picture's file is not there, or its disk does not answer."""

    advice = (
        "Bring it back and resume from the latest checkpoint. One can also be continued without it: "
        'resume_allow = ["dataset"].'
    )


class PictureChanged(PictureError):
    """A picture's file is not the one that was looked at: `PictureChanged(path)`."""

    advice = (
        "Put the earlier one back and resume from the latest checkpoint. One can also be continued with the new "
        'picture: resume_allow = ["dataset"].'
    )

    def __str__(self) -> str:
        return f"{self.args[0]} was changed after the images were looked at"


def check_size(size: tuple[int, int]) -> None:
    """Raises Pillow's DecompressionBombError above Image.MAX_IMAGE_PIXELS, where Pillow itself only warns."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise Image.DecompressionBombError(
            f"{size[0]} x {size[1]} pixels could be a decompression bomb; at most {limit:,} pixels are read"
        )


def read_unchanged(path: Path, digest: str) -> bytes:
    """The bytes of a picture that was looked at before, when its SHA-256 was `digest`.

    A file that cannot be read is tried again for half a minute. Raises PictureGone or PictureChanged.
    """
    for pause in (*PAUSES, None):
        try:
            with read_speed.TRAINED.timed() as read:
                data = path.read_bytes()
                read(len(data))
            break
        except OSError as error:
            if pause is None:
                raise PictureGone(path, error.strerror or str(error)) from error
            if pause == PAUSES[0]:
                logger.warning("%s cannot be read: %s; trying again for %.0f s", path, error.strerror, sum(PAUSES))
            time.sleep(pause)
    if hashlib.sha256(data).hexdigest() != digest:
        raise PictureChanged(path)
    return data


def open_picture(path: Path, data: bytes | None = None) -> Image.Image:
    """The whole picture in 8-bit RGB: turned upright by its EXIF orientation; of several frames, the first.

    16 bits and more are scaled to 8. Colour profiles are not applied, as in sd-scripts. Transparency is laid on
    white, as viewers show it; sd-scripts drops it instead and trains whatever colours lie hidden beneath.
    `data`: the file's bytes, where they were read already. Raises PictureError when it cannot be read.
    """
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=tuple(FORMATS)) as opened:
            check_size(opened.size)
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except PICTURE_ERRORS as error:
        raise PictureError(path, str(error) or type(error).__name__) from error


def open_shown(shown: Shown) -> Image.Image:
    """The picture that a text encoder looks at. Raises PictureError."""
    path = Path(shown.file)
    return open_picture(path, read_unchanged(path, shown.digest))


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


def open_alpha(path: Path, data: bytes) -> Image.Image | None:
    """How opaque each pixel is, in mode L, turned like the picture; None where all are. `data`: the file's bytes.

    Raises PictureError.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as opened:
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
