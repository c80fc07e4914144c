"""A machine that is lost with all its files costs no more than the steps since the last copy."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.forked_trainer import Server
from tests.support.kills import train_straight


def test_a_run_that_loses_machine_after_machine_ends_bit_equal_to_one_left_alone(
    trainers: Server, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    from tests.support.mirror_kills import LONG_ENOUGH, Losses, storage, train_through_losses

    straight = train_straight(trainers, tiny_model, tiny_images, tmp_path / "straight", **LONG_ENOUGH)
    losses = Losses()
    with storage() as connection:
        train_through_losses(trainers, straight, tmp_path, connection, random.Random(3), 3, losses)
    print(losses)
    assert losses.runs == 1 and losses.resumes
