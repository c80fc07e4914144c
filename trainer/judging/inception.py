"""InceptionV3 as FID, KID, IS, precision and recall are defined on it: TensorFlow's network of 2015-12-05.

Layers and names are torch-fidelity's and pytorch-fid's (both Apache 2.0, https://github.com/toshas/torch-fidelity), so
that their weights load. It differs from torchvision's: averages leave the border out, the last block takes the largest
value where it should average, pictures are scaled as TensorFlow 1 did, and there are 1008 classes. torch-fidelity
itself imports torchvision, which this project does without; for equal pictures its outputs are these, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
FEATURES, CLASSES = 2048, 1008
Kernel = int | tuple[int, int]


class Conv(nn.Module):
    """A convolution, its normalisation and a ReLU; it keeps the size unless `valid`."""

    def __init__(self, channels: int, out: int, kernel: Kernel, *, stride: int = 1, valid: bool = False) -> None:
        super().__init__()
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (0, 0) if valid else (height // 2, width // 2)
        self.conv = nn.Conv2d(channels, out, (height, width), stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def average(x: Tensor) -> Tensor:
    """Of each pixel's neighbours that are in the picture."""
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def largest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


def halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=3, stride=2)


class Block(nn.Module):
    """Branches side by side, whose outputs are stacked. Each is a list of layers by name, and may begin with a
    pooling; a name with | stands for two layers side by side."""

    def __init__(
        self,
        branches: list[list[str]],
        layers: Mapping[str, Conv],
        pooling: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._branches = branches
        self._pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch in self._branches:
            value = x
            for step in branch:
                if step == "pool":
                    value = self._pooling(value)
                else:
                    value = torch.cat([self.get_submodule(name)(value) for name in step.split("|")], 1)
            outputs.append(value)
        return torch.cat(outputs, 1)


def block_a(channels: int, pooled: int) -> Block:
    layers = {
        "branch1x1": Conv(channels, 64, 1),
        "branch5x5_1": Conv(channels, 48, 1),
        "branch5x5_2": Conv(48, 64, 5),
        "branch3x3dbl_1": Conv(channels, 64, 1),
        "branch3x3dbl_2": Conv(64, 96, 3),
        "branch3x3dbl_3": Conv(96, 96, 3),
        "branch_pool": Conv(channels, pooled, 1),
    }
    double = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
    return Block([["branch1x1"], ["branch5x5_1", "branch5x5_2"], double, ["pool", "branch_pool"]], layers, average)


def block_b(channels: int) -> Block:
    layers = {
        "branch3x3": Conv(channels, 384, 3, stride=2, valid=True),
        "branch3x3dbl_1": Conv(channels, 64, 1),
        "branch3x3dbl_2": Conv(64, 96, 3),
        "branch3x3dbl_3": Conv(96, 96, 3, stride=2, valid=True),
    }
    return Block([["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], ["pool"]], layers, halved)


def block_c(channels: int, inner: int) -> Block:
    layers = {
        "branch1x1": Conv(channels, 192, 1),
        "branch7x7_1": Conv(channels, inner, 1),
        "branch7x7_2": Conv(inner, inner, (1, 7)),
        "branch7x7_3": Conv(inner, 192, (7, 1)),
        "branch7x7dbl_1": Conv(channels, inner, 1),
        "branch7x7dbl_2": Conv(inner, inner, (7, 1)),
        "branch7x7dbl_3": Conv(inner, inner, (1, 7)),
        "branch7x7dbl_4": Conv(inner, inner, (7, 1)),
        "branch7x7dbl_5": Conv(inner, 192, (1, 7)),
        "branch_pool": Conv(channels, 192, 1),
    }
    single = [f"branch7x7_{number}" for number in range(1, 4)]
    double = [f"branch7x7dbl_{number}" for number in range(1, 6)]
    return Block([["branch1x1"], single, double, ["pool", "branch_pool"]], layers, average)


def block_d(channels: int) -> Block:
    layers = {
        "branch3x3_1": Conv(channels, 192, 1),
        "branch3x3_2": Conv(192, 320, 3, stride=2, valid=True),
        "branch7x7x3_1": Conv(channels, 192, 1),
        "branch7x7x3_2": Conv(192, 192, (1, 7)),
        "branch7x7x3_3": Conv(192, 192, (7, 1)),
        "branch7x7x3_4": Conv(192, 192, 3, stride=2, valid=True),
    }
    long = [f"branch7x7x3_{number}" for number in range(1, 5)]
    return Block([["branch3x3_1", "branch3x3_2"], long, ["pool"]], layers, halved)


def block_e(channels: int, pooling: Callable[[Tensor], Tensor]) -> Block:
    layers = {
        "branch1x1": Conv(channels, 320, 1),
        "branch3x3_1": Conv(channels, 384, 1),
        "branch3x3_2a": Conv(384, 384, (1, 3)),
        "branch3x3_2b": Conv(384, 384, (3, 1)),
        "branch3x3dbl_1": Conv(channels, 448, 1),
        "branch3x3dbl_2": Conv(448, 384, 3),
        "branch3x3dbl_3a": Conv(384, 384, (1, 3)),
        "branch3x3dbl_3b": Conv(384, 384, (3, 1)),
        "branch_pool": Conv(channels, 192, 1),
    }
    single = ["branch3x3_1", "branch3x3_2a|branch3x3_2b"]
    double = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a|branch3x3dbl_3b"]
    return Block([["branch1x1"], single, double, ["pool", "branch_pool"]], layers, pooling)


class Inception(nn.Module):
    """The network; `forward` takes what a picture's bytes hold."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, valid=True)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, valid=True)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, valid=True)
        self.Mixed_5b = block_a(192, 32)
        self.Mixed_5c = block_a(256, 64)
        self.Mixed_5d = block_a(288, 64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b = block_c(768, 128)
        self.Mixed_6c = block_c(768, 160)
        self.Mixed_6d = block_c(768, 160)
        self.Mixed_6e = block_c(768, 192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b = block_e(1280, average)
        self.Mixed_7c = block_e(2048, largest)
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.requires_grad_(False)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (batch, 3, height, width), uint8 -> features (batch, 2048), and logits without their bias
        (batch, 1008), as IS is defined on them."""
        x = (scaled(pixels.float()) - 128) / 128
        x = halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))  # (batch, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # (batch, 768, 17, 17)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (batch, 2048, 8, 8)
        features = x.mean(dim=(2, 3))
        return features, features @ self.fc.weight.T


def scaled(pixels: Tensor) -> Tensor:
    """(batch, channels, height, width) -> (batch, channels, 299, 299), bilinear as TensorFlow 1 did it: output pixel i
    is at i * height / 299 of the input, not at the middle of its share."""
    for axis in (3, 2):
        size = pixels.shape[axis]
        place = torch.arange(SIDE, device=pixels.device, dtype=torch.float32) * (size / SIDE)
        low = place.long()
        high = (low + 1).clamp_max(size - 1)
        shape = [SIDE if dimension == axis else 1 for dimension in range(4)]
        share = (place - low).view(shape)
        below, above = pixels.index_select(axis, low), pixels.index_select(axis, high)
        pixels = below + (above - below) * share
    return pixels
