"""The modules the benchmark runs: an encoder, a decode step's matmuls, and ResNet-50, with random weights."""

from __future__ import annotations

import torch
from style import Style
from torch import Tensor, nn
from torch.nn import functional


def _gelu(x: Tensor, how: str) -> Tensor:
    if how == "erf":
        return 0.5 * x * (1.0 + torch.erf(x * 0.5**0.5))
    return functional.gelu(x, approximate="tanh" if how == "tanh" else "none")


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, as in BERT-sized encoders: `(batch, tokens, width)` in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, style: Style, shape: tuple[int, int]) -> Tensor:
        h = self.norm1(x)
        layers = (self.query, self.key, self.value)
        if style.merged:
            weight = torch.cat([layer.weight for layer in layers])
            bias = torch.cat([layer.bias for layer in layers])
            products = functional.linear(h, weight, bias).chunk(3, -1)
        else:
            products = tuple(layer(h) for layer in layers)
        parts = [product.reshape(*shape, self.heads, -1).transpose(1, 2) for product in products]
        attended = functional.scaled_dot_product_attention(*parts)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.down(_gelu(self.up(self.norm2(x)), style.gelu))


class Encoder(nn.Module):
    """A stack of encoder layers on hidden states."""

    def __init__(self, width: int = 768, heads: int = 12, depth: int = 12) -> None:
        super().__init__()
        self.style = Style()
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        h = x.reshape(-1, width) if self.style.flat else x
        for layer in self.layers:
            h = layer(h, self.style, (batch, tokens))
        return self.norm(h).reshape(x.shape)


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + 1e-6)`, scaled per channel, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.weight


class GatedFeedForward(nn.Module):
    """`x + down(silu(gate(norm(x))) * up(norm(x)))`, the larger part of a decoder layer's weights."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class DecodeChain(nn.Module):
    """The weight-bound part of one decoding step, eight layers at Llama-3-8B's sizes: `(batch, width)`."""

    def __init__(self, width: int = 4096, inner: int = 14336, depth: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GatedFeedForward(width, inner) for _ in range(depth))
        for layer in self.layers:
            for weight in (layer.gate.weight, layer.up.weight):
                nn.init.normal_(weight, std=0.02)
            # GPT-2's initialisation: what a residual branch writes is scaled down with the depth.
            nn.init.normal_(layer.down.weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Bottleneck(nn.Module):
    """ResNet's 1×1, 3×3, 1×1 block, stride in the 3×3 (He et al., 2015; version 1.5)."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != 4 * inner:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.conv1(x)))
        h = functional.relu(self.norm2(self.conv2(h)))
        return functional.relu(self.norm3(self.conv3(h)) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50 on `(batch, 3, 224, 224)` images, 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks: list[nn.Module] = []
        channels = 64
        for inner, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(depth):
                blocks.append(Bottleneck(channels, inner, stride if index == 0 else 1))
                channels = 4 * inner
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Linear(2048, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.blocks(self.stem(x)).mean((2, 3)))


def settle_batch_norms(module: nn.Module, x: Tensor) -> None:
    """Give untrained batch norms the statistics of `x`, so that activations keep a sane range."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    module.train()
    with torch.no_grad():
        module(x)
    module.eval()
