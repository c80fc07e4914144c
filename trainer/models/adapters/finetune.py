"""The base model itself: every weight of a component is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from trainer.models.adapters.base import NetworkFileError, Target
from trainer.models.keys import Naming
from trainer.options.config import Config


class Finetune:
    """See `base.Adapter`. What nothing ever reaches back to is left out once that is known, see `Model.leave_out_idle`:
    it is frozen, and so is no longer among the parameters."""

    def add(self, target: Target, config: Config) -> None:
        for parameter in target.module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())

    def parameters(self, target: Target) -> Mapping[str, nn.Parameter]:
        return {
            f"{target.name}.{name}": parameter
            for name, parameter in target.module.named_parameters()
            if parameter.requires_grad
        }

    def from_file(self, targets: Sequence[Target], naming: Naming, path: Path) -> None:
        raise NetworkFileError(f"network_weights: {path} is of a network, and a fine-tune has none; leave it out")


def adapter(config: Config) -> Finetune:
    """The adapter of a config."""
    return Finetune()
