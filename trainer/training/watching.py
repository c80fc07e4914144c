"""The alarms of a training: fed with what its steps show, told as warnings. It reads, and changes nothing."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import read_speed
from trainer.models.text import to_tensor
from trainer.options.config import Config
from trainer.recipe.alarms import Alarm
from trainer.recipe.conditions import SlowReading, Throughput
from trainer.recipe.resume_watch import DriftAfterResume
from trainer.runs import alarm_kinds, resources
from trainer.runs.events import EventWriter
from trainer.runs.resources import Cooling
from trainer.training.session import Session
from trainer.training.state import State

logger = logging.getLogger(__name__)
CAPTIONS = ("", "a photo of a person", "a painting of a landscape at night", "three red apples on a wooden table")


def tell(events: EventWriter, step: int, alarms: Iterable[Alarm]) -> None:
    """Write a warning for each alarm."""
    for alarm in alarms:
        fields = alarm_kinds.warning(alarm.kind, alarm.seen)
        logger.warning("Step %d: %s", step, fields["message"])
        events.write("warning", step, **fields)


def gpu_ids(device: torch.device, count: int) -> list[str]:
    """The UUIDs of the GPUs of a run's processes on this machine; `device` is this process's."""
    if device.type != "cuda":
        return []
    first = device.index or 0
    indices = range(count) if count > 1 else range(first, first + 1)
    properties = [torch.cuda.get_device_properties(index) for index in indices if index < torch.cuda.device_count()]
    return [str(gpu.uuid) for gpu in properties if hasattr(gpu, "uuid")]  # other makers' have none


def recording(
    config: Config, session: Session, device: torch.device, processes: int, save_bytes: Callable[[], int | None]
) -> contextlib.AbstractContextManager[None]:
    """Within, what the run uses of its machine is recorded, by the process that writes."""
    if not (session.writes and config.resources_every_n_seconds):
        return contextlib.nullcontext()
    recorder = resources.Recorder(
        config,
        session.events,
        resources.find_gpus(gpu_ids(device, processes)),
        config.run_dir,
        step=lambda: session.global_step,
        save_bytes=save_bytes,
    )
    return resources.recorded(recorder, config.resources_every_n_seconds)


def cooling(config: Config, device: torch.device, stopping: Callable[[], bool]) -> Cooling:
    """What pauses this process while its GPU is too hot; the others wait for it at the next step."""
    limit = config.max_gpu_temperature
    gpus = resources.find_gpus(gpu_ids(device, 1) if limit else [])
    return Cooling(limit, gpus, stopping)


class Watch:
    """Feeds the alarms of a run from its steps."""

    def __init__(self, state: State, events: EventWriter, total_steps: int) -> None:
        config = state.config
        self._on = config.alarms
        self._state = state
        self._events = events
        self._every = config.alarm_window
        state.alarms.total_steps = total_steps
        self._drift = DriftAfterResume(config, state.alarms.level_now())
        self._throughput = Throughput(config)
        self._reading = SlowReading(config, config.max_data_loader_n_workers)
        self._read = read_speed.TRAINED.total
        self._text = TextReference(state) if self._on and config.alarm_text_encoder_drift else None
        self._distances: dict[int, float] = {}
        self._began = time.monotonic()
        self.diverged: tuple[int, str] | None = None  # when in this session a divergence was told, and what was seen

    def paused(self, seconds: float) -> None:
        """Take that the training stood still for so long."""
        self._began += seconds

    def weights(self, step: int) -> None:
        """Look at the weights as they are after `step` steps, now and then."""
        if self._text and self._text.is_trained and step % self._every == 0:
            self._distances[step] = self._text.distance()

    def step(self, step: int, loss: float, gradient: float, rate: float) -> None:
        """Take a step's numbers, in the order of the steps."""
        if not self._on:
            return
        alarms = self._state.alarms.after(step, loss, gradient, rate)
        if step in self._distances:
            alarms += self._state.alarms.text_encoder(self._distances.pop(step))
        self.diverged = next(((step, alarm.seen) for alarm in alarms if alarm.kind == "divergence"), self.diverged)
        drift = self._drift.add(loss)
        tell(self._events, step, [*alarms, *([drift] if drift else [])])

    def interval(self, steps: int, data_seconds: float) -> None:
        """Take that so many steps are done since the last call, by the device too."""
        began, self._began = self._began, time.monotonic()
        before, self._read = self._read, read_speed.TRAINED.total
        if not self._on:
            return
        step_seconds, read_seconds = (self._began - began) / steps, self._read.since(before).seconds / steps
        slow = self._throughput.add(step_seconds, data_seconds / steps), self._reading.add(step_seconds, read_seconds)
        tell(self._events, self._state.global_step, filter(None, slow))


class TextReference:
    """What a trained text encoder makes of fixed captions without what is trained in it.

    A LoRA adds nothing where its second matrix is zero; for the moment of the measurement it is.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        second = [
            parameter
            for name, parameter in state.weights.items()
            if name.startswith("text_encoder") and name.endswith("lora_B.weight")
        ]
        self.is_trained = bool(second)
        if not second:
            return
        with torch.no_grad():
            kept = [parameter.clone() for parameter in second]
            for parameter in second:
                parameter.zero_()
            try:
                self._before = self._outputs()
            finally:
                for parameter, values in zip(second, kept, strict=True):
                    parameter.copy_(values)

    def distance(self) -> float:
        """1 - the cosine similarity of the outputs now with those, the mean over the captions' tokens."""
        pairs = zip(self._outputs(), self._before, strict=True)
        similarities = [F.cosine_similarity(now, before, dim=-1).flatten() for now, before in pairs]
        return float(1 - torch.cat(similarities).mean())

    def _outputs(self) -> list[Tensor]:
        """What each caption becomes: (tokens, width), and whatever else of it the denoiser is given."""
        module = self._state.model.module()
        training = module.training
        module.eval()
        try:
            encoded = self._state.model.encode_captions(CAPTIONS)
        finally:
            module.train(training)
        tensors = [to_tensor(np.asarray(array)) for arrays in encoded for array in arrays.values()]
        return [tensor.float() for tensor in tensors if tensor.is_floating_point()]
