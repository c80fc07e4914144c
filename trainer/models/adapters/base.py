"""What a kind of training is asked for: a LoRA, another network, the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from trainer.models.families.facts import Part
from trainer.models.keys import Naming
from trainer.options.config import Config
from trainer.refusal import Refused


class NetworkFileError(Refused):
    """A network's file does not fit; the message says how and what to do."""


@dataclass(frozen=True)
class Target:
    """A component that is trained, with the facts about its layers."""

    part: Part
    module: nn.Module

    @property
    def name(self) -> str:
        """The component; it begins the names of the parameters."""
        return self.part.component

    def layers(self, *, convolutions: bool) -> dict[str, nn.Module]:
        """The linear and convolution layers that are trained, by path, in the model's order."""
        return {
            path: layer
            for path, layer in self.module.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and self.part.trains(path, convolutions=convolutions)
        }


class Adapter(Protocol):
    """A kind of training. What a file of it holds stands in `adapters.KINDS`, which needs no torch."""

    def add(self, target: Target, config: Config) -> None:
        """Freeze the component and put in, or release, what is trained; initialised from addresses alone."""
        ...

    def parameters(self, target: Target) -> Mapping[str, nn.Parameter]:
        """The trained parameters by a name that is stable over sessions: "unet.<path>.lora_A.weight"."""
        ...

    def from_file(self, targets: Sequence[Target], naming: Naming, path: Path) -> None:
        """Start from a file of this kind. Raises NetworkFileError, and then nothing was changed."""
        ...

    def limit_norms(self, target: Target, most: float) -> None:
        """Scale down what is trained of each layer whose change of the weights has a norm above this."""
        ...
