"""An image of the dataset as the numbers that are trained: cut, scaled, mirrored, with its mask. No torch here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data import pictures
from trainer.data.augmentation import RESAMPLING, Cut, cut_by_rules, resampling_of, shift_colours
from trainer.data.buckets import Size
from trainer.data.dataset import Entry


def pixels_of(
    entry: Entry, mirrored: bool, cut: Cut | None = None, colours: np.random.Generator | None = None
) -> NDArray[np.float32]:
    """The image in its bucket: (3, height, width), from -1 to 1; the centre without `cut`."""
    picture = pictures.open_picture(entry.path, pictures.read_unchanged(entry.path, entry.digest))
    options = entry.subset.options
    cut = cut or cut_by_rules(picture.size, entry.bucket, options)
    resampling = resampling_of(picture.size, cut.scaled, options.resize_interpolation)
    picture = cut.apply(picture, entry.bucket, resampling)
    if colours:
        picture = shift_colours(picture, colours)
    pixels = pictures.to_pixels(picture)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if mirrored else pixels


def mask_of(entry: Entry, cut: Cut, size: Size) -> NDArray[np.uint8] | None:
    """The image's mask in its bucket, scaled to `size`: (1, height, width); None where it has none."""
    if entry.mask:
        data = pictures.read_unchanged(entry.mask, entry.mask_digest)
        picture: Image.Image | None = pictures.open_picture(entry.mask, data).convert("L")
    else:
        picture = pictures.open_alpha(entry.path, pictures.read_unchanged(entry.path, entry.digest))
    if picture is None:
        return None
    picture = cut.apply(picture, entry.bucket, RESAMPLING["bilinear"]).resize(size, RESAMPLING["area"])
    return np.asarray(picture)[None]
