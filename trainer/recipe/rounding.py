"""Weights kept in bf16 and stepped in fp32: each is rounded up or down by chance, so that small steps add up.

A bf16 number has 8 bits of precision: rounded to the nearest, a step below a 512th of a weight would be lost each time.
Rounded up with the probability that is its share of the way to the next number, it is right on average
(https://arxiv.org/abs/2010.06192). The chance comes from an address (seed, step, parameter), so a resume repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer import randomness

AT_A_TIME = 64 << 20  # numbers that are stepped at a time: a quarter of a GiB in fp32
DROPPED_BITS = 16  # of an fp32 number that bf16 does not have


def rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 -> bf16, up or down by chance: right on average. What bf16 can hold stays as it is, and so does infinity."""
    draw = torch.randint(
        0, 1 << DROPPED_BITS, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    bits = values.view(torch.int32) + draw
    return (bits & -(1 << DROPPED_BITS)).view(torch.float32).to(torch.bfloat16)


class RoundedSteps:
    """Steps an optimizer in fp32 over parameters in bf16.

    The optimizer holds `shadows` in their place. These take memory only while they are stepped, some at a time: so it
    has to be an optimizer that looks at each parameter alone.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], seed: int) -> None:
        """`parameters`: by the names that the chance is addressed by."""
        self._parameters = parameters
        self._seed = seed
        # of the right shape and without memory
        self.shadows = {
            name: nn.Parameter(torch.zeros((), device=parameter.device).expand(parameter.shape))
            for name, parameter in parameters.items()
        }
        self._generators: dict[torch.device, torch.Generator] = {}

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, global_step: int) -> None:
        """One step of the optimizer over every parameter that has a gradient."""
        for names in self._portions():
            for name in names:
                parameter, shadow = self._parameters[name], self.shadows[name]
                assert parameter.grad is not None
                shadow.data = parameter.to(torch.float32, memory_format=torch.contiguous_format)
                shadow.grad = parameter.grad.to(torch.float32, memory_format=torch.contiguous_format)
            optimizer.step()
            for name in names:
                parameter, shadow = self._parameters[name], self.shadows[name]
                parameter.copy_(rounded(shadow.data, self._generator(parameter.device, global_step, name)))
                shadow.data = torch.zeros((), device=parameter.device).expand(parameter.shape)
                shadow.grad = None

    def _portions(self) -> Iterator[Sequence[str]]:
        portion: list[str] = []
        size = 0
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            if portion and size + parameter.numel() > AT_A_TIME:
                yield portion
                portion, size = [], 0
            portion.append(name)
            size += parameter.numel()
        if portion:
            yield portion

    def _generator(self, device: torch.device, global_step: int, name: str) -> torch.Generator:
        generator = self._generators.setdefault(device, torch.Generator(device))
        return generator.manual_seed(randomness.torch_seed(self._seed, "rounding", global_step, name))
