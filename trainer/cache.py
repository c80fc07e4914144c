"""Latents and text encoder outputs computed once, kept by content and every setting that shapes them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from trainer import files

logger = logging.getLogger(__name__)
Arrays = dict[str, NDArray[np.float32]]
Progress = Callable[[str, int, int], None]
STALE_SECONDS = 3600  # a temporary file that was not written to for so long belongs to a process that was killed


class Cache:
    """Arrays by key, in memory, or in `folder` when one is given: one file each, written whole, checked when read."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, Arrays] = {}
        if folder:
            _remove_stale(folder)

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> Arrays | None:
        """The arrays of a key; None when there are none, or when their file is damaged (which is reported)."""
        if self._folder is None:
            return self._memory.get(key)
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        digest, body = data[:32], data[32:]
        if hashlib.sha256(body).digest() != digest:
            logger.warning("%s is damaged; its content is computed again", self._path(key))
            return None
        return safetensors.numpy.load(body)

    def put(self, key: str, arrays: Arrays) -> None:
        if self._folder is None:
            self._memory[key] = arrays
        else:
            body = safetensors.numpy.save(arrays)
            files.write_bytes(self._path(key), hashlib.sha256(body).digest() + body)

    def fill(
        self,
        keys: Sequence[str],
        compute: Callable[[Sequence[int]], Sequence[Arrays]],
        group: int,
        progress: Callable[[int, int], None],
    ) -> None:
        """Compute what is missing, in groups of `group` consecutive keys.

        A group is computed whole even when only one of its keys is missing, so that a result never depends on where
        an earlier session was interrupted (a batch of another size can give other bits).
        """
        starts = range(0, len(keys), group)
        for number, start in enumerate(starts, start=1):
            places = range(start, min(start + group, len(keys)))
            missing = [place for place in places if self.get(keys[place]) is None]
            if missing:
                for place, arrays in zip(places, compute(places), strict=True):
                    if place in missing:
                        self.put(keys[place], arrays)
            progress(min(number * group, len(keys)), len(keys))


def _remove_stale(folder: Path) -> None:
    """Remove what killed processes left. Other runs may be writing here now, so only what is no longer written to."""
    for path in folder.glob("*/.tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def key_of(settings: Mapping[str, Any]) -> str:
    """The key of a cached value: a digest over everything that shapes it."""
    return hashlib.sha256(files.json_bytes(dict(settings))).hexdigest()
