"""Convolutional networks with what placement rules speak of: skip connections, Concat, pooling, resizing, a stem.

Random weights; batch norms with random statistics, so that folding them matters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Convolution, batch norm and, unless told otherwise, ReLU; (batch, inside, h, w) to (batch, outside, …)."""

    def __init__(self, inside: int, outside: int, size: int = 3, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outside)
        self.relu = relu
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.convolution(x))
        return functional.relu(y) if self.relu else y


class Residual(nn.Module):
    """ResNet's basic block (He et al., 2015)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = Block(inside, outside, 3, stride), Block(outside, outside, relu=False)
        plain = stride == 1 and inside == outside
        self.short = nn.Identity() if plain else Block(inside, outside, 1, stride, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.second(self.first(x)) + self.short(x))


class ResNet18(nn.Module):
    """ResNet-18: (batch, 3, 224, 224) to (batch, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 64, 7, 2)
        widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
        steps = itertools.pairwise(widths)
        self.blocks = nn.Sequential(*(Residual(a, b, 1 if a == b else 2) for a, b in steps))
        self.head = nn.Linear(512, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.blocks(functional.max_pool2d(self.stem(x), 3, 2, 1))
        found: torch.Tensor = self.head(y.mean((2, 3)))
        return found


class Branches(nn.Module):
    """Inception's block (Szegedy et al., 2014): four branches, concatenated to 288 channels."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.one, self.pooled = Block(inside, 64, 1), Block(inside, 32, 1)
        self.two = nn.Sequential(Block(inside, 64, 1), Block(64, 96))
        self.three = nn.Sequential(Block(inside, 64, 1), Block(64, 96), Block(96, 96))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.pooled(functional.max_pool2d(x, 3, 1, 1))
        return torch.cat([self.one(x), self.two(x), self.three(x), pooled], 1)


class Inception(nn.Module):
    """Three blocks of branches: (batch, 3, 224, 224) to (batch, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Block(3, 64, 7, 2), Block(64, 192, 3, 2))
        self.blocks = nn.Sequential(Branches(192), Branches(288), Block(288, 288, 3, 2), Branches(288))
        self.head = nn.Linear(288, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return found


class UNet(nn.Module):
    """Three scales with Concat across (Ronneberger et al., 2015): (batch, 3, 128, 128) to (batch, 8, 128, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(Block(3, 32), Block(32, 32))
        self.middle = nn.Sequential(Block(32, 64), Block(64, 64))
        self.coarse = nn.Sequential(Block(64, 128), Block(128, 64))
        self.up_middle = nn.Sequential(Block(128, 64), Block(64, 32))
        self.up_fine = nn.Sequential(Block(64, 32), nn.Conv2d(32, 8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        middle = self.middle(functional.max_pool2d(fine, 2))
        coarse = self.coarse(functional.max_pool2d(middle, 2))
        up = self.up_middle(torch.cat([functional.interpolate(coarse, scale_factor=2.0), middle], 1))
        found: torch.Tensor = self.up_fine(torch.cat([functional.interpolate(up, scale_factor=2.0), fine], 1))
        return found


NETS: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet-18": (ResNet18, 224),
    "inception": (Inception, 224),
    "u-net": (UNet, 128),
}
"""Maker and the side of its square images, by name."""
