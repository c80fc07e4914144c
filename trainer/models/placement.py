"""Which component is on which device, and whether it is in memory at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from trainer.models.parts import Parts


class Components:
    """A model's components by name. Those that are kept take part in the training and go where it goes; the others
    are frozen, loaded when they are first used, and stand aside on a device of their own."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._kept: dict[str, nn.Module] = {}
        self._devices: dict[str, torch.device] = {}
        self._aside: dict[str, Any] = {}

    def keep(self, name: str) -> nn.Module:
        """Load a component that takes part in the training."""
        module: nn.Module = self.parts[name]
        module.requires_grad_(False)
        self._kept[name] = module
        return module

    def is_kept(self, name: str) -> bool:
        return name in self._kept

    def __getitem__(self, name: str) -> Any:
        """A component; a network that stands aside is frozen and on its device. Raises BaseModelMissing."""
        if name in self._kept:
            return self._kept[name]
        if name not in self._aside:
            component = self.parts[name]
            if isinstance(component, nn.Module):
                component.requires_grad_(False)
                component.eval()
                component.to(self._devices.get(name, torch.device("cpu")))
            self._aside[name] = component
        return self._aside[name]

    def put(self, names: Sequence[str], device: torch.device) -> None:
        """Move components that stand aside to a device, now or when they are loaded."""
        for name in names:
            self._devices[name] = device
            if isinstance(self._aside.get(name), nn.Module):
                self._aside[name].to(device)

    def release(self, names: Sequence[str]) -> None:
        """Give back the memory of components that stand aside; they are loaded again when they are used."""
        for name in names:
            if self._aside.pop(name, None) is not None:
                self.parts.forget(name)

    @contextlib.contextmanager
    def lent(self, names: Sequence[str], device: torch.device) -> Iterator[None]:
        """Within, components that stand aside are on this device."""
        before = {name: self._devices.get(name, torch.device("cpu")) for name in names}
        self.put(names, device)
        try:
            yield
        finally:
            for name, home in before.items():
                self.put([name], home)
