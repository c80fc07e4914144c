"""A queue whose runner and trainings are killed at random finishes each of them once, bit-equal (more: tests/long)."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.forked_trainer import Server
from tests.support.queue_kills import ForkedHost, Tally, train_straight, work_through_kills


def test_a_queue_that_is_killed_again_and_again_finishes_every_training_once(
    trainers: Server, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    straight = train_straight(tiny_model, tiny_images, tmp_path / "straight", ["rare", "replaced"])
    trainers.wait_until_ready()
    host, tally = ForkedHost(trainers, tmp_path), Tally()
    work_through_kills(host, straight, tmp_path / "killed", random.Random(0), 6, tally, pause=2.0)
    assert tally.count == 6 and tally.starts > 2
