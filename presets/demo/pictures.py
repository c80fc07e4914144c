"""Draws the demo's pictures: coloured shapes, zorbs, and the mixed bag the VAE practises on. No torch here."""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

PICTURE_SIZE = 64
_OVERSAMPLING = 4  # everything is drawn four times as large and averaged down, which is the antialiasing

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (225, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 220, 40),
    "green": (30, 160, 60),
    "cyan": (50, 200, 220),
    "blue": (35, 70, 215),
    "purple": (130, 50, 175),
    "pink": (250, 130, 185),
}
GROUNDS: dict[str, Colour] = {"white": (255, 255, 255), "black": (0, 0, 0)}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle")


class Canvas:
    """A picture in the making; all coordinates and lengths are in pixels of the finished 64x64 picture."""

    def __init__(self, ground: Colour) -> None:
        side = PICTURE_SIZE * _OVERSAMPLING
        self._image = Image.new("RGB", (side, side), ground)
        self._draw = ImageDraw.Draw(self._image)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """A filled circle."""
        x, y = centre
        box = [(value * _OVERSAMPLING) for value in (x - radius, y - radius, x + radius, y + radius)]
        self._draw.ellipse(box, fill=colour)

    def polygon(self, points: list[Point], colour: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in points], fill=colour)

    def path(self, points: list[Point], width: float, colour: Colour) -> None:
        """A line through `points` with round ends and joints."""
        scaled = [(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in points]
        self._draw.line(scaled, fill=colour, width=max(1, round(width * _OVERSAMPLING)), joint="curve")
        for end in (points[0], points[-1]):
            self.disc(end, width / 2, colour)

    def picture(self) -> Image.Image:
        """The finished RGB picture, 64x64."""
        return self._image.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BOX)


@dataclass(frozen=True)
class ShapePicture:
    """What a base-model picture shows; `centre` and `radius` (half the shape's height) are in pixels."""

    colour: str
    shape: str
    ground: str
    centre: Point
    radius: float

    @property
    def caption(self) -> str:
        """For example "a red circle on a white ground"."""
        return f"a {self.colour} {self.shape} on a {self.ground} ground"

    def draw(self) -> Image.Image:
        """The RGB picture, 64x64."""
        canvas = Canvas(GROUNDS[self.ground])
        draw_shape(canvas, self.shape, self.centre, self.radius, COLOURS[self.colour])
        return canvas.picture()


def draw_shape(canvas: Canvas, shape: str, centre: Point, radius: float, colour: Colour) -> None:
    """Put an upright circle, square or triangle, `2 * radius` high, onto the canvas."""
    x, y = centre
    if shape == "circle":
        canvas.disc(centre, radius, colour)
    elif shape == "square":
        half = radius * 0.9  # so that a square looks as large as a circle of the same radius
        canvas.polygon([(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)], colour)
    elif shape == "triangle":
        half_base = 2 * radius / math.sqrt(3)  # equilateral
        canvas.polygon([(x, y - radius), (x + half_base, y + radius), (x - half_base, y + radius)], colour)
    else:
        raise ValueError(f"shape: {shape!r} is none of {', '.join(SHAPES)}")


def random_shape_picture(rng: random.Random) -> ShapePicture:
    """One of the base model's training pictures, every colour, shape and ground equally likely."""
    shape = rng.choice(SHAPES)
    radius = rng.uniform(11, 22)
    reach = radius * (2 / math.sqrt(3) if shape == "triangle" else 1) + 2
    return ShapePicture(
        colour=rng.choice(list(COLOURS)),
        shape=shape,
        ground=rng.choice(list(GROUNDS)),
        centre=(rng.uniform(reach, PICTURE_SIZE - reach), rng.uniform(reach, PICTURE_SIZE - reach)),
        radius=radius,
    )


def draw_mixed_picture(rng: random.Random) -> Image.Image:
    """A 64x64 picture of one to five shapes, rings, dots, lines or tilted ellipses in any colour.

    Only the VAE sees these: it has to be able to encode what a LoRA will be taught later.
    """
    canvas = Canvas(_random_colour(rng) if rng.random() < 0.1 else rng.choice(list(GROUNDS.values())))
    for _ in range(rng.randint(1, 4)):
        centre = (rng.uniform(8, PICTURE_SIZE - 8), rng.uniform(8, PICTURE_SIZE - 8))
        colour = _random_colour(rng)
        radius = rng.uniform(4, 22)
        kind = rng.choice(("shape", "ring", "line", "ellipse", "dots"))
        if kind == "shape":
            draw_shape(canvas, rng.choice(SHAPES), centre, radius, colour)
        elif kind == "ring":
            outline = ellipse_points(centre, radius, radius * rng.uniform(0.3, 1), rng.uniform(0, math.pi))
            canvas.path(outline, rng.uniform(2, 5), colour)
        elif kind == "line":
            far_end = (rng.uniform(4, PICTURE_SIZE - 4), rng.uniform(4, PICTURE_SIZE - 4))
            canvas.path([centre, far_end], rng.uniform(1.5, 5), colour)
        elif kind == "ellipse":
            canvas.polygon(ellipse_points(centre, radius, radius * rng.uniform(0.3, 1), rng.uniform(0, 3)), colour)
        else:
            canvas.disc(centre, radius, colour)
            for _ in range(rng.randint(1, 4)):
                angle, distance = rng.uniform(0, math.tau), radius * rng.uniform(0, 0.8)
                spot = (centre[0] + distance * math.cos(angle), centre[1] + distance * math.sin(angle))
                size = rng.uniform(2, 7)
                canvas.disc(spot, size, _random_colour(rng))
                canvas.disc(spot, size * 0.5, _random_colour(rng))
    return canvas.picture()


def ellipse_points(centre: Point, long_radius: float, short_radius: float, tilt: float) -> list[Point]:
    """The closed outline of an ellipse turned by `tilt` radians, as 65 points."""
    turns = [math.tau * index / 64 for index in range(65)]
    cos_tilt, sin_tilt = math.cos(tilt), math.sin(tilt)
    return [
        (
            centre[0] + long_radius * math.cos(turn) * cos_tilt - short_radius * math.sin(turn) * sin_tilt,
            centre[1] + long_radius * math.cos(turn) * sin_tilt + short_radius * math.sin(turn) * cos_tilt,
        )
        for turn in turns
    ]


def _random_colour(rng: random.Random) -> Colour:
    """Mostly a named colour, black or white; now and then any colour at all."""
    if rng.random() < 0.2:
        return (rng.randrange(256), rng.randrange(256), rng.randrange(256))
    return rng.choice([*COLOURS.values(), *GROUNDS.values()])
