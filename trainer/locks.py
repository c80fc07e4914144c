"""Locks between processes, on every system. No torch here.

A lock is a file of its own whose content nobody reads: Windows refuses others the bytes that are locked.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

import portalocker
from portalocker import LockFlags

if sys.platform == "win32":  # for shared and exclusive locks alike, and with an error that says who refuses
    from portalocker.portalocker import Win32Locker

    lock = Win32Locker().lock
else:
    lock = portalocker.lock


class Held(Exception):
    """Somebody else holds the lock."""


def hold(path: Path, *, shared: bool = False, create: bool = True) -> io.FileIO:
    """Hold the lock until the returned file is closed, or the process ends however it may.

    Any number hold it `shared` at once, otherwise one. Raises Held, FileNotFoundError where it is not there and may not
    be created, and other OSErrors where it cannot be written or the file system has no locks.
    """
    file = io.FileIO(os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666), "r+")
    try:
        lock(file, (LockFlags.SHARED if shared else LockFlags.EXCLUSIVE) | LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked as error:
        file.close()
        raise Held(f"{path} is locked") from error
    except portalocker.LockException as error:
        file.close()
        raise OSError(f"{path} cannot be locked: {error}") from error
    except BaseException:
        file.close()
        raise
    return file


def is_still(file: io.FileIO, path: Path) -> bool:
    """Whether a file that was opened is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
