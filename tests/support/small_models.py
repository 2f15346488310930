"""Small real models for the adaptation tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

CLASSES = 4
SIDE = 8


class SmallNet(nn.Module):
    """Every kind of normalisation that CEMA adapts, in one classifier of a few hundred parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(2, width), nn.ReLU()),
        )
        self.dropout = nn.Dropout(0.5)
        self.hidden = nn.Linear(width, width)
        self.bn2 = nn.BatchNorm1d(width)
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.blocks(torch.relu(self.bn1(self.conv1(images)))).mean((2, 3))
        x = self.ln(torch.relu(self.bn2(self.hidden(self.dropout(x)))))
        logits: torch.Tensor = self.head(x)
        return logits


def small_model(seed: int, width: int = 8, name: str = "small") -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = SmallNet(width)
        for layer in (module.bn1, module.blocks[0][1], module.bn2):
            layer.running_mean.normal_(0.0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.8, 1.2)
    preprocessing = Preprocessing(
        height=SIDE, width=SIDE, channels=3, mean=(120.0, 118.0, 110.0), std=(60.0, 60.0, 60.0)
    )
    return Model(name=name, module=module.eval(), preprocessing=preprocessing, classes=CLASSES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks lose more to waking threads than they gain; and one thread is the most reproducible."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def edge() -> Model:
    return small_model(1)


@pytest.fixture
def foundation() -> Model:
    return small_model(2, width=12, name="small-foundation")


@pytest.fixture
def photos() -> Callable[[int], list[np.ndarray]]:
    def make(count: int, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return list(rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))

    return make
