"""Copying what lies elsewhere to this machine: all of it once, later only what has changed. No torch here."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from trainer import files, locks, quantities
from trainer.data.addresses import copy_folder, local
from trainer.refusal import Refused

logger = logging.getLogger(__name__)
INDEX = "index.json"
AT_ONCE = 64  # files that are asked for together
WAIT_SECONDS, LOG_SECONDS = 1.0, 10.0
# What a storage tells of a file's content; the first that is there, besides the size, is compared.
CONTENT = (
    "ETag",
    "etag",
    "sha256",
    "md5Hash",
    "crc32c",
    "blob_id",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
)


class Unreachable(Refused):
    """What lies elsewhere is not here and cannot be had; the message says why and what to do."""


def why_unusable(address: str) -> str:
    """Why nothing can be had from such an address, as far as can be told without asking it; empty when it may be."""
    protocol = address.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        return f"{protocol}:// needs another package: {error}"
    except ValueError:
        return f"{protocol}:// is nothing that fsspec reaches; use s3://, gs://, hf://, ssh:// or a folder"
    return ""


def fetch(option: str, address: str) -> None:
    """Bring the copy of a folder or file up to date.

    Where the address cannot be reached, a copy that was complete is used, with a warning.
    Raises Unreachable, which begins with the `option`.
    """
    if why := why_unusable(address):
        raise Unreachable(f"{option}: {why}")
    folder, copy = copy_folder(address), local(address)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        here = _Copy(folder, copy)
        try:
            here.bring_up_to_date(address)
        except Unreachable as error:
            raise Unreachable(f"{option}: {address}: {error}") from error
        except _CannotWrite as error:
            raise Unreachable(f"{option}: {address} cannot be copied to {copy}: {error}") from error
        except Exception as error:  # each kind of storage has errors of its own
            reason = str(error) or type(error).__name__
            if not here.complete:
                raise Unreachable(
                    f"{option}: {address} cannot be copied to this machine: {reason}; check the address, the network "
                    "and the keys in the environment"
                ) from error
            logger.warning("%s: %s cannot be reached (%s); the copy that is here is used", option, address, reason)


# --- a copy --------------------------------------------------------------------------------------------------------


class _CannotWrite(OSError):
    """The copy cannot be written on this machine."""


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within, no other process changes the copy; one that does is waited for."""
    waiting = False
    while True:
        try:
            lock = locks.hold(folder / "lock")
            break
        except locks.Held:
            if not waiting:
                logger.info("Waiting for another process that copies the same files to %s", folder)
            waiting = True
            time.sleep(WAIT_SECONDS)
    try:
        yield
    finally:
        lock.close()


class _Copy:
    """The files of an address that are here. `complete`: all of them were at some time."""

    def __init__(self, folder: Path, files_folder: Path) -> None:
        self._index = folder / INDEX
        self._folder = files_folder
        self.contents: dict[str, str] = {}  # what the storage said of each file's content, by its name
        self.complete = False
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, Unreachable):
            index = json.loads(self._index.read_bytes())
            self.contents = {_harmless(name): str(content) for name, content in dict(index["files"]).items()}
            self.complete = index["complete"] is True

    def path(self, name: str) -> Path:
        return self._folder / name if name else self._folder

    def write_index(self) -> None:
        files.write_bytes(self._index, files.json_bytes({"files": self.contents, "complete": self.complete}))

    def bring_up_to_date(self, address: str) -> None:
        """Copy what is new or has changed, and remove what is gone. Raises _CannotWrite, and whatever the storage does
        where it cannot be reached."""
        storage, base = url_to_fs(address, use_listings_cache=False, skip_instance_cache=True)
        there = _listing(storage, base.rstrip("/"))
        wanted = {
            name: described
            for name, described in there.items()
            if self.contents.get(name) != _content(described) or not files.exists(self.path(name))
        }
        needed = sum(_size(described) for described in wanted.values())
        try:
            files.require_space(self._folder.parent, needed)
        except OSError as error:
            raise _CannotWrite(error.strerror or str(error)) from error
        if wanted:
            logger.info("%s: %s of %s files are copied to %s", address, len(wanted), len(there), self._folder)
        done, names, logged = 0, list(wanted), time.monotonic()
        try:
            for begin in range(0, len(names), AT_ONCE):
                some = names[begin : begin + AT_ONCE]
                self._copy(storage, {name: wanted[name] for name in some})
                done += sum(_size(wanted[name]) for name in some)
                if time.monotonic() > logged + LOG_SECONDS:
                    logger.info("%s: %s of %s are here", address, quantities.size(done), quantities.size(needed))
                    logged = time.monotonic()
        finally:
            self.write_index()
        for name in self.contents.keys() - there.keys():
            self.path(name).unlink(missing_ok=True)
            del self.contents[name]
        self.complete = True
        self.write_index()

    def _copy(self, storage: Any, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        """Copy some files under other names, then give them their own."""
        parts = {}
        for name in wanted:
            path = self.path(name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _CannotWrite(str(error)) from error
            parts[name] = path.with_name(f".{path.name}.part")
        storage.get([wanted[name]["name"] for name in wanted], [str(part) for part in parts.values()])
        for name, part in parts.items():
            size, expected = part.stat().st_size, _size(wanted[name])
            if size != expected:
                raise OSError(f"{wanted[name]['name']} came with {size} bytes instead of {expected}")
            files.replace(part, self.path(name))
            self.contents[name] = _content(wanted[name])


def _listing(storage: Any, base: str) -> dict[str, dict[str, Any]]:
    """The files at an address: what the storage says of each, by its name from there on; "" where it is a file itself.

    Raises FileNotFoundError where there are none, and Unreachable where a name would lead out of the copy's folder.
    """
    listed: dict[str, dict[str, Any]] = {}
    for path, described in storage.find(base, detail=True).items():
        name = path[len(base) :].strip("/") if path.startswith(base) else path
        if described.get("type") == "directory" or path.endswith("/"):
            continue
        listed[_harmless(name)] = described
    if not listed:
        raise FileNotFoundError("there is nothing")
    return listed


def _harmless(name: str) -> str:
    """A name that stays within a folder, on every system. Raises Unreachable."""
    for part in PurePosixPath(name).parts:
        if part in ("..", "/", "\\") or (why := files.unusable_name(part)):
            raise Unreachable(f"{name!r} cannot be a file here{f': {why}' if part != '..' else ''}; rename it there")
    return name


def _size(described: Mapping[str, Any]) -> int:
    return int(described.get("size") or 0)


def _content(described: Mapping[str, Any]) -> str:
    mark = next((f"{key} {described[key]}" for key in CONTENT if described.get(key)), "")
    return f"{mark} {_size(described)}"
