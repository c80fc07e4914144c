"""Frozen weights of a network's blocks that stay in the host's memory and are on the device only while they compute.

Weights are copied to the device and never back, since they do not change. What a block computes with are copies, so
autograd keeps those: gradients are right in any case, and memory is saved where gradient checkpointing computes each
block again for its backward pass and lets the copies go after it.

On a CUDA device copies run on a stream of their own, one block ahead of the one that computes. The order of the blocks
is the one of the pass before; where another block is asked for, the one that came is let go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models import blocks

AHEAD = 2  # blocks that the host may be ahead of the device; each holds its weights there


@dataclass(frozen=True)
class _Weight:
    """A frozen parameter that was taken out of its module."""

    module: nn.Module
    name: str
    host: Tensor


@dataclass(frozen=True)
class _Block:
    """`weights` are in their modules only while the block computes."""

    place: int  # among the streamed ones
    weights: list[_Weight]


@dataclass(frozen=True)
class _Arrival:
    """Copies on the device, and what says that they are whole."""

    tensors: list[Tensor]
    event: torch.cuda.Event | None


class Streamer:
    """Takes the frozen weights of some blocks out of a network and lends them to the blocks that compute."""

    def __init__(self, network: nn.Module, count: int, device: torch.device, trained: Collection[nn.Parameter]) -> None:
        """`count`: of blocks; `trained`: parameters that stay where they are, although they may get no gradient."""
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._arriving: dict[int, _Arrival] = {}
        self._order: list[int] = []  # of the blocks, from a pass before
        self._passed: list[int] = []  # of this pass
        self._ends: deque[torch.cuda.Event] = deque()
        self._blocks: list[_Block] = []
        stays = {id(parameter) for parameter in trained}
        names = [name for name, _ in network.named_parameters()]
        for path in blocks.streamed(names, count):
            module = network.get_submodule(path)
            block = _Block(len(self._blocks), self._take(module, stays))
            self._blocks.append(block)
            module.register_forward_pre_hook(lambda *_, block=block: self._before(block))
            module.register_forward_hook(lambda *_, block=block: self._after(block), always_call=True)
        network.register_forward_pre_hook(lambda *_: self._begin())

    def _take(self, block: nn.Module, stays: Collection[int]) -> list[_Weight]:
        taken = []
        for module in block.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) in stays or parameter.requires_grad:
                    continue
                host = parameter.detach().cpu()
                taken.append(_Weight(module, name, host.pin_memory() if self._stream else host))
                module._parameters[name] = None
        return taken

    # --- passes ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A pass through the network begins; the blocks of the backward pass before belong to that one."""
        if self._passed != self._order[: len(self._passed)]:  # a part of it is a pass without a backward pass
            self._order = self._passed
        self._passed = []

    def _before(self, block: _Block) -> None:
        arrival = self._arriving.pop(block.place, None) or self._send(block)
        self._arriving.clear()
        if arrival.event:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(arrival.event)
            for tensor in arrival.tensors:
                tensor.record_stream(stream)  # its memory is of the other stream, which must not reuse it too early
        for weight, tensor in zip(block.weights, arrival.tensors, strict=True):
            weight.module._parameters[weight.name] = tensor  # type: ignore[assignment]
        self._passed.append(block.place)
        place = len(self._passed)
        if place < len(self._order) and self._order[place] != block.place:
            coming = self._blocks[self._order[place]]
            self._arriving[coming.place] = self._send(coming)

    def _after(self, block: _Block) -> None:
        for weight in block.weights:
            weight.module._parameters[weight.name] = None
        if self._stream:
            self._ends.append(torch.cuda.current_stream(self._device).record_event())

    def _send(self, block: _Block) -> _Arrival:
        """Begin to copy a block's weights to the device."""
        if self._stream is None:
            return _Arrival([_copy(weight.host, self._device) for weight in block.weights], None)
        while len(self._ends) >= AHEAD:  # else the host would fill the device with the weights of blocks to come
            self._ends.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            tensors = [_copy(weight.host, self._device) for weight in block.weights]
            return _Arrival(tensors, self._stream.record_event())


def _copy(host: Tensor, device: torch.device) -> Tensor:
    """In the same layout, since kernels are chosen by it."""
    return torch.empty_like(host, device=device).copy_(host, non_blocking=True)


# --- activations ---------------------------------------------------------------------------------------------------


class offloaded_activations(torch.autograd.graph.saved_tensors_hooks):
    """Within, what a forward pass keeps for its backward pass is kept in the host's memory.

    torch's own save_on_cpu into pinned memory gives every tensor back contiguous, after which other kernels compute;
    here layouts stay, so that nothing changes by a bit. Parameters stay where they are.
    """

    def __init__(self, device: torch.device) -> None:
        pinned = device.type == "cuda"

        def pack(tensor: Tensor) -> Any:
            is_dense = tensor.is_contiguous() or (
                tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
            )
            if isinstance(tensor, nn.Parameter) or not is_dense:
                return tensor
            host = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
            return host.copy_(tensor, non_blocking=True), tensor.device

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            host, device = packed
            result: Tensor = host.to(device, non_blocking=True)
            return result

        super().__init__(pack, unpack)
