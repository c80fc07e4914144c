"""A picture file becomes RGB pixels of a bucket's size. No torch here."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trainer import buckets


def open_picture(path: Path) -> Image.Image:
    """The whole picture in RGB: turned upright by its EXIF orientation, the first frame, transparency on white.

    Raises OSError, ValueError or another of Pillow's errors (see `PICTURE_ERRORS`) when it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as opened:
            opened.load()
            picture: Image.Image = ImageOps.exif_transpose(opened)
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


PICTURE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    OverflowError,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def fit(picture: Image.Image, bucket: buckets.Size, crop: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """The picture scaled to cover the bucket, then cropped to it at `crop`: shares of the slack to the left, above."""
    covering = buckets.cover(picture.size, bucket)
    if covering != picture.size:
        picture = picture.resize(covering, Image.Resampling.LANCZOS)
    left = int(crop[0] * (covering[0] - bucket[0]) + 0.5)
    top = int(crop[1] * (covering[1] - bucket[1]) + 0.5)
    return picture.crop((left, top, left + bucket[0], top + bucket[1]))


def to_pixels(picture: Image.Image) -> NDArray[np.float32]:
    """(3, height, width), from -1 for black to 1 for white."""
    values = np.asarray(picture, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(values.transpose(2, 0, 1))
