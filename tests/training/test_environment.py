"""The switches on which equal bits depend are set, and what they rule out is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trainer.options.config import Config
from trainer.runs.failures import advice_for
from trainer.training import environment


@pytest.fixture(autouse=True)
def switches_as_before() -> Iterator[None]:
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def test_what_is_not_deterministic_is_refused_with_the_way_out() -> None:
    """A mere warning would also leave attention's backward pass on a GPU as it is: not deterministic."""
    environment.make_deterministic(Config(deterministic=True))
    with pytest.raises(RuntimeError) as refused:
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.tensor([2.0, 3.0]))
    assert "deterministic = false" in advice_for(refused.value)


def test_deterministic_false_leaves_pytorch_as_it_is() -> None:
    torch.use_deterministic_algorithms(False)
    environment.make_deterministic(Config(deterministic=False))
    assert not torch.are_deterministic_algorithms_enabled()
