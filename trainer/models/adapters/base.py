"""What a kind of training is asked for: a LoRA, another network, the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from trainer.models.adapters import selection
from trainer.models.adapters.selection import Ranked
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
    tokenizer: Any = None  # of a text encoder, while one is trained

    @property
    def name(self) -> str:
        """The component; it begins the names of the parameters."""
        return self.part.component

    def layers(self, config: Config) -> dict[str, tuple[nn.Linear | nn.Conv2d, Ranked]]:
        """The linear and convolution layers that are trained, with their ranks, by path, in the model's order."""
        chosen = {}
        for path, layer in self.module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                larger = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
                if given := selection.ranked(config, self.part, path, larger=larger):
                    chosen[path] = (layer, given)
        return chosen


class Adapter(Protocol):
    """A kind of training. Its parameters' shapes and what a file holds stand in `adapters.KINDS`, without torch."""

    def add(self, target: Target, config: Config) -> None:
        """Freeze the component and put in, or release, what is trained; initialised from addresses alone."""
        ...

    def parameters(self, target: Target) -> Mapping[str, nn.Parameter]:
        """The trained parameters by a name that is stable over sessions: "unet.<path>.lora_A.weight"."""
        ...

    def from_file(self, targets: Sequence[Target], naming: Naming, path: Path) -> None:
        """Start from a file of this kind. Raises NetworkFileError, and then nothing was changed."""
        ...


@runtime_checkable
class LimitsNorms(Protocol):
    """What an adapter is as well if its kind has `limits_norms`; with the others scale_weight_norms is refused."""

    def limit_norms(self, target: Target, most: float) -> None:
        """Scale down what is trained of each layer whose change of the weights has a norm above this."""
        ...


def keep_reached(layer: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """See that a layer's parameters have a gradient, of zero, also where module_dropout leaves them out: processes wait
    for each other's gradients, and with none the optimizer would not move."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        nothing = sum((parameter.flatten()[0] for parameter in parameters), start=torch.zeros((), device=output.device))
        return output + (nothing * 0).to(output.dtype)

    layer.register_forward_hook(hook)


def read_file(path: Path, option: str = "network_weights") -> dict[str, Tensor]:
    """The tensors of a network's file, which an option names. Raises NetworkFileError."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise NetworkFileError(f"{option}: {path} cannot be read: {error}") from error


def refuse_misfits(path: Path, problems: Sequence[str]) -> None:
    """Raise NetworkFileError where a file does not fit, with the first reasons."""
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise NetworkFileError(f"network_weights: {path} does not fit: {'; '.join(problems[:3])}{more}")
