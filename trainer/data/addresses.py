"""Images and base models that lie elsewhere: s3://, gs://, hf://, ssh:// ... What is copied here stays here.

Where a copy lies follows from the address alone, so that nobody has to ask the network for it. No torch here.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath


def is_address(text: str) -> bool:
    """Whether a path names something that fsspec reaches, and not a file or folder of this machine."""
    return "://" in text


def copy_folder(address: str) -> Path:
    """The folder that holds the copy of an address, and what is known of it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "rekindle" / "fetched" / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]


def local(text: str) -> Path:
    """A path as it is; of an address, where its copy is on this machine, or will be."""
    if not is_address(text):
        return Path(text)
    return copy_folder(text) / (PurePosixPath(text.partition("://")[2].rstrip("/")).name or "all")


def placed(home: Path, text: str) -> Path:
    """The same, where relative paths begin at `home`."""
    return local(text) if is_address(text) else home / text


def fetched(option: str, text: str) -> Path:
    """A path as it is; of an address, its copy, which is brought up to date first.

    Raises Refused, beginning with the `option`, where there is no copy and none can be made.
    """
    if is_address(text):
        from trainer.data import fetching  # and with it fsspec, which takes a moment

        fetching.fetch(option, text)
    return local(text)
