"""The stream of steps: which samples, with which noise, crop, timestep and caption, ready before they are needed."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer import randomness
from trainer.caching.packs import Arrays
from trainer.data import buckets, captions
from trainer.data.augmentation import Cut, cut_by_rules, cut_of_use
from trainer.data.buckets import Size
from trainer.data.dataset import Entry
from trainer.data.epochs import Origin
from trainer.data.pictures import PictureError
from trainer.data.pixels import mask_of, pixels_of
from trainer.distributed import beside
from trainer.models.model import TEXT
from trainer.models.text import MASK, TextSource
from trainer.options.config import Config
from trainer.recipe import losses
from trainer.recipe.timesteps import Timesteps
from trainer.refusal import Refused

logger = logging.getLogger(__name__)
LONG_WAIT = 60.0  # seconds for a step's images


class SampleFailed(Exception):
    """A worker could not prepare an image for the training; the message names it."""

    advice = "Look at this image and its caption; repair or remove them, then resume from the latest checkpoint."

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"{path} could not be prepared: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class Use:
    """One use of an image: its address in an epoch."""

    entry: Entry
    epoch: int
    repeat: int
    warmed: float = 1.0  # how much of token_warmup_step is over


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one bucket for one forward and backward pass.

    `tensors`, each with the samples first: noise, timesteps, weights (the share of each sample in the step's mean
    loss), either latent_mean, latent_std or pixels, with latent_noise; geometry (original height and width, top and
    left of the crop in the scaled picture, height and width of the bucket, in pixels); text.<name> and, of tensors as
    long as the caption, text.<name>_mask, or what the family's tokenize gives; mask, of the latents' size, where images
    have one; control (latents) or control_pixels, where they have control pictures; and what the noise options need.
    `captions`: where they are encoded in the step by the family itself.
    """

    uses: tuple[Use, ...]
    tensors: dict[str, Tensor]
    captions: tuple[str, ...] = ()

    def to(self, device: torch.device) -> dict[str, Any]:
        """What the model takes, its tensors on the device; from pinned memory the host does not wait for the copy."""
        batch: dict[str, Any] = {
            name: tensor.to(device, non_blocking=tensor.is_pinned()) for name, tensor in self.tensors.items()
        }
        return batch | {"captions": self.captions} if self.captions else batch


@dataclass(frozen=True)
class Step:
    """What one optimizer step trains in this process. `digest` names the samples, captions and timesteps of all."""

    index: int  # completed steps before this one
    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    samples: int  # over all processes
    digest: str


@dataclass(frozen=True)
class Sources:
    """Where a sample's tensors come from; a cache that is not used is None, and the other source applies."""

    tokenize: Callable[[Sequence[str]], dict[str, Tensor]] | None  # None: the captions themselves are encoded
    latents: Callable[[Entry, bool], Arrays] | None  # (entry, mirrored) -> mean, std
    text: TextSource | None  # caption, and the picture shown with it -> its conditioning by name
    latent_channels: int
    latent_factor: int  # pixels per latent, along each side
    device: torch.device  # where the batches are taken
    timesteps: Timesteps
    ragged: frozenset[str] = frozenset()  # arrays of `text` that are as long as their caption
    shows: bool = False  # control pictures are shown to the text encoder as well


class Plan:
    """Which samples each step trains: a pure function of the options, the images and the origin of the epochs.

    Datasets of different batch sizes have steps of their own, which take turns at random.
    """

    def __init__(
        self,
        config: Config,
        entries: Sequence[Entry],
        batches_per_step: int,
        origin: Origin,
        planned_steps: int | None = None,
    ) -> None:
        """`batches_per_step`: accumulation x processes; `planned_steps`: the run's length, of which token_warmup_step
        may be a share."""
        self._entries = entries
        self._seed = config.seed
        self._planned_steps = config.max_train_steps if planned_steps is None else planned_steps
        self.origin = origin
        repeats = np.fromiter((entry.repeats for entry in entries), np.int32, len(entries))
        sizes = {size: number for number, size in enumerate(sorted({entry.sizes for entry in entries}))}
        numbers = np.fromiter((sizes[entry.sizes] for entry in entries), np.int32, len(entries))
        self._entry_of = np.repeat(np.arange(len(entries), dtype=np.int32), repeats)
        firsts = np.cumsum(repeats, dtype=np.int32) - repeats
        self._repeat_of = np.arange(len(self._entry_of), dtype=np.int32) - np.repeat(firsts, repeats)
        self._buckets = np.repeat(numbers, repeats)
        per_device = np.fromiter((entry.subset.options.train_batch_size for entry in entries), np.int32, len(entries))
        of_sample = np.repeat(per_device, repeats)
        self._groups = [
            (np.flatnonzero(of_sample == size).astype(np.int32), int(size) * batches_per_step)
            for size in np.unique(per_device)
        ]  # samples, and how many of them a step trains
        self.steps_per_epoch = sum(buckets.steps_per_epoch(len(members), size) for members, size in self._groups)
        self._order = lru_cache(maxsize=2)(self._compute_order)

    def _compute_order(self, epoch: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The samples of an epoch in their order, and where each step's begin (and the last one's end)."""
        orders, sizes = [], []
        for members, size in self._groups:
            numbers = self._buckets[members].astype(np.int64)
            orders.append(members[buckets.epoch_order(self._seed, epoch, numbers, size)])
            whole, rest = divmod(len(members), size)
            sizes.append(np.repeat(np.array([size, rest], np.int32), [whole, rest > 0]))
        order, size_of_step = np.concatenate(orders), np.concatenate(sizes)
        if len(self._groups) > 1:
            turns = randomness.generator(self._seed, "order of batch sizes", epoch).permutation(len(size_of_step))
            steps = np.split(order, np.cumsum(size_of_step)[:-1])
            order, size_of_step = np.concatenate([steps[turn] for turn in turns]), size_of_step[turns]
        return order, np.concatenate([[0], np.cumsum(size_of_step)]).astype(np.int32)

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, step in the epoch), both from 0, of the step that follows `step` completed ones."""
        epochs, place = divmod(step - self.origin.step, self.steps_per_epoch)
        return self.origin.epoch + epochs, place

    def samples(self, step: int) -> tuple[list[Use], list[int]]:
        """The samples of a step and the bucket number of each."""
        epoch, place = self.place(step)
        order, starts = self._order(epoch)
        chosen = order[starts[place] : starts[place + 1]]
        uses = []
        for index in chosen:
            entry = self._entries[self._entry_of[index]]
            uses.append(Use(entry, epoch, int(self._repeat_of[index]), self._warmed(entry.subset.options, step)))
        return uses, [int(self._buckets[index]) for index in chosen]

    def _warmed(self, options: Config, step: int) -> float:
        wanted = options.token_warmup_step
        steps = int(wanted * self._planned_steps) if wanted < 1 else wanted
        return min(1.0, step / steps) if steps else 1.0


class Samples:
    """Uses of images turned into the tensors of a micro-batch: pure functions of their addresses."""

    def __init__(self, config: Config, sources: Sources) -> None:
        self._config = config
        self._sources = sources
        self._masks: dict[str, NDArray[np.uint8] | None] = {}  # of images that are always cut alike
        self._pinned = sources.device.type == "cuda"  # then a copy to the GPU need not be waited for

    def _draw(self, purpose: str, use: Use) -> np.random.Generator:
        return randomness.generator(self._config.seed, purpose, use.entry.id, use.epoch, use.repeat)

    def timestep(self, use: Use) -> int | float:
        return self._sources.timesteps.draw(self._draw("timestep", use), use.entry.bucket)

    def caption(self, use: Use) -> str:
        entry = use.entry
        options = entry.subset.options
        return captions.caption_of_use(entry.caption, options, entry.id, use.epoch, use.repeat, use.warmed)

    def told(self, use: Use) -> tuple[int | float, str]:
        """The timestep and the caption of a use."""
        return self.timestep(use), self.caption(use)

    def micro_batch(
        self, uses: Sequence[Use], weight: float, told: Sequence[tuple[int | float, str]] | None = None
    ) -> MicroBatch:
        """Uses of one bucket, each with this share in the loss of its step. `told`: of each, if it is known already."""
        timesteps, texts = zip(*(told or [self.told(use) for use in uses]), strict=True)
        rows = [self._named_sample(use) for use in uses]
        if any("mask" in row for row in rows):
            rows = [row if "mask" in row else {**row, "mask": np.ones_like(row["noise"][:1])} for row in rows]
        prior = self._config.prior_loss_weight
        tensors = {name: self._stacked([row[name] for row in rows]) for name in rows[0]}
        others = {
            # Not torch's default precision, which another thread changes while it loads a component.
            "timesteps": torch.from_numpy(
                np.array(timesteps, np.int64 if isinstance(timesteps[0], int) else np.float32)
            ),
            "weights": torch.tensor(
                [weight * prior if use.entry.subset.is_reg else weight for use in uses], dtype=torch.float32
            ),
        }
        captions: tuple[str, ...] = ()
        if self._sources.text:
            shown = [use.entry.shown if self._sources.shows else None for use in uses]
            tensors |= self._conditioning(list(map(self._sources.text, texts, shown)))
        elif self._sources.tokenize:
            others |= self._sources.tokenize(texts)
        else:
            captions = tuple(texts)
        for name, tensor in others.items():
            tensors[name] = tensor.pin_memory() if self._pinned else tensor
        return MicroBatch(tuple(uses), tensors, captions)

    def _conditioning(self, rows: Sequence[Arrays]) -> dict[str, Tensor]:
        """Cached text of a batch; arrays as long as their caption with zeros behind and a mask."""
        tensors = {}
        for name in rows[0]:
            arrays = [row[name] for row in rows]
            if name in self._sources.ragged:
                lengths = np.array([len(array) for array in arrays])
                longest = int(lengths.max())
                rest = [(0, 0)] * (arrays[0].ndim - 1)
                arrays = [np.pad(array, [(0, longest - len(array)), *rest]) for array in arrays]
                tensors[f"{TEXT}{name}{MASK}"] = self._stacked(list(np.arange(longest) < lengths[:, None]))
            tensors[f"{TEXT}{name}"] = self._stacked(arrays)
        return tensors

    def _stacked(self, rows: Sequence[NDArray[Any]]) -> Tensor:
        """One tensor of all rows: the only copy that is made of what a cache has mapped. uint16 is bfloat16's bits."""
        kind = torch.from_numpy(np.empty(0, rows[0].dtype)).dtype
        batch = torch.empty((len(rows), *rows[0].shape), dtype=kind, pin_memory=self._pinned)
        np.stack(rows, out=batch.numpy())
        return batch.view(torch.bfloat16) if kind == torch.uint16 else batch

    def _named_sample(self, use: Use) -> Arrays:
        """The sample's arrays. Raises PictureError, Refused or SampleFailed, which name the image."""
        try:
            return self._sample(use)
        except (PictureError, Refused):
            raise
        except Exception as error:
            raise SampleFailed(use.entry.path, error) from error

    def _sample(self, use: Use) -> Arrays:
        options, sources = use.entry.subset.options, self._sources
        width, height = (side // sources.latent_factor for side in use.entry.bucket)
        shape = (sources.latent_channels, height, width)
        mirrored = options.flip_aug and self._draw("flip", use).random() < 0.5
        arrays: Arrays = {}
        cut: Cut | None = None
        if sources.latents:
            cached = sources.latents(use.entry, mirrored)
            arrays["latent_mean"], arrays["latent_std"] = cached["mean"], cached["std"]
        else:
            cut = cut_of_use(use.entry.size, use.entry.bucket, use.entry.path.stem, options, self._draw("crop", use))
            colours = self._draw("colour", use) if options.color_aug else None
            arrays["pixels"] = pixels_of(use.entry, mirrored, cut, colours)
        shown = cut or cut_by_rules(use.entry.size, use.entry.bucket, options)
        arrays["geometry"] = geometry(use.entry, shown, mirrored)
        arrays |= self._control(use, mirrored)
        if (mask := self._mask(use.entry, cut, (width, height))) is not None:
            arrays["mask"] = (mask[:, :, ::-1] if mirrored else mask) / np.float32(255)
        arrays["latent_noise"] = self._draw("vae", use).standard_normal(shape, dtype=np.float32)
        arrays |= self._noise(use, shape)
        return arrays

    def _control(self, use: Use, mirrored: bool) -> Arrays:
        """The control picture, mirrored with its image; where it is in the same bucket, also cut like that."""
        control = use.entry.control
        if control is None:
            return {}
        if self._sources.latents:
            return {"control": self._sources.latents(control, mirrored)["mean"]}
        options, cut = use.entry.subset.options, None
        if control.bucket == use.entry.bucket:
            cut = cut_of_use(control.size, control.bucket, use.entry.path.stem, options, self._draw("crop", use))
        return {"control_pixels": pixels_of(control, mirrored, cut)}

    def _mask(self, entry: Entry, cut: Cut | None, size: Size) -> NDArray[np.uint8] | None:
        """(1, height, width), from 0 where nothing is learnt to 255; None where there is no mask. `cut`: None for
        images that are always cut at the centre, whose masks are kept."""
        if not entry.mask and not entry.subset.options.alpha_mask:
            return None
        if cut:
            return mask_of(entry, cut, size)
        if entry.id not in self._masks:
            cut = cut_by_rules(entry.size, entry.bucket, entry.subset.options)
            self._masks[entry.id] = mask_of(entry, cut, size)
        return self._masks[entry.id]

    def _noise(self, use: Use, shape: tuple[int, int, int]) -> Arrays:
        config, draw = self._config, self._draw("noise", use)
        noise = draw.standard_normal(shape, dtype=np.float32)
        offset = self._noise_offset(use, shape[0])
        if config.multires_noise_iterations:
            if offset:  # first, as in sd-scripts: all of it is then brought to unit deviation
                noise = noise + offset.pop("offset_strength") * offset.pop("offset")
            noise = losses.pyramid_noise(noise, draw, config.multires_noise_iterations, config.multires_noise_discount)
        arrays: Arrays = {"noise": noise, **offset}
        if config.ip_noise_gamma:
            draw = self._draw("input noise", use)
            strength = draw.random() if config.ip_noise_gamma_random_strength else 1.0
            values = draw.standard_normal(shape, dtype=np.float32)
            arrays["input_noise"] = values * np.float32(config.ip_noise_gamma * strength)
        return arrays

    def _noise_offset(self, use: Use, channels: int) -> Arrays:
        if not self._config.noise_offset:
            return {}
        draw = self._draw("noise offset", use)
        offset = draw.standard_normal((channels, 1, 1), dtype=np.float32)
        strength = draw.random() if self._config.noise_offset_random_strength else 1.0
        return {
            "offset": offset,
            "offset_strength": np.float32(self._config.noise_offset * strength).reshape(1, 1, 1),
        }


def thread_pool(workers: int, name: str, device: torch.device) -> ThreadPoolExecutor:
    """Threads that prepare batches for a device."""

    def enter() -> None:
        """Pinned memory belongs to the thread's GPU, which is the first one unless it is told."""
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)

    return beside.pool(workers, name, enter)


class Loader:
    """Iterates over the steps from a place on, without an end; seeking costs nothing.

    With workers, threads prepare the next steps while one is trained; how many does not change a single bit.
    """

    def __init__(self, config: Config, plan: Plan, sources: Sources, processes: int = 1, process: int = 0) -> None:
        self._config = config
        self._plan = plan
        self._samples = Samples(config, sources)
        self._device = sources.device
        self._processes = processes
        self._process = process

    def steps(self, start: int) -> Generator[Step, None, None]:
        """The steps that follow `start` completed ones. Closing the generator ends its threads."""
        workers = self._config.max_data_loader_n_workers
        if workers == 0:
            step = start
            while True:
                yield self.build(step)
                step += 1
        pool = thread_pool(workers, "loader", self._device)
        ahead: deque[tuple[int, Future[Step]]] = deque()
        try:
            step = start
            while True:
                while len(ahead) < workers + 2:
                    ahead.append((step, pool.submit(self.build, step)))
                    step += 1
                yield self._patiently(*ahead.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _patiently(self, step: int, built: Future[Step]) -> Step:
        """What a worker builds; a wait that is too long for a healthy disk is told, with the images."""
        while True:
            try:
                return built.result(timeout=LONG_WAIT)
            except TimeoutError:
                if built.done():  # ready in the last moment, or it is the worker's own error
                    return built.result()
                paths = ", ".join(sorted({str(use.entry.path) for use in self._plan.samples(step)[0]}))
                logger.warning("Still waiting for the images of step %d; is the disk well? %s", step + 1, paths)

    def build(self, step: int) -> Step:
        """Everything a step needs, on the host. Depends on nothing but the step."""
        uses, numbers = self._plan.samples(step)
        per_device = uses[0].entry.subset.options.train_batch_size  # the same for all
        dealt = buckets.micro_batches(range(len(uses)), numbers, per_device, self._processes)
        told = [self._samples.told(use) for use in uses]
        micro_batches = []
        for shares in dealt:
            mine, weight = shares[self._process], 1 / len(uses)
            if not mine:  # all processes step together: a sample of weight zero
                mine, weight = shares[0][:1], 0.0
            chosen, known = [uses[index] for index in mine], [told[index] for index in mine]
            micro_batches.append(self._samples.micro_batch(chosen, weight, known))
        described = [
            f"{use.entry.id} {use.epoch} {use.repeat} {timestep} {caption}"
            for use, (timestep, caption) in zip(uses, told, strict=True)
        ]
        return Step(
            index=step,
            epoch=uses[0].epoch,
            micro_batches=tuple(micro_batches),
            samples=len(uses),
            digest=hashlib.sha256("\n".join(described).encode()).hexdigest()[:16],
        )


def geometry(entry: Entry, cut: Cut, mirrored: bool) -> NDArray[np.float32]:
    """What SDXL is told of a picture, in pixels: original height and width, top and left of the crop in the picture as
    it was scaled (and mirrored), height and width of its bucket."""
    (width, height), (across, down) = entry.size, entry.bucket
    left = cut.scaled[0] - cut.left - across if mirrored else cut.left
    return np.array([height, width, cut.top, left, down, across], np.float32)
