"""Sample images during training, which do not disturb it."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from trainer import devices, files
from trainer.data import likeness
from trainer.data.pictures import PictureError, open_picture
from trainer.models.text import TextSource
from trainer.recipe.prompts import Prompt
from trainer.training.beginning import Beginning
from trainer.training.state import State

logger = logging.getLogger(__name__)
DIFFERENCES = "differences"  # folder among the samples, of pictures that show where two of them differ


class Sampler:
    """Makes the sample images of a training, in the process that holds the run's lock; does nothing in the others."""

    def __init__(self, state: State, begun: Beginning, aside: threading.Lock, text: TextSource | None) -> None:
        """`aside`: held while what is kept off the device is on it for a moment; `text`: where the prompts' texts are
        found encoded."""
        self._state = state
        self._begun = begun
        self._aside = aside
        self._text = text
        self._last: dict[tuple[int, int, bool], SampleName] = {}  # that this session made, by what it shows

    def is_due(self) -> bool:
        """Whether the steps or epochs completed just now call for sample images."""
        config, step = self._begun.config, self._state.global_step
        epoch, place = self._begun.plan.place(step)
        by_step = config.sample_every_n_steps and step % config.sample_every_n_steps == 0
        by_epoch = config.sample_every_n_epochs and place == 0 and epoch % config.sample_every_n_epochs == 0
        return bool(by_step or by_epoch)

    def sample(self, *, resumed: bool = False) -> None:
        """Make the prompts' images with the weights that sample_weights names, write each and say so.

        `resumed`: they are the first of a session, are kept beside those that there are of this step, and are compared
        with them. A device that has no room for them or a disk that refuses them is an event and a warning; the
        training goes on. Its random state is addressed, and so is not touched.
        """
        if self._begun.prompts:
            with self._begun.agreement.waited_for():
                if self._begun.session.writes:
                    self._make(resumed)

    def _kinds(self) -> list[str]:
        """Which weights are sampled."""
        wanted = self._begun.config.sample_weights
        if wanted == "both":
            return ["average", "raw"] if self._state.has_average else ["average"]
        return [wanted]

    def _make(self, resumed: bool) -> None:
        begun, state = self._begun, self._state
        kinds = self._kinds()
        events, step, total = begun.session.events, state.global_step, len(begun.prompts) * len(kinds)
        done = 0
        try:
            for kind in kinds:
                weights = state.exported_weights() if kind == "average" else contextlib.nullcontext()
                with self._aside, weights:
                    events.write("sampling", step, done=done, total=total)
                    images = state.model.samples(begun.prompts, begun.config.sample_sampler, begun.device, self._text)
                    with contextlib.closing(images):
                        for index, (prompt, image) in enumerate(zip(begun.prompts, images, strict=True)):
                            self._write(SampleName(step, index, prompt.seed, kind == "raw", ""), prompt, image, resumed)
                            done += 1
                            events.write("sampling", step, done=done, total=total)
        except (RuntimeError, PictureError) as error:  # most often the device's memory is too small for larger pictures
            advice = " Give smaller ones with --w and --h." if devices.ran_out_of_memory(error) else ""
            message = f"the sample images cannot be made: {error}.{advice}"
            logger.warning("Step %d: %s The training goes on without them.", step, message)
            events.write("warning", step, kind="sample_failed", message=message)
            events.write("sampling", step, done=total, total=total)
            devices.give_back_memory(begun.device)

    def _write(self, name: SampleName, prompt: Prompt, image: Image.Image, resumed: bool) -> None:
        session, folder = self._begun.session, self._begun.run.samples
        before = self._last.get(name.what) or newest_before(folder, name.what, session.resumed_from)
        if resumed:
            name = name._replace(resume=f"{session.number:03d}")
        data = io.BytesIO()
        image.save(data, "PNG")
        try:
            files.write_bytes(folder / str(name), data.getvalue())
            compared = self._compare(before, name, image, resumed) if before else {}
            self._last[name.what] = name
        except (OSError, PictureError) as error:
            logger.warning("The sample image %s cannot be written: %s", name, error)
            message = f"{name} cannot be written: {error}"
            session.events.write("warning", name.step, kind="sample_failed", message=message)
            return
        session.events.write(
            "sample_saved",
            name.step,
            path=f"{folder.name}/{name}",
            prompt=prompt.text,
            index=name.place,
            seed=prompt.seed,
            **({"weights": "raw"} if name.raw else {}),
            **({"resumed": True} if resumed else {}),
            **({"ssim": compared["ssim"], "before_step": compared["before_step"]} if compared else {}),
        )
        if compared and resumed:
            session.events.write("samples_compared", name.step, path=f"{folder.name}/{name}", **compared)

    def _compare(self, before: SampleName, name: SampleName, image: Image.Image, resumed: bool) -> dict[str, Any]:
        """How alike a picture is to the one before; after a resume also where they differ, as a picture.

        Raises OSError and PictureError.
        """
        folder = self._begun.run.samples
        earlier = open_picture(folder / str(before))
        ssim = likeness.structural_similarity(earlier, image)
        compared: dict[str, Any] = {"before": f"{folder.name}/{before}", "before_step": before.step, "ssim": ssim}
        if not resumed or earlier.size != image.size:
            return compared
        picture, mean, most = likeness.difference(earlier, image)
        data = io.BytesIO()
        picture.save(data, "PNG")
        shown = folder / DIFFERENCES / str(name)
        shown.parent.mkdir(exist_ok=True)
        files.write_bytes(shown, data.getvalue())
        compared |= {"equal": most == 0, "mean_difference": mean, "largest_difference": most}
        return compared | {"difference": f"{folder.name}/{DIFFERENCES}/{name}"}


class SampleName(NamedTuple):
    """The name of a sample's file. `resume`: the number of the session that began with it; "" for any other."""

    step: int
    place: int  # of the prompt
    seed: int
    raw: bool  # made with the weights that are trained, where files hold others
    resume: str

    @property
    def what(self) -> tuple[int, int, bool]:
        """What pictures of several steps have to have in common to be compared."""
        return self.place, self.seed, self.raw

    def __str__(self) -> str:
        tail = ("-raw" if self.raw else "") + (f"-resume{self.resume}" if self.resume else "")
        return f"step{self.step:08d}-{self.place:02d}-{self.seed}{tail}.png"


NAME = re.compile(r"step(\d{8,})-(\d{2,})-(-?\d+)(-raw)?(?:-resume(\d{3,}))?\.png")


def newest_before(folder: Path, what: tuple[int, int, bool], resumed_from: int | None) -> SampleName | None:
    """The newest picture of the same prompt, seed and kind of weights that leads to a resume; of a step with several
    the one that was made as the training went on."""
    if resumed_from is None:
        return None
    result = []
    for path in folder.glob("step*.png"):
        if match := NAME.fullmatch(path.name):
            step, place, seed, raw, resume = match.groups()
            other = SampleName(int(step), int(place), int(seed), bool(raw), resume or "")
            if other.what == what and other.step <= resumed_from:
                result.append(other)
    return max(result, key=lambda other: (other.step, not other.resume, other.resume), default=None)
