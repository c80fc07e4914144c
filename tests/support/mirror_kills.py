"""Runs whose machine is lost again and again, with all that was on it, and which go on from their mirror on a new one.

The mirror is a real server of S3's protocol behind a connection that is cut at random too.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import psutil

from tests.support.forked_trainer import Server, Trainer, free_port
from tests.support.kills import KILLED, Straight
from tests.support.runs_at_tiny_size import assert_bit_equal, events_of, exported_tensors_of, steps_of, tensors_of
from trainer.options.config import Config
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder

BUCKET = "bucket"
LONG_ENOUGH = {"max_train_steps": 32, "save_every_n_steps": 2, "keep_last_n_checkpoints": 2}  # to be copied beside it


class Connection:
    """A port that passes everything on to another one, until it is cut."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._up = threading.Event()
        self._up.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._up.clear()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._up.set()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if not self._up.is_set():
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                client.close()
                continue
            self._open |= {client, server}
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self._up.is_set() and (data := source.recv(1 << 16)):
                target.sendall(data)
        for one in (source, target):
            self._open.discard(one)
            with contextlib.suppress(OSError):
                one.close()


@contextlib.contextmanager
def storage() -> Iterator[Connection]:
    """A server of S3's protocol with an empty bucket; this process and those it starts reach it by a connection."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    connection = Connection(port)
    before = dict(os.environ)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{connection.port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(BUCKET)
        yield connection
    finally:
        os.environ.clear()
        os.environ |= before
        server.kill()
        server.wait()


def until_mirrored(config: Config, trainer: Trainer) -> None:
    """Return when this session has copied a checkpoint, or is over."""
    process = psutil.Process(trainer.pid)
    while process.status() != psutil.STATUS_ZOMBIE and not events_of(config, "checkpoint_mirrored"):
        time.sleep(0.05)


@dataclass
class Losses:
    """What was lost on the way."""

    machines: int = 0
    connections: int = 0
    runs: int = 0
    resumes: int = 0

    def __str__(self) -> str:
        return (
            f"{self.machines} machines lost, {self.connections} connections cut, in {self.runs} runs with "
            f"{self.resumes} resumes from the mirror"
        )


def train_through_losses(
    trainers: Server,
    straight: Straight,
    folder: Path,
    connection: Connection,
    draw: random.Random,
    most: int,
    losses: Losses,
) -> None:
    """A run that loses up to `most` machines, and connections besides; then compared with one left alone."""
    name = f"run{losses.runs}"
    lost = 0
    while True:
        output = folder / f"{name}-{lost}"
        config = straight.config.replace(
            output_dir=str(output), checkpoint_mirror=f"s3://{BUCKET}/{name}", resume_from_checkpoint="auto"
        )
        trainer = trainers.start(config, environment={key: os.environ[key] for key in os.environ if "AWS" in key})
        if lost == most:
            assert trainer.wait() == 0, trainer.printed[-3000:]
            break
        if draw.random() < 0.7:
            until_mirrored(config, trainer)
        time.sleep(draw.uniform(0, straight.seconds / 2))
        if draw.random() < 0.5:
            connection.cut()
            losses.connections += 1
            time.sleep(draw.uniform(0, 2.0))
        trainer.kill()
        code = trainer.wait()
        connection.mend()
        found = manifest.listing(RunFolder(config.run_dir).checkpoints, thorough=True)
        assert [item.problem for item in found if item.problem] == []
        losses.resumes += len(events_of(config, "resumed")) and 1
        assert code in (0, KILLED, 3), trainer.printed[-3000:]  # 3: nothing here, and no word from the mirror
        if code == 0:
            break
        lost += 1
        losses.machines += 1
        shutil.rmtree(output)
    losses.runs += 1
    assert steps_of(config) == straight.steps
    assert_bit_equal(tensors_of(config), straight.tensors)
    assert_bit_equal(exported_tensors_of(config), straight.exported)
    assert run_folder.status(RunFolder(config.run_dir)) == "finished"
    shutil.rmtree(output)
