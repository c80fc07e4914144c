"""What a server of the page needs besides the page: a socket, signals, little memory, the queue kept going."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

import uvicorn

from gui.places import Places
from gui.server import runner, security
from trainer.commands import queue_runner
from trainer.runs.queue import QueueRefused

logger = logging.getLogger(__name__)
STOP_SECONDS = 60.0
QUEUE_LOOK_SECONDS = 3.0
STOP_RUNS = "REKINDLE_STOP_RUNS_ON_EXIT"


def keep_queue_going(folder: Path) -> None:
    """See that somebody works on the queue while there is something to do, after a restart as after a kill."""
    text = ""
    while True:
        try:
            if queue_runner.needs_runner(folder):
                queue_runner.start_in_background(folder)
        except (QueueRefused, OSError) as error:
            if str(error) != text:
                logger.warning("the queue: %s", error)
            text = str(error)
        time.sleep(QUEUE_LOOK_SECONDS)


def keep_heap_small() -> None:
    """Give memory back as soon as it is free, where the C library is glibc: a server of many threads keeps up to a heap
    for each, and after looking at ten thousand pictures as much again as it needs (mallopt(3))."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, 1 << 16)  # M_TRIM_THRESHOLD, bytes
        mallopt(-8, 2)  # M_ARENA_MAX


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # there SO_REUSEADDR lets two programs have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def reachable(host: str) -> str:
    """A name for the address line. Where the server listens on every address it is the machine's own; in a container
    that means nothing outside, where the port is usually published on localhost."""
    if host in ("0.0.0.0", "::", ""):
        return "localhost" if os.environ.get(STOP_RUNS) == "1" else socket.gethostname()
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def make_server(application: security.App) -> uvicorn.Server:
    """A server that ends on SIGTERM or Ctrl+C; pages that are open do not hold it up."""
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            log_level="warning",
            access_log=False,  # it would write down the token
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
            lifespan="on",
        )
    )

    def leave(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # For signals before uvicorn handles them itself, and for the one that it sends itself once more at its end:
    # what is left to do comes after that.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    # Pages that are still open are cut off in the end, which uvicorn would tell in a screen full of calls.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    return server


def stop_runs(places: Places) -> None:
    """Where the runs end with this process, as in a container: have them saved first."""
    queue_runner.ask_to_leave(places.queue)  # it would start the next, and take these for stopped by a person
    logger.warning("Asking the runs to save and stop; waiting up to %d seconds", STOP_SECONDS)
    for run in runner.stop_all(places, STOP_SECONDS):
        logger.warning("%s is still running", run.path)
