"""What a training computes once and keeps: latents and text encoder outputs, in memory or on disk. No torch here.

On disk a cache is a folder: `<cache_dir>/<kind>/<settings>/`, one collection for each kind and each combination of
settings that shapes the values (base model, precision, batch size ...). In a collection a value's key is its content,
the picture's or the caption's digest, and what was done to it. So neither a file's name, place or time nor the number
of pictures matters, and any number of runs can share a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil

from trainer import files, locks
from trainer.caching import packs
from trainer.caching.packs import Arrays, Packs
from trainer.data import captions
from trainer.data.augmentation import cut_by_rules
from trainer.data.captions import Shown
from trainer.data.dataset import Entry

logger = logging.getLogger(__name__)
CACHE_VERSION = 2  # 1 kept a file for each value
Kind = Literal["latents", "text"]
KINDS: tuple[Kind, ...] = ("latents", "text")
SETTINGS, LOCK = "settings.json", "lock"
COLLECTION_NAME = re.compile(r"[0-9a-f]{16}")
OWN_FILE = re.compile(r"\d+\.(pack|index|lock)|settings\.json|lock|\.tmp-.*", re.DOTALL)
EARLIER_FOLDER, EARLIER_FILE = re.compile(r"[0-9a-f]{2}"), re.compile(r"[0-9a-f]{64}\.safetensors|\.tmp-.*", re.DOTALL)
CONTENT_BYTES = packs.KEY_BYTES // 2  # the half of a key that names the content


def text_key(text: str, shown: Shown | None = None) -> bytes:
    """The key of what the text encoder makes of a text, and of the picture that it is shown with it."""
    content = text.encode(errors="surrogatepass") + (b"\0" + shown.digest.encode() if shown else b"")
    return hashlib.sha256(content).digest()[: packs.KEY_BYTES]


def latent_key(entry: Entry, mirrored: bool) -> bytes:
    """The key of the latents of a picture in its bucket: half of it is the picture, half what becomes of it."""
    (width, height), options = entry.bucket, entry.subset.options
    scaled: str = options.resize_interpolation
    if options.bucket_rules != "cover":
        cut = cut_by_rules(entry.size, entry.bucket, options)
        scaled = f"{scaled} {cut.scaled[0]}x{cut.scaled[1]}+{cut.left}+{cut.top}"
    treated = f"{width}x{height} {scaled}{' mirrored' if mirrored else ''} {entry.digest}"
    return bytes.fromhex(entry.digest[: 2 * CONTENT_BYTES]) + hashlib.sha256(treated.encode()).digest()[:CONTENT_BYTES]


def texts_of(entries: Iterable[Entry]) -> list[str]:
    """Every text that the images' captions come to when nothing varies them, and the empty one; in order."""
    return sorted({captions.plain_caption(entry.caption, entry.subset.options) for entry in entries} | {""})


def shown_texts_of(entries: Iterable[Entry]) -> list[tuple[str, Shown]]:
    """The same, of images with control pictures, each with the picture that the text encoder is shown; in order."""
    return sorted(
        {
            (text, entry.shown)
            for entry in entries
            if entry.shown
            for text in (captions.plain_caption(entry.caption, entry.subset.options), "")
        }
    )


def pictures_of(entries: Iterable[Entry]) -> list[Entry]:
    """The images, and behind them their control pictures."""
    entries = list(entries)
    return entries + [entry.control for entry in entries if entry.control]


def contents_of(entries: Sequence[Entry], others: Iterable[tuple[str, Shown | None]] = ()) -> set[bytes]:
    """The first halves of the keys of everything that can be cached of these images and of these other texts."""
    keys = [text_key(text) for text in texts_of(entries)] + [text_key(*text) for text in others]
    keys += [text_key(*text) for text in shown_texts_of(entries)]
    keys += [latent_key(entry, False) for entry in pictures_of(entries)]
    return {key[:CONTENT_BYTES] for key in keys}


class Store(Protocol):
    """Arrays by key. Those returned are not to be written to."""

    shared: bool  # with the other processes, once these refresh

    def room(self) -> int:
        """Bytes it can take."""
        ...

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """The places in `keys` of those that are not there."""
        ...

    def get(self, key: bytes) -> Arrays | None:
        """The arrays of a key; None when there are none, or only damaged ones, which is reported."""
        ...

    def put(self, key: bytes, arrays: Arrays) -> None:
        """Keep the arrays of a key. Raises OSError."""
        ...

    def refresh(self) -> None:
        """Learn of what other processes put."""
        ...

    def finish_writing(self) -> None:
        """Make durable what was put."""
        ...


class MemoryStore:
    """Keeps everything in this process."""

    shared = False

    def room(self) -> int:
        return psutil.virtual_memory().available

    def __init__(self) -> None:
        self._arrays: dict[bytes, Arrays] = {}

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        return [place for place, key in enumerate(keys) if key not in self._arrays]

    def get(self, key: bytes) -> Arrays | None:
        return self._arrays.get(key)

    def put(self, key: bytes, arrays: Arrays) -> None:
        self._arrays[key] = arrays

    def refresh(self) -> None:
        """Nobody else puts anything here."""

    def finish_writing(self) -> None:
        """Nothing here outlives the process."""


class DiskStore(Packs):
    """A collection on disk. While it is open, no pruning touches it."""

    shared = True

    def room(self) -> int:
        return shutil.disk_usage(self.folder).free

    def __init__(self, cache: Path, kind: Kind, settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """`settings`: everything that shapes the values besides what the keys say; `about`: for people only."""
        folder = cache / kind / settings_id(settings)
        self.close = weakref.finalize(self, _hold(folder).close)  # lets others prune
        document = {"version": CACHE_VERSION, "kind": kind, "settings": dict(settings), "about": dict(about)}
        data = files.json_bytes(document)
        if _bytes_of(folder / SETTINGS) != data:
            files.write_bytes(folder / SETTINGS, data)
        super().__init__(folder)


def settings_id(settings: Mapping[str, Any]) -> str:
    """The name of the collection with these settings."""
    return hashlib.sha256(files.json_bytes([CACHE_VERSION, dict(settings)])).hexdigest()[:16]


def exists(cache: Path, kind: Kind, settings: Mapping[str, Any]) -> bool:
    """Whether there is a collection with these settings."""
    return (cache / kind / settings_id(settings) / SETTINGS).is_file()


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _hold(folder: Path) -> io.FileIO:
    """Note that a collection is used now, and hold it against pruning until the returned file is closed."""
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # pruned just now
            try:
                file = locks.hold(path, shared=True)
            except locks.Held:  # being pruned
                time.sleep(0.05)
                continue
            except FileNotFoundError:
                raise
            except OSError:  # a file system without locks, where nothing is pruned
                file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
            with contextlib.suppress(OSError):
                os.utime(path)
            if locks.is_still(file, path):
                return file
            file.close()


# --- listing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collection:
    """A collection as it lies on the disk. Its entries are counted by its indexes; no value is read."""

    path: Path
    kind: str
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    entries: int
    bytes: int
    last_used: float  # seconds since 1970
    in_use: bool


@dataclass(frozen=True)
class Earlier:
    """Files of the earlier format, which is not read any more."""

    files: int
    bytes: int


def collections(cache: Path) -> list[Collection]:
    """Every collection of a cache folder, the one used last first. What is not ours is passed over."""
    result = [
        collection
        for kind in KINDS
        for folder in _subfolders(cache / kind, COLLECTION_NAME)
        if (collection := _collection(folder))
    ]
    return sorted(result, key=lambda collection: collection.last_used, reverse=True)


def earlier_format(cache: Path) -> Earlier:
    """How much there is of the earlier format."""
    sizes = [path.stat().st_size for path in _earlier_files(cache)]
    return Earlier(len(sizes), sum(sizes))


def _subfolders(folder: Path, name: re.Pattern[str]) -> list[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    return [Path(entry.path) for entry in entries if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]


def _own_files(folder: Path, name: re.Pattern[str]) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(
            Path(entry.path) for entry in entries if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        )


def _earlier_files(cache: Path) -> Iterator[Path]:
    for kind in KINDS:
        for folder in _subfolders(cache / kind, EARLIER_FOLDER):
            yield from _own_files(folder, EARLIER_FILE)


def _collection(folder: Path) -> Collection | None:
    try:
        document = json.loads((folder / SETTINGS).read_bytes())
        described = document["version"], str(document["kind"]), dict(document["settings"]), dict(document["about"])
        own = _own_files(folder, OWN_FILE)
        size = sum(path.stat().st_size for path in own)
        last_used = (folder / LOCK).stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with _exclusively(folder) as held:
        in_use = not held
    return Collection(
        path=folder,
        kind=described[1],
        settings=described[2],
        about=described[3],
        entries=sum(len(entries) for entries in _indexes(folder)),
        bytes=size,
        last_used=last_used,
        in_use=in_use,
    )


def _indexes(folder: Path) -> Iterator[packs.Entries]:
    for number in packs.numbers_in(folder):
        yield packs.read_entries(packs.index_file(folder, number))[0]


# --- pruning -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _exclusively(folder: Path) -> Iterator[bool]:
    """Whether nobody uses the collection; if so, nobody can until the end. False where that cannot be told."""
    try:
        file = locks.hold(folder / LOCK, create=False)
    except (OSError, locks.Held):
        yield False
        return
    with file:
        yield True


@dataclass(frozen=True)
class Pruned:
    """What became of a collection."""

    collection: Collection
    entries: int  # removed, or what would be
    bytes: int
    whole: bool
    reason: str


def prune(
    cache: Path,
    *,
    contents: Iterable[bytes] | None = None,
    unused_days: float | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> list[Pruned]:
    """Remove what is not needed any more; collections in use are left alone, and so is whatever is not ours.

    Whole collections: all with `everything`, those not used for `unused_days`. Of the others, every entry whose content
    is not among `contents` (see `contents_of`; None: all are needed), and records that are damaged or there twice.
    """
    wanted = None if contents is None else frozenset(contents)
    pruned = [
        _prune(collection, wanted, unused_days, everything=everything, dry_run=dry_run)
        for collection in collections(cache)
    ]
    for folder in [item.collection.path for item in pruned if item.whole] if os.name == "nt" else []:
        _remove(folder)  # the lock, which Windows keeps as long as it is open; one that is open again stays
    return pruned


def _prune(
    collection: Collection,
    wanted: frozenset[bytes] | None,
    unused_days: float | None,
    *,
    everything: bool,
    dry_run: bool,
) -> Pruned:
    folder = collection.path
    days = (time.time() - collection.last_used) / 86400
    with _exclusively(folder) as held:
        if not held:
            return Pruned(collection, 0, 0, False, "in use by a run; left alone")
        if everything or (unused_days is not None and days > unused_days):
            if not dry_run:
                _remove(folder)
            reason = "removed on request" if everything else f"not used for {days:.0f} days"
            return Pruned(collection, collection.entries, collection.bytes, True, reason)

        def keep(key: bytes) -> bool:
            return wanted is None or key[:CONTENT_BYTES] in wanted

        stale, doubled, seen = [], [], set()
        for entry in (entry for entries in _indexes(folder) for entry in entries):
            key = packs.key_of(entry)
            if not keep(key):
                stale.append(int(entry["length"]))
            elif key in seen:
                doubled.append(int(entry["length"]))
            seen.add(key)
        if dry_run:
            reasons = [f"{len(stale)} no longer in the dataset"] * bool(stale)
            reasons += [f"{len(doubled)} there twice"] * bool(doubled)
            lengths = [*stale, *doubled]
            return Pruned(collection, len(lengths), sum(lengths), False, ", ".join(reasons))
        packs.compact(folder, keep)
    after = _collection(folder)
    entries, size = (after.entries, after.bytes) if after else (0, 0)
    removed = collection.entries - entries
    damaged = f"{removed - len(stale)} damaged or there twice" if removed > len(stale) else ""
    reasons = [f"{len(stale)} no longer in the dataset" if stale else "", damaged]
    return Pruned(collection, removed, collection.bytes - size, False, ", ".join(filter(None, reasons)))


def _remove(folder: Path) -> None:
    """Remove a collection's own files, the lock last; the folder stays if anything else is in it."""
    for path in sorted(_own_files(folder, OWN_FILE), key=lambda path: path.name == LOCK):
        with contextlib.suppress(PermissionError if path.name == LOCK else FileNotFoundError):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_earlier_format(cache: Path) -> None:
    """Remove every file of the earlier format, and the folders that are empty then."""
    for path in list(_earlier_files(cache)):
        path.unlink(missing_ok=True)
    for kind in KINDS:
        for folder in _subfolders(cache / kind, EARLIER_FOLDER):
            with contextlib.suppress(OSError):
                folder.rmdir()
