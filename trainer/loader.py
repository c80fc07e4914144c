"""The stream of steps: which samples, with which noise, crop, timestep and caption, ready before they are needed."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer import buckets, cache, captions, losses, pictures, randomness
from trainer.config import Config
from trainer.dataset import Entry


@dataclass(frozen=True)
class Origin:
    """Epochs are counted from here: at `step` completed steps, epoch `epoch` (from 0) begins.

    It moves when a resume changes the images or the batch, so that no draw of an earlier epoch comes again.
    """

    step: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Use:
    """One use of an image: its address in an epoch."""

    entry: Entry
    epoch: int
    repeat: int


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one bucket for one forward and backward pass.

    `tensors`, each with the samples first: noise, timesteps, weights (the share of each sample in the step's mean
    loss), either latent_mean, latent_std or pixels, with latent_noise; either tokens or text_states; and what
    the noise options need.
    """

    uses: tuple[Use, ...]
    tensors: dict[str, Tensor]

    def to(self, device: torch.device) -> dict[str, Tensor]:
        """Its tensors on the device; from pinned memory the host does not wait for the copy."""
        return {name: tensor.to(device, non_blocking=tensor.is_pinned()) for name, tensor in self.tensors.items()}


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

    tokenize: Callable[[Sequence[str]], Tensor]
    latents: Callable[[Entry, bool], cache.Arrays] | None  # (entry, mirrored) -> mean, std
    text_states: Callable[[str], Tensor] | None  # caption -> (tokens, width)
    latent_channels: int
    latent_factor: int  # pixels per latent, along each side


class Plan:
    """Which samples each step trains: a pure function of the options, the images and the origin of the epochs."""

    def __init__(self, config: Config, entries: Sequence[Entry], global_batch: int, origin: Origin) -> None:
        self._entries = entries
        self._seed = config.seed
        self.global_batch = global_batch
        self.origin = origin
        repeats = np.array([entry.repeats for entry in entries])
        sizes = sorted({entry.bucket for entry in entries})
        numbers = np.array([sizes.index(entry.bucket) for entry in entries])
        self._entry_of = np.repeat(np.arange(len(entries)), repeats)
        self._repeat_of = np.concatenate([np.arange(count) for count in repeats])
        self._buckets = np.repeat(numbers, repeats).astype(np.int64)
        self.steps_per_epoch = buckets.steps_per_epoch(len(self._entry_of), global_batch)
        self._order = lru_cache(maxsize=2)(self._compute_order)

    def _compute_order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return buckets.epoch_order(self._seed, epoch, self._buckets, self.global_batch)

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, step in the epoch), both from 0, of the step that follows `step` completed ones."""
        epochs, place = divmod(step - self.origin.step, self.steps_per_epoch)
        return self.origin.epoch + epochs, place

    def step_of_epoch(self, epoch: int) -> int:
        """The number of completed steps at which an epoch begins."""
        return self.origin.step + (epoch - self.origin.epoch) * self.steps_per_epoch

    def samples(self, step: int) -> tuple[list[Use], list[int]]:
        """The samples of a step and the bucket number of each."""
        epoch, place = self.place(step)
        chosen = self._order(epoch)[place * self.global_batch : (place + 1) * self.global_batch]
        uses = [Use(self._entries[self._entry_of[index]], epoch, int(self._repeat_of[index])) for index in chosen]
        return uses, [int(self._buckets[index]) for index in chosen]


class Samples:
    """Uses of images turned into the tensors of a micro-batch: pure functions of their addresses."""

    def __init__(self, config: Config, sources: Sources) -> None:
        self._config = config
        self._sources = sources

    def _draw(self, purpose: str, use: Use) -> np.random.Generator:
        return randomness.generator(self._config.seed, purpose, use.entry.id, use.epoch, use.repeat)

    def timestep(self, use: Use) -> int:
        return int(self._draw("timestep", use).integers(self._config.min_timestep, self._config.max_timestep))

    def caption(self, use: Use) -> str:
        entry = use.entry
        return captions.caption_of_use(entry.caption, entry.subset.options, entry.id, use.epoch, use.repeat)

    def micro_batch(self, uses: Sequence[Use], weight: float) -> MicroBatch:
        """Uses of one bucket, each with this share in the loss of its step."""
        rows = [self._sample(use) for use in uses]
        tensors = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        tensors["timesteps"] = torch.tensor([self.timestep(use) for use in uses])
        tensors["weights"] = torch.full((len(uses),), weight)
        texts = [self.caption(use) for use in uses]
        if self._sources.text_states:
            tensors["text_states"] = torch.stack([self._sources.text_states(text) for text in texts])
        else:
            tensors["tokens"] = self._sources.tokenize(texts)
        if torch.cuda.is_available():
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return MicroBatch(tuple(uses), tensors)

    def _sample(self, use: Use) -> cache.Arrays:
        options, sources = use.entry.subset.options, self._sources
        width, height = (side // sources.latent_factor for side in use.entry.bucket)
        shape = (sources.latent_channels, height, width)
        mirrored = options.flip_aug and self._draw("flip", use).random() < 0.5
        arrays: cache.Arrays = {}
        if sources.latents:
            cached = sources.latents(use.entry, mirrored)
            arrays["latent_mean"], arrays["latent_std"] = cached["mean"], cached["std"]
        else:
            crop = self._draw("crop", use).random(2) if options.random_crop else (0.5, 0.5)
            arrays["pixels"] = pixels_of(use.entry, mirrored, (float(crop[0]), float(crop[1])))
        arrays["latent_noise"] = self._draw("vae", use).standard_normal(shape, dtype=np.float32)
        arrays |= self._noise(use, shape)
        return arrays

    def _noise(self, use: Use, shape: tuple[int, int, int]) -> cache.Arrays:
        config, draw = self._config, self._draw("noise", use)
        noise = draw.standard_normal(shape, dtype=np.float32)
        if config.multires_noise_iterations:
            noise = losses.pyramid_noise(noise, draw, config.multires_noise_iterations, config.multires_noise_discount)
        arrays: cache.Arrays = {"noise": noise}
        if config.noise_offset:
            draw = self._draw("noise offset", use)
            arrays["offset"] = draw.standard_normal((shape[0], 1, 1), dtype=np.float32)
            strength = draw.random() if config.noise_offset_random_strength else 1.0
            arrays["offset_strength"] = np.float32(config.noise_offset * strength).reshape(1, 1, 1)
        if config.ip_noise_gamma:
            draw = self._draw("input noise", use)
            strength = draw.random() if config.ip_noise_gamma_random_strength else 1.0
            values = draw.standard_normal(shape, dtype=np.float32)
            arrays["input_noise"] = values * np.float32(config.ip_noise_gamma * strength)
        return arrays


class Loader:
    """Iterates over the steps from a place on, without an end; seeking costs nothing.

    With workers, threads prepare the next steps while one is trained; how many does not change a single bit.
    """

    def __init__(self, config: Config, plan: Plan, sources: Sources, processes: int = 1, process: int = 0) -> None:
        self._config = config
        self._plan = plan
        self._samples = Samples(config, sources)
        self._processes = processes
        self._process = process

    def steps(self, start: int) -> Iterator[Step]:
        workers = self._config.max_data_loader_n_workers
        if workers == 0:
            step = start
            while True:
                yield self.build(step)
                step += 1
        pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
        ahead: deque[Future[Step]] = deque()
        try:
            step = start
            while True:
                while len(ahead) < workers + 2:
                    ahead.append(pool.submit(self.build, step))
                    step += 1
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def build(self, step: int) -> Step:
        """Everything a step needs, on the host. Depends on nothing but the step."""
        uses, numbers = self._plan.samples(step)
        dealt = buckets.micro_batches(range(len(uses)), numbers, self._config.train_batch_size, self._processes)
        micro_batches = []
        for shares in dealt:
            mine, weight = shares[self._process], 1 / len(uses)
            if not mine:  # all processes step together: a sample of weight zero
                mine, weight = shares[0][:1], 0.0
            micro_batches.append(self._samples.micro_batch([uses[index] for index in mine], weight))
        samples = self._samples
        described = [
            f"{use.entry.id} {use.epoch} {use.repeat} {samples.timestep(use)} {samples.caption(use)}" for use in uses
        ]
        return Step(
            index=step,
            epoch=uses[0].epoch,
            micro_batches=tuple(micro_batches),
            samples=len(uses),
            digest=hashlib.sha256("\n".join(described).encode()).hexdigest()[:16],
        )


def pixels_of(
    entry: Entry, mirrored: bool, crop: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The image in its bucket: (3, height, width), from -1 to 1."""
    pixels = pictures.to_pixels(pictures.fit(pictures.open_picture(entry.path), entry.bucket, crop))
    return np.ascontiguousarray(pixels[:, :, ::-1]) if mirrored else pixels


def latent_source(
    config: Config,
    entries: Sequence[Entry],
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    identity: str,
    progress: Callable[[int, int], None],
) -> Callable[[Entry, bool], cache.Arrays]:
    """Encode every image (and its mirror image, if wanted) that is not cached yet; returns where to find them.

    `encode`: pixels (batch, 3, height, width) -> mean, std; `identity`: what else decides its result.
    """
    store = cache.Cache(config.cache_path / "latents" if config.cache_latents_to_disk else None)
    uses = [
        (entry, mirrored)
        for entry in entries
        for mirrored in ((False, True) if entry.subset.options.flip_aug else (False,))
    ]
    uses.sort(key=lambda use: (use[0].bucket, use[1], use[0].id))  # batches of one size

    def key(entry: Entry, mirrored: bool) -> str:
        settings = {"digest": entry.digest, "bucket": entry.bucket, "mirrored": mirrored, "by": identity, "version": 1}
        return cache.key_of(settings)

    def compute(chosen: Sequence[tuple[Entry, bool]]) -> list[cache.Arrays]:
        pixels = torch.from_numpy(np.stack([pixels_of(entry, mirrored) for entry, mirrored in chosen]))
        mean, std = encode(pixels)
        return [{"mean": mean[row].numpy(), "std": std[row].numpy()} for row in range(len(chosen))]

    done = 0
    for _, members in itertools.groupby(uses, key=lambda use: use[0].bucket):
        done = _fill_bucket(store, list(members), key, compute, config.vae_batch_size, progress, done, len(uses))

    lock = threading.Lock()

    def find(entry: Entry, mirrored: bool) -> cache.Arrays:
        found = store.get(key(entry, mirrored))
        if found is None:  # the file was damaged or removed meanwhile
            with lock:
                found = compute([(entry, mirrored)])[0]
                store.put(key(entry, mirrored), found)
        return found

    return find


def _fill_bucket(
    store: cache.Cache,
    members: list[tuple[Entry, bool]],
    key: Callable[[Entry, bool], str],
    compute: Callable[[Sequence[tuple[Entry, bool]]], list[cache.Arrays]],
    batch: int,
    progress: Callable[[int, int], None],
    done: int,
    total: int,
) -> int:
    """Fill in the pictures of one bucket; `done` of `total` were filled before. Returns how many are now."""
    store.fill(
        [key(*use) for use in members],
        lambda places: compute([members[place] for place in places]),
        batch,
        lambda count, _: progress(done + count, total),
    )
    return done + len(members)


def text_source(
    config: Config,
    entries: Sequence[Entry],
    encode: Callable[[Sequence[str]], Tensor],
    identity: str,
    progress: Callable[[int, int], None],
) -> Callable[[str], Tensor]:
    """Encode every caption (and the empty one) that is not cached yet; returns where to find them.

    `encode`: captions -> (captions, tokens, width); `identity`: what else decides its result.
    """
    to_disk = config.cache_text_encoder_outputs_to_disk
    store = cache.Cache(config.cache_path / "text" if to_disk else None)
    texts = sorted({captions.plain_caption(entry.caption, entry.subset.options) for entry in entries} | {""})

    def key(caption: str) -> str:
        return cache.key_of({"caption": caption, "by": identity, "version": 1})

    store.fill(
        [key(text) for text in texts],
        lambda places: [{"states": encode([texts[place]])[0].numpy()} for place in places],
        1,
        progress,
    )
    states = {}
    for text in texts:
        found = store.get(key(text))
        assert found is not None
        states[text] = torch.from_numpy(found["states"])
    return states.__getitem__
