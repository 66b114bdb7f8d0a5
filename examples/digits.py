"""A small convolutional network, trained in seconds on scikit-learn's digits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from calibration_data import digits  # found through the line above

EPOCHS, BATCH = 12, 50


class DigitNet(torch.nn.Module):
    """Two convolutions with batch normalisation, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, padding=1),
            torch.nn.BatchNorm2d(32),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        )
        self.classifier = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(32 * 4 * 4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Classify digits: (batch, 1, 8, 8) float32 from 0 to 1 → (batch, 10) float32, one logit per class."""
        return self.classifier(self.features(image))


def trained(seed: int = 0) -> DigitNet:
    """Train from scratch; the same seed gives the same weights on the same machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would give other weights
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _fit(DigitNet())
    finally:
        torch.set_num_threads(threads)


def _fit(network: DigitNet) -> DigitNet:
    data = digits.training()
    images, labels = torch.from_numpy(data["image"]), torch.from_numpy(data["label"])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def build(seed: int = 0) -> dict[str, Any]:
    """The factory that `recipes/digits-int8-cpu.yaml` names."""
    return {
        "module": trained(seed),
        "inputs": {"image": torch.from_numpy(digits.calibration(samples=2)["image"])},
        "dynamic_axes": {"image": {0: "batch"}},
        "output_names": ["logits"],
        "ranges": {"batch": (1, 32, 256)},
    }
