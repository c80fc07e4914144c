"""What is computed once, before the first step: pictures and captions encoded in batches by all processes, and kept.

A value depends on its content and on the settings of its collection alone: batches are always full (a short one is
filled up with its last member), and which members share one follows from the dataset, not from where an earlier
session was interrupted. So a cache that was lost, damaged or left half done comes back the same.
"""

from __future__ import annotations

import bisect
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer import devices, quantities
from trainer.caching import packs, stores
from trainer.caching.packs import Arrays
from trainer.caching.stores import DiskStore, MemoryStore, Store, latent_key
from trainer.data import pictures
from trainer.data.buckets import Size
from trainer.data.captions import Shown
from trainer.data.dataset import Entry
from trainer.data.folder_scan import no_collections
from trainer.data.pixels import pixels_of
from trainer.distributed import beside
from trainer.distributed.agreement import Agreement
from trainer.models.text import TextSource
from trainer.options.config import Config
from trainer.refusal import Refused

logger = logging.getLogger(__name__)
PREPARATION = 1  # to be raised when what becomes of a picture before it is encoded changes
MOST_DECODERS = 8  # threads that read pictures while others are encoded
Input = TypeVar("Input")
Member = TypeVar("Member", contravariant=True)
Lending = Callable[[], AbstractContextManager[None]]


class CacheFull(Refused):
    """The disk cannot take the cache; what was computed is kept."""


class Groups(Protocol[Member, Input]):
    """Everything of one kind that is to be encoded, in groups that are computed together."""

    def __len__(self) -> int:
        """How many groups there are."""
        ...

    def number_of(self, member: Member) -> int:
        """The group of a member."""
        ...

    def keys(self, number: int) -> list[bytes]:
        """The keys of a group's values."""
        ...

    def prepare(self, number: int) -> Input:
        """What the encoder takes; called on several threads."""
        ...

    def compute(self, prepared: Input) -> list[Arrays]:
        """The values of a group; a filled-up batch gives more than there are keys."""
        ...


class Progress(Protocol):
    """Is told how far it is; may raise StopRequested."""

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` values are there."""
        ...

    def finished(self, total: int, computed: int) -> None:
        """All are there; `computed` were missing."""
        ...


# --- pictures ------------------------------------------------------------------------------------------------------


Picture = tuple[Entry, bool]  # and whether it is mirrored


class PictureGroups:
    """The pictures, and the mirror images of those that are mirrored, in groups of one bucket. Copies count once."""

    def __init__(
        self, entries: Sequence[Entry], *, batch: int, encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        self._entries = entries
        self._batch = batch
        self._encode = encode
        seen: set[bytes] = set()
        alike: dict[tuple[Size, bool], list[tuple[int, bytes]]] = {}  # what can share a batch: place and key of each
        with no_collections():
            for place, entry in enumerate(entries):
                for mirrored in (False, True)[: 1 + entry.subset.options.flip_aug]:
                    key = latent_key(entry, mirrored)
                    if key not in seen:
                        seen.add(key)
                        alike.setdefault((entry.bucket, mirrored), []).append((place, key))
            members = [member for kind in sorted(alike) for member in alike[kind]]
        self._places = np.fromiter((place for place, _ in members), np.int32, len(members))
        self._keys = b"".join(key for _, key in members)
        lengths = [len(alike[kind]) for kind in sorted(alike)]
        self._mirrored = np.repeat(np.array([mirrored for _, mirrored in sorted(alike)], bool), lengths)
        firsts = np.cumsum([0, *lengths])
        self._starts = np.concatenate(
            [np.arange(first, first + length, batch) for first, length in zip(firsts, lengths, strict=False)]
            + [firsts[-1:]]
        ).astype(np.int32)  # of each group, and the end of the last

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _range(self, number: int) -> range:
        return range(int(self._starts[number]), int(self._starts[number + 1]))

    def members(self, number: int) -> list[Picture]:
        return [(self._entries[self._places[index]], bool(self._mirrored[index])) for index in self._range(number)]

    def number_of(self, member: Picture) -> int:
        """The group of a picture. Looks at all of them."""
        key = latent_key(*member)
        return next(number for number in range(len(self)) if key in self.keys(number))

    def keys(self, number: int) -> list[bytes]:
        size = packs.KEY_BYTES
        return [self._keys[size * index : size * (index + 1)] for index in self._range(number)]

    def prepare(self, number: int) -> Tensor:
        """(batch, 3, height, width). Raises PictureError."""
        pixels = [pixels_of(*member) for member in self.members(number)]
        return torch.from_numpy(np.stack(pixels + pixels[-1:] * (self._batch - len(pixels))))

    def compute(self, prepared: Tensor) -> list[Arrays]:
        mean, std = self._encode(prepared)
        return [{"mean": mean[row].numpy(), "std": std[row].numpy()} for row in range(len(mean))]


# --- captions ------------------------------------------------------------------------------------------------------


Text = tuple[str, Shown | None]  # a caption, and the picture that the text encoder is shown with it


class CaptionGroups:
    """Captions in groups; behind them other texts, so that these change no group of the captions."""

    def __init__(
        self,
        texts: Sequence[Text],
        *,
        batch: int,
        encode: Callable[..., Sequence[Arrays]],
        others: Iterable[Text] = (),
    ) -> None:
        """`texts`: sorted; `encode` is given captions, and their pictures where it is to be shown any."""
        further = sorted(set(others) - set(texts), key=lambda text: (text[0], text[1] or ()))
        self._groups = [
            kind[start : start + batch] for kind in (texts, further) for start in range(0, len(kind), batch)
        ]
        self._batch = batch
        self._encode = encode

    def __len__(self) -> int:
        return len(self._groups)

    def members(self, number: int) -> Sequence[Text]:
        return self._groups[number]

    def number_of(self, member: Text) -> int:
        """The group of a text. Looks at all of them."""
        return next(number for number, group in enumerate(self._groups) if member in group)

    def keys(self, number: int) -> list[bytes]:
        return [stores.text_key(*text) for text in self.members(number)]

    def prepare(self, number: int) -> list[tuple[str, Image.Image | None]]:
        """Raises PictureError."""
        members = [(text, shown and pictures.open_shown(shown)) for text, shown in self.members(number)]
        return members + members[-1:] * (self._batch - len(members))

    def compute(self, prepared: list[tuple[str, Image.Image | None]]) -> list[Arrays]:
        texts, looked_at = [text for text, _ in prepared], [picture for _, picture in prepared]
        return list(self._encode(texts, looked_at) if any(looked_at) else self._encode(texts))


# --- filling a cache -----------------------------------------------------------------------------------------------


def fill(store: Store, groups: Groups[Member, Input], agreement: Agreement, progress: Progress) -> None:
    """Compute and put what is missing; all processes take part.

    A group is computed whole even when only one of its values is missing. `progress` is told about the values of all
    processes, estimated from this one's where each writes to the disk itself. Raises CacheFull, and what `groups` and
    `progress` raise.
    """
    # The first process's view counts: what each sees depends on when it looks.
    missing, total = agreement.share(_missing(store, groups))[0]
    wanted = sum(len(places) for places in missing.values())
    present = done = total - wanted
    progress(done, total)
    todo = list(missing)
    mine = todo[agreement.process :: agreement.processes]
    computed = _computed(groups, mine, _decoders(agreement.processes))
    for _ in range(-(-len(todo) // agreement.processes)):  # as often in every process
        outcome = next(computed, None)
        for number, values in filter(None, [outcome] if store.shared else agreement.share(outcome)):
            if done == present:
                _require_room(store, values, wanted)
            _put(store, groups.keys(number), missing[number], values)
            done += len(missing[number]) * (agreement.processes if store.shared else 1)
        progress(min(done, total), total)
    store.finish_writing()
    agreement.wait()
    if agreement.processes > 1:
        store.refresh()
        left, _ = _missing(store, groups)  # where the processes do not see the same disk
        for number, values in _computed(groups, list(left), _decoders(agreement.processes)):
            _put(store, groups.keys(number), left[number], values)
        store.finish_writing()
        agreement.wait()
    progress.finished(total, wanted)


@no_collections()
def _missing(store: Store, groups: Groups[Member, Input]) -> tuple[dict[int, list[int]], int]:
    """Group -> places in it that are missing; and the number of all values."""
    keys: list[bytes] = []
    starts = []
    for number in range(len(groups)):
        starts.append(len(keys))
        keys += groups.keys(number)
    missing: dict[int, list[int]] = {}
    for place in store.missing(keys):
        number = bisect.bisect_right(starts, place) - 1
        missing.setdefault(number, []).append(place - starts[number])
    return missing, len(keys)


def _decoders(processes: int) -> int:
    """Threads that prepare groups, in each of so many processes of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_DECODERS, cores // processes))


def _computed(
    groups: Groups[Member, Input], numbers: Sequence[int], workers: int
) -> Iterator[tuple[int, list[Arrays]]]:
    """(group, values) of each; the next groups are prepared on threads while one is computed."""
    ahead: deque[tuple[int, Future[Input]]] = deque()
    pool = beside.pool(workers, "decoder")
    try:
        upcoming = iter(numbers)
        while True:
            while len(ahead) <= workers and (number := next(upcoming, None)) is not None:
                ahead.append((number, pool.submit(groups.prepare, number)))
            if not ahead:
                return
            number, prepared = ahead.popleft()
            try:
                values = groups.compute(prepared.result())
            except RuntimeError as error:
                if not devices.ran_out_of_memory(error):
                    raise
                raise Refused(
                    "vae_batch_size, text_encoder_batch_size: the GPU has too little memory for so many at a time; "
                    f"lower them, or resolution ({str(error).splitlines()[0]})"
                ) from error
            yield number, values
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _put(store: Store, keys: Sequence[bytes], places: Sequence[int], values: Sequence[Arrays]) -> None:
    try:
        for place in places:
            store.put(keys[place], values[place])
    except OSError as error:
        raise CacheFull(
            f"cache_dir: the cache cannot be written: {error}; what is cached already is kept. Free some space, choose "
            "another cache_dir, or set cache_latents_to_disk and cache_text_encoder_outputs_to_disk off"
        ) from error


def _require_room(store: Store, values: Sequence[Arrays], count: int) -> None:
    """Refuse before hours are spent on what the disk cannot take, warn of what memory cannot. Raises CacheFull."""
    needed = sum(array.nbytes for value in values for array in value.values()) / len(values) * count
    room = store.room()
    if needed <= room:
        return
    if not store.shared:
        logger.warning(
            "The cache takes about %s of memory, but only %s are free; cache_latents_to_disk = true "
            "and cache_text_encoder_outputs_to_disk = true use the disk instead",
            *(quantities.size(needed), quantities.size(room)),
        )
        return
    raise CacheFull(
        f"cache_dir: the disk is too small: the cache needs about {quantities.size(needed)} more, and "
        f"{quantities.size(room)} are free. Free some space, choose another cache_dir, or lower resolution"
    )


# --- reading a cache -----------------------------------------------------------------------------------------------


class Source(Generic[Member, Input]):
    """Finds values in a filled cache; one that turns out to be damaged is computed again, as it was at first."""

    def __init__(self, store: Store, groups: Groups[Member, Input], lending: Lending) -> None:
        self._store = store
        self._groups = groups
        self._lending = lending
        self._lock = threading.Lock()
        self._threads = torch.get_num_threads()  # with which the cache was filled, and on which bits depend

    def __call__(self, key: bytes, member: Member) -> Arrays:
        """The arrays of a member, whose key this is; not to be written to. Safe to call from several threads."""
        cached = self._store.get(key)
        if cached is not None:
            return cached
        with self._lock:
            return self._store.get(key) or self._again(key, member)

    def _again(self, key: bytes, member: Member) -> Arrays:
        number = self._groups.number_of(member)
        place = self._groups.keys(number).index(key)
        prepared = self._groups.prepare(number)
        with self._lending():
            values = beside.apart(lambda: self._groups.compute(prepared), self._threads)
        try:
            self._store.put(key, values[place])
            self._store.finish_writing()
        except OSError as error:  # the training can go on without it
            logger.warning("What was computed again cannot be kept: %s", error)
        return values[place]


# --- the two sources of a training ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoder(Generic[Input]):
    """How something is encoded."""

    encode: Callable[[Input], Any]
    settings: Mapping[str, Any]  # everything that decides the result besides what is encoded
    about: Mapping[str, Any]  # for people
    lending: Lending  # within, the encoder is where it was while the cache was filled
    former: Mapping[str, Any] = field(default_factory=dict)  # settings of the same in caches of earlier versions


def latent_source(
    config: Config, entries: Sequence[Entry], encoder: Encoder[Tensor], agreement: Agreement, progress: Progress
) -> Callable[[Entry, bool], Arrays]:
    """Encode every image (and its mirror image, if wanted) that is not cached yet, and control pictures; returns where
    to find them.

    `encoder.encode`: pixels (batch, 3, height, width) -> mean, std.
    """
    groups = PictureGroups(stores.pictures_of(entries), batch=config.vae_batch_size, encode=encoder.encode)
    more = {"batch": config.vae_batch_size, "preparation": PREPARATION}
    store = _store(config.cache_path if config.cache_latents_to_disk else None, "latents", encoder, more)
    fill(store, groups, agreement, progress)
    source = Source(store, groups, encoder.lending)
    return lambda entry, mirrored: source(latent_key(entry, mirrored), (entry, mirrored))


def text_source(
    config: Config,
    entries: Sequence[Entry],
    encoder: Encoder[Any],
    agreement: Agreement,
    progress: Progress,
    others: Iterable[Text] = (),
    *,
    shows: bool = False,
) -> TextSource:
    """Encode every caption (and the empty one) that is not cached yet; returns where to find them.

    `encoder.encode`: captions -> the arrays of each; `others`: further texts, of sample prompts; `shows`: the encoder
    is given the control pictures as well.
    """
    texts: list[Text] = [(text, None) for text in stores.texts_of(entries)]
    if shows:
        texts = [*stores.shown_texts_of(entries)]
    groups = CaptionGroups(texts, batch=config.text_encoder_batch_size, encode=encoder.encode, others=others)
    folder = config.cache_path if config.cache_text_encoder_outputs_to_disk else None
    store = _store(folder, "text", encoder, {"batch": config.text_encoder_batch_size})
    fill(store, groups, agreement, progress)
    source = Source(store, groups, encoder.lending)

    def find(caption: str, shown: Shown | None = None) -> Arrays:
        return source(stores.text_key(caption, shown), (caption, shown))

    return find


def _store(folder: Path | None, kind: stores.Kind, encoder: Encoder[Any], more: Mapping[str, Any]) -> Store:
    """`more`: settings besides the encoder's."""
    if folder is None:
        return MemoryStore()
    settings, former = {**encoder.settings, **more}, {**encoder.former, **more}
    if stores.exists(folder, kind, former) and not stores.exists(folder, kind, settings):
        settings = former
    about = encoder.about
    earlier = stores.earlier_format(folder)
    if earlier.files:
        logger.warning(
            "%s holds %d files (%.1f MB) of an earlier cache format, which are not used any more; "
            "python -m trainer cache prune %s removes them",
            *(folder, earlier.files, earlier.bytes / 1e6, folder),
        )
    try:
        return DiskStore(folder, kind, settings, about)
    except OSError as error:
        raise CacheFull(f"cache_dir: {folder} cannot be used: {error}; choose another cache_dir") from error
