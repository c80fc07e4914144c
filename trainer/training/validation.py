"""The loss on images that are not trained: measured alike every time, without disturbing the training."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import files, randomness
from trainer.data.dataset import Entry
from trainer.options.config import Config
from trainer.recipe import early_stopping
from trainer.recipe.early_stopping import Record
from trainer.recipe.schedule import LrCurve
from trainer.runs.events import EventWriter
from trainer.training.loader import MicroBatch, Plan, Samples, Sources, Use, thread_pool
from trainer.training.state import State

logger = logging.getLogger(__name__)
DRAWS = 4  # noise and timestep of each image, one from each quarter of what is trained
EPOCH = -1  # in the addresses; those of the training are 0 and above


def is_due(config: Config, plan: Plan, record: Record, step: int) -> bool:
    """Whether a validation belongs after `step` completed steps and has not been made yet."""
    if step == 0 or record.step == step:
        return False
    epoch, place = plan.place(step)
    every = config.validate_every_n_epochs or (0 if config.validate_every_n_steps else 1)
    by_step = config.validate_every_n_steps and step % config.validate_every_n_steps == 0
    return bool(by_step or (every and place == 0 and epoch % every == 0))


@dataclass(frozen=True)
class Measured:
    """A validation loss: of all draws, and of those of each band of timesteps."""

    loss: float
    bands: tuple[float, ...]


class Validator:
    """Measures the loss on the validation images: the training's own loss, with noise and timesteps that are the
    same every time, centred crops, whole captions and no dropout, so that the losses of two steps can be compared."""

    def __init__(
        self,
        config: Config,
        entries: Sequence[Entry],
        sources: Sources,
        state: State,
        device: torch.device,
        events: EventWriter,
        *,
        processes: int,
        process: int,
        add_up: Callable[[Tensor], Tensor],
        curve: LrCurve,
    ) -> None:
        """`add_up`: the sum of a tensor over the processes, which share the images out."""
        self._state = state
        self._device = device
        self._events = events
        self._processes, self._process = processes, process
        self._add_up = add_up
        self._curve = curve
        self._workers = config.max_data_loader_n_workers
        self._min_delta = config.early_stopping_min_delta
        seed = config.seed if config.validation_seed is None else config.validation_seed
        # Where not all are used, an image's content decides whether it is.
        chosen = sorted(entries, key=lambda entry: randomness.fraction(seed, "validation order", entry.id))
        if config.max_validation_steps:
            chosen = chosen[: config.max_validation_steps * config.train_batch_size]
        self._count = len(chosen)
        self._batches = _batches(chosen, config.train_batch_size)
        seeded = config.replace(seed=seed)
        parts = sources.timesteps.parts(DRAWS)
        self._draws = [Samples(seeded, dataclasses.replace(sources, timesteps=part)) for part in parts]
        self._spans = [part.span(config.resolution_size) for part in parts]
        named = [[entry.id for entry in chosen], seed, *sources.timesteps.described()]
        images = hashlib.sha256(files.json_bytes(named)).hexdigest()[:16]
        if state.validation.images != images:
            if state.validation.best_step is not None:
                logger.info("The validation images have changed, so the best validation loss is determined anew.")
            state.validation = Record(images)

    def run(self, given_up: Callable[[], bool]) -> None:
        """Measure, record and report the loss of the weights as they would be exported.

        `given_up` is asked between batches: nothing is recorded then, and the validation remains due.
        """
        state, started = self._state, time.perf_counter()
        if (measured := self._measure(given_up)) is None:
            return
        loss, train_loss = measured.loss, state.loss_average
        state.validation = record = state.validation.after(state.global_step, loss, train_loss, self._min_delta)
        state.note_validation(loss, self._curve)
        logger.info("step %d  validation loss %.4f (best %s)", state.global_step, loss, _best(record))
        self._events.write(
            "validation",
            state.global_step,
            loss=loss,
            train_loss=train_loss,
            best_loss=record.best_loss,
            best_step=record.best_step,
            not_better=record.not_better,
            images=self._count,
            bands=self._bands(measured),
            seconds=time.perf_counter() - started,
        )
        if message := early_stopping.warning(record, train_loss):
            logger.warning("%s", message)
            self._events.write("warning", state.global_step, kind="overfitting", message=message)

    def after_resume(self, given_up: Callable[[], bool], *, exact: bool) -> None:
        """Measure the weights that were restored, and compare with the last validation before. Nothing is counted: what
        the state has seen of validations is as the checkpoint has it.

        `exact`: whether the resume was said to be bit-exact, so that the losses of one step have to be equal.
        """
        state, before, started = self._state, self._state.validation, time.perf_counter()
        if (measured := self._measure(given_up)) is None:
            return
        same_step = before.step == state.global_step
        self._events.write(
            "resume_validation",
            state.global_step,
            loss=measured.loss,
            bands=self._bands(measured),
            before_step=before.step,
            before_loss=before.loss,
            equal=measured.loss == before.loss if same_step else None,
            images=self._count,
            seconds=time.perf_counter() - started,
        )
        text = f"{before.loss} at step {before.step}" if before.step is not None else "not measured"
        logger.info(
            "step %d  validation loss after the resume %s; before it %s", state.global_step, measured.loss, text
        )
        if exact and same_step and measured.loss != before.loss:
            message = (
                f"The validation loss after the resume is {measured.loss!r}, and was {before.loss!r} at the same step "
                "before it, although nothing is known to differ: check the memory of this machine and the images that "
                "are held out."
            )
            logger.warning("%s", message)
            self._events.write("warning", state.global_step, kind="validation_differs", message=message)

    def _bands(self, measured: Measured) -> list[dict[str, float]]:
        """For events: each band's timesteps, of 0 to 1000 for a picture of the training's size, and its loss."""
        pairs = zip(self._spans, measured.bands, strict=True)
        return [{"from": span[0], "to": span[1], "loss": loss} for span, loss in pairs]

    def _measure(self, given_up: Callable[[], bool]) -> Measured | None:
        """With the weights as they would be exported; None as soon as `given_up`."""
        with self._state.exported_weights():
            return self._losses(given_up)

    @torch.no_grad()
    def _losses(self, given_up: Callable[[], bool]) -> Measured | None:
        """The means over images and draws; None as soon as `given_up`."""
        module = self._state.model.module()
        training = module.training
        module.eval()
        total = torch.zeros(1 + len(self._draws), 2, device=self._device)  # losses and their number: all, each band
        try:
            with contextlib.closing(self._micro_batches()) as micro_batches:
                for draw, micro_batch in micro_batches:
                    if given_up():
                        return None
                    losses: Tensor = module(micro_batch.to(self._device))  # (batch,)
                    part = torch.stack([losses.float().sum(), losses.new_tensor(len(losses), dtype=torch.float32)])
                    total[0] += part
                    total[1 + draw] += part
        finally:
            module.train(training)
        loss, *bands = [loss_sum / number for loss_sum, number in self._add_up(total).tolist()]
        return Measured(loss, tuple(bands))

    def _micro_batches(self) -> Generator[tuple[int, MicroBatch], None, None]:
        """This process's share, each with the number of its draw; the next ones are prepared on threads while one is
        measured."""
        tasks = [
            (draw, samples, [Use(entry, EPOCH, draw) for entry in entries])
            for entries in self._batches[self._process :: self._processes]
            for draw, samples in enumerate(self._draws)
        ]
        if not self._workers:
            yield from ((draw, samples.micro_batch(uses, 1.0)) for draw, samples, uses in tasks)
            return
        pool = thread_pool(self._workers, "validation", self._device)
        ahead: deque[tuple[int, Future[MicroBatch]]] = deque()
        try:
            for draw, samples, uses in tasks:
                ahead.append((draw, pool.submit(samples.micro_batch, uses, 1.0)))
                if len(ahead) > self._workers:
                    first, ready = ahead.popleft()
                    yield first, ready.result()
            while ahead:
                first, ready = ahead.popleft()
                yield first, ready.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _batches(entries: Sequence[Entry], size: int) -> list[list[Entry]]:
    """Batches of one bucket each."""
    ordered = sorted(entries, key=lambda entry: (entry.sizes, entry.id))
    return [
        group[start : start + size]
        for _, members in itertools.groupby(ordered, key=lambda entry: entry.sizes)
        for group in [list(members)]
        for start in range(0, len(group), size)
    ]


def _best(record: Record) -> str:
    return "none" if record.best_loss is None else f"{record.best_loss:.4f} at step {record.best_step}"
