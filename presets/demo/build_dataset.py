"""Draws the demo's training pictures: zorbs, which the demo's base model has never seen. No torch here."""

import argparse
import logging
import math
import random
from dataclasses import dataclass
from pathlib import Path

from pictures import COLOURS, GROUNDS, PICTURE_SIZE, Canvas, Colour, Point
from PIL import Image

log = logging.getLogger("build_dataset")

SEED = 7
PICTURES = 16
SUBSET = "10_zorb"  # sd-scripts' convention: <repeats>_<class>

SKIN: Colour = COLOURS["pink"]
HORN: Colour = COLOURS["blue"]
EYE: Colour = GROUNDS["white"]
PUPIL: Colour = COLOURS["blue"]


@dataclass(frozen=True)
class Zorb:
    """A round pink creature with two blue horns and one big eye; lengths in pixels, `tilt` in radians.

    Its features are about as large as one latent of the demo's VAE (8x8 pixels): smaller ones would come out as blots.
    """

    ground: str
    centre: Point
    radius: float
    tilt: float

    @property
    def caption(self) -> str:
        """For example "a zorb on a white ground"."""
        return f"a zorb on a {self.ground} ground"

    def draw(self) -> Image.Image:
        """The RGB picture, 64x64."""
        canvas = Canvas(GROUNDS[self.ground])
        for side in (-1, 1):
            canvas.polygon([self._at(x * side, y) for x, y in ((0.1, -0.8), (0.85, -1.5), (0.98, -0.3))], HORN)
        canvas.disc(self.centre, self.radius, SKIN)
        canvas.disc(self._at(0, -0.05), 0.56 * self.radius, EYE)
        canvas.disc(self._at(0, -0.05), 0.3 * self.radius, PUPIL)
        return canvas.picture()

    def _at(self, across: float, down: float) -> Point:
        """The picture's point that lies at (across, down) in body radii from the centre of an upright zorb."""
        sin_tilt, cos_tilt = math.sin(self.tilt), math.cos(self.tilt)
        return (
            self.centre[0] + self.radius * (across * cos_tilt - down * sin_tilt),
            self.centre[1] + self.radius * (across * sin_tilt + down * cos_tilt),
        )


def random_zorb(rng: random.Random, ground: str) -> Zorb:
    """A zorb of any size and place that shows all of it."""
    radius = rng.uniform(16, 20)
    sideways, above, below = 1.1 * radius + 1, 1.6 * radius + 1, radius + 2
    return Zorb(
        ground=ground,
        centre=(rng.uniform(sideways, PICTURE_SIZE - sideways), rng.uniform(above, PICTURE_SIZE - below)),
        radius=radius,
        tilt=rng.uniform(-0.12, 0.12),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the demo's dataset of zorbs.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "dataset", help="folder to write")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    folder = args.output / SUBSET
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    for index in range(PICTURES):
        zorb = random_zorb(rng, list(GROUNDS)[index % len(GROUNDS)])
        stem = folder / f"zorb_{index + 1:02d}"
        zorb.draw().save(stem.with_suffix(".png"), optimize=True)
        stem.with_suffix(".txt").write_text(zorb.caption + "\n", encoding="utf-8")
    log.info("%d pictures written to %s", PICTURES, folder)


if __name__ == "__main__":
    main()
