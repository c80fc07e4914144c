"""Sample images during training, which do not disturb it."""

from __future__ import annotations

import contextlib
import io
import logging
import threading

from PIL import Image

from trainer import devices, files
from trainer.data.pictures import PictureError
from trainer.models.text import TextSource
from trainer.recipe.prompts import Prompt
from trainer.training.beginning import Beginning
from trainer.training.state import State

logger = logging.getLogger(__name__)


class Sampler:
    """Makes the sample images of a training, in the process that holds the run's lock; does nothing in the others."""

    def __init__(self, state: State, begun: Beginning, aside: threading.Lock, text: TextSource | None) -> None:
        """`aside`: held while what is kept off the device is on it for a moment; `text`: where the prompts' texts are
        found encoded."""
        self._state = state
        self._begun = begun
        self._aside = aside
        self._text = text

    def is_due(self) -> bool:
        """Whether the steps or epochs completed just now call for sample images."""
        config, step = self._begun.config, self._state.global_step
        epoch, place = self._begun.plan.place(step)
        by_step = config.sample_every_n_steps and step % config.sample_every_n_steps == 0
        by_epoch = config.sample_every_n_epochs and place == 0 and epoch % config.sample_every_n_epochs == 0
        return bool(by_step or by_epoch)

    def sample(self) -> None:
        """Make the prompts' images with the weights as they would be exported, write each and say so.

        A device that has no room for them or a disk that refuses them is an event and a warning; the training goes
        on. Its random state is addressed, and so is not touched.
        """
        if self._begun.prompts:
            with self._begun.agreement.waited_for():
                if self._begun.session.writes:
                    self._make()

    def _make(self) -> None:
        begun, state = self._begun, self._state
        events, step, total = begun.session.events, state.global_step, len(begun.prompts)
        try:
            with self._aside, state.exported_weights():
                events.write("sampling", step, done=0, total=total)
                images = state.model.samples(begun.prompts, begun.config.sample_sampler, begun.device, self._text)
                with contextlib.closing(images):
                    for index, (prompt, image) in enumerate(zip(begun.prompts, images, strict=True)):
                        self._write(index, prompt, image)
                        events.write("sampling", step, done=index + 1, total=total)
        except (RuntimeError, PictureError) as error:  # most often the device's memory is too small for larger pictures
            advice = " Give smaller ones with --w and --h." if devices.ran_out_of_memory(error) else ""
            message = f"the sample images cannot be made: {error}.{advice}"
            logger.warning("Step %d: %s The training goes on without them.", step, message)
            events.write("warning", step, kind="sample_failed", message=message)
            events.write("sampling", step, done=total, total=total)
            devices.give_back_memory(begun.device)

    def _write(self, index: int, prompt: Prompt, image: Image.Image) -> None:
        begun, step = self._begun, self._state.global_step
        name = f"step{step:08d}-{index:02d}-{prompt.seed}.png"
        data = io.BytesIO()
        image.save(data, "PNG")
        try:
            files.write_bytes(begun.run.samples / name, data.getvalue())
        except OSError as error:
            logger.warning("The sample image %s cannot be written: %s", name, error)
            message = f"{name} cannot be written: {error}"
            begun.session.events.write("warning", step, kind="sample_failed", message=message)
        else:
            path = f"{begun.run.samples.name}/{name}"
            begun.session.events.write(
                "sample_saved", step, path=path, prompt=prompt.text, index=index, seed=prompt.seed
            )
