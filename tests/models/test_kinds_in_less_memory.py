"""Kinds of networks beside the switches that save memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, run, tensors_of
from trainer.options.checks import check
from trainer.options.network_kinds import NETWORK_KINDS
from trainer.options.problems import Given

COMMON: dict[str, Any] = {"max_train_steps": 2, "gradient_checkpointing": True, "mixed_precision": "bf16"}


@pytest.mark.parametrize("kind", [name for name in NETWORK_KINDS if name != "lora"])
def test_a_kind_trains_bit_equal_while_blocks_are_streamed(
    kind: str, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    if extra := NETWORK_KINDS[kind].extra:
        pytest.importorskip(extra)
    options = {**COMMON, "network_kind": kind, "network_train_unet_only": True}
    plain = config_for(tiny_model, tiny_images, tmp_path / "plain", **options)
    streamed = config_for(tiny_model, tiny_images, tmp_path / "streamed", **options, blocks_to_swap=2)
    assert run(plain) == run(streamed) == "finished"
    assert_bit_equal(tensors_of(streamed, 2), tensors_of(plain, 2))


@pytest.mark.parametrize("kind", ["rslora", "loha", "lokr"])
def test_a_kind_trains_on_weights_of_8_bits(kind: str, tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    options = {**COMMON, "network_kind": kind, "network_preset": "full", "fp8_base": True, "module_dropout": 0.1}
    assert run(config_for(tiny_model, tiny_images, tmp_path, **options)) == "finished"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"network_kind": "lokr", "quantize": "nf4"}, "network_kind"),
        ({"network_kind": "dora", "fp8_base": True, "gradient_checkpointing": True}, "network_kind"),
        ({"base_weights": ["a"], "quantize": "nf4"}, "base_weights"),
        (
            {"base_weights": ["a"], "base_weights_in_samples": False, "blocks_to_swap": 1,
             "gradient_checkpointing": True},
            "base_weights_in_samples",
        ),
    ],
)  # fmt: skip
def test_what_needs_whole_weights_is_refused_where_they_are_packed(values: dict[str, Any], key: str) -> None:
    (problem,) = check({name: Given(value, "") for name, value in values.items()}).problems
    assert problem.key == key
