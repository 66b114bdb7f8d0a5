"""The four cases: what runs, on what input, and what is to be reached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
import variants
from models import DecodeChain, Encoder, ResNet50, settle_batch_norms
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Case:
    """One case of the benchmark.

    Attributes:
        name: As on the command line.
        title: As the table spells it.
        module: Makes the module, in float32 on the current default device.
        shape: Of its one input, drawn from a normal distribution.
        channels_last: Whether torch contenders may use NHWC memory.
        ours: Our variants.
        goal: Our median over torch.compile's, at most.
        error_limit: Relative error of a variant that may count, against FP32 eager.
        weights_bound: Whether reading the weights is the floor, rather than arithmetic.
    """

    name: str
    title: str
    module: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ours: tuple[variants.Variant, ...]
    goal: float
    error_limit: float
    channels_last: bool = False
    weights_bound: bool = False

    def make(self, seed: int) -> tuple[nn.Module, Tensor]:
        """The module in float32 and its input, both on the GPU, the same for the same seed."""
        torch.manual_seed(seed)
        with torch.device("cuda"):
            module = self.module().eval()
            x = torch.randn(self.shape)
        settle_batch_norms(module, x)
        return module, x


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case(
            name="encoder", title="encoder, 12 layers, d 768, 32×128, FP16", module=Encoder,
            shape=(32, 128, 768), ours=variants.ENCODER, goal=0.95, error_limit=0.01,
        ),
        Case(
            name="decode-1", title="decode chain, 8 layers, d 4096, batch 1", module=DecodeChain,
            shape=(1, 4096), ours=variants.DECODE, goal=0.75, error_limit=0.05, weights_bound=True,
        ),
        Case(
            name="decode-16", title="decode chain, 8 layers, d 4096, batch 16", module=DecodeChain,
            shape=(16, 4096), ours=variants.DECODE, goal=1.0, error_limit=0.05, weights_bound=True,
        ),
        Case(
            name="resnet50", title="ResNet-50, 32×224², FP16", module=ResNet50, shape=(32, 3, 224, 224),
            ours=variants.RESNET, goal=0.9, error_limit=0.01, channels_last=True,
        ),
    )
}  # fmt: skip
