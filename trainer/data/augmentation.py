"""Where an image is cut, and what is done to its colours, in one use of it. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from trainer.data import buckets
from trainer.data.buckets import Size
from trainer.options.config import Config

FACE = re.compile(r".*_(\d+)_(\d+)_(\d+)_(\d+)", re.DOTALL)  # centre x, centre y, width, height, in pixels
COLOUR_SHARE = 1 / 3  # of the uses have their colours changed, as in sd-scripts
HUE_SHIFT = 8 / 180  # of the circle, at most
GAMMA = (0.95, 1.05)
RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}


@dataclass(frozen=True)
class Cut:
    """What a picture is scaled to, and where its bucket is cut out of that, in pixels."""

    scaled: Size
    left: int
    top: int

    def apply(self, picture: Image.Image, bucket: Size, resampling: Image.Resampling) -> Image.Image:
        """The part of a picture; a mask of another size than its image is scaled alike."""
        if picture.size != self.scaled:
            picture = picture.resize(self.scaled, resampling)
        return picture.crop((self.left, self.top, self.left + bucket[0], self.top + bucket[1]))


def cut_at(size: Size, bucket: Size, place: tuple[float, float] = (0.5, 0.5)) -> Cut:
    """Scale to cover the bucket and cut at `place`: shares of the slack that go to the left and above."""
    width, height = buckets.cover(size, bucket)
    return Cut((width, height), int(place[0] * (width - bucket[0]) + 0.5), int(place[1] * (height - bucket[1]) + 0.5))


def cut_by_rules(size: Size, bucket: Size, options: Config, place: tuple[float, float] = (0.5, 0.5)) -> Cut:
    """`cut_at`, by the options' bucket_rules: those of sd-scripts round half pixels up and halves of the slack down."""
    if options.bucket_rules == "cover":
        return cut_at(size, bucket, place)
    scaled = size
    if options.enable_bucket and options.bucket_no_upscale:
        scaled = buckets.unenlarged(size, options.resolution_size, options.bucket_reso_steps)
    covers = scaled[0] >= bucket[0] and scaled[1] >= bucket[1]
    if not covers or not (options.random_crop if not options.enable_bucket else options.bucket_no_upscale):
        scale = buckets.enlargement(size, bucket)
        scaled = max(bucket[0], int(size[0] * scale + 0.5)), max(bucket[1], int(size[1] * scale + 0.5))
    left, top = (int(share * (length - wanted)) for share, length, wanted in zip(place, scaled, bucket, strict=True))
    return Cut(scaled, left, top)


def resampling_of(size: Size, scaled: Size, interpolation: str) -> Image.Resampling:
    """How a picture of this size is scaled; "automatic" is what sd-scripts takes when nothing is said."""
    if interpolation != "automatic":
        return RESAMPLING[interpolation]
    smaller = size[0] >= scaled[0] and size[1] >= scaled[1]
    return RESAMPLING["area" if smaller else "lanczos"]


def face_in(stem: str) -> tuple[int, int, int, int] | None:
    """Centre x and y, width and height of the face that a file's name tells, in pixels; None where it tells none."""
    match = FACE.fullmatch(stem)
    return (int(match[1]), int(match[2]), int(match[3]), int(match[4])) if match else None


def cut_face(
    size: Size,
    bucket: Size,
    face: tuple[int, int, int, int],
    margins: tuple[float, float],
    draw: np.random.Generator,
    *,
    anywhere: bool,
) -> Cut:
    """Scale and cut so that the shorter side shows between the least and the most face sizes, centred on the face.

    `anywhere` (random_crop): moved about it, less often far than near. Never enlarged, unless the picture is smaller
    than its bucket. The rules are those of sd-scripts.
    """
    centre_x, centre_y, width, height = face
    face_size = max(1, width, height)
    shown = min(bucket)
    least = max(bucket[0] / size[0], bucket[1] / size[1])  # below this scale the picture does not cover the bucket
    low = max(least, min(1.0, shown / (face_size * margins[1])))
    high = max(low, min(1.0, shown / (face_size * margins[0])))
    scale = low + (high - low) * float(draw.random())
    scaled = (max(bucket[0], int(size[0] * scale + 0.5)), max(bucket[1], int(size[1] * scale + 0.5)))
    places = []
    for length, wanted, face_centre in zip(scaled, bucket, (centre_x, centre_y), strict=True):
        centre = int(face_centre * scale + 0.5)
        start = centre - wanted // 2
        if anywhere:
            reach = max(length - centre, centre, 0)
            start += int(draw.integers(0, reach + 1)) + int(draw.integers(0, reach + 1)) - reach
        elif margins[0] != margins[1] and face_size > shown // 10 and face_size >= 40:
            start += int(draw.integers(-(face_size // 20), face_size // 20 + 1))
        places.append(max(0, min(start, length - wanted)))
    return Cut(scaled, *places)


def cut_of_use(size: Size, bucket: Size, stem: str, options: Config, draw: np.random.Generator) -> Cut:
    """Where one use of an image is cut; `draw` is read only where the options vary it."""
    face = face_in(stem) if options.face_crop_range else None
    if options.face_crop_range and face:
        return cut_face(size, bucket, face, options.face_crop_range, draw, anywhere=options.random_crop)
    if options.random_crop:
        across, down = draw.random(2)
        return cut_by_rules(size, bucket, options, (float(across), float(down)))
    return cut_by_rules(size, bucket, options)


def shift_colours(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
    """The picture as it is in two thirds of the draws; else its hue turned or its brightness bent a little."""
    if draw.random() >= COLOUR_SHARE:
        return picture
    if draw.random() < 0.5:
        values = np.asarray(picture.convert("HSV")).copy()
        turn = round(float(draw.uniform(-HUE_SHIFT, HUE_SHIFT)) * 256)
        values[..., 0] = (values[..., 0].astype(np.int16) + turn) % 256
        return Image.fromarray(values, "HSV").convert("RGB")
    gamma = float(draw.uniform(*GAMMA))
    table = np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8).tolist()
    return picture.point(table * 3)
