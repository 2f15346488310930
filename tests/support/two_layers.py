"""A classifier of two layers, small enough to be written out by hand in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

CLASSES, WIDTH, SIDE = 3, 5, 4
PIXELS = Preprocessing(
    height=SIDE, width=SIDE, channels=3, mean=(128.0, 120.0, 110.0), std=(64.0, 60.0, 70.0)
)


class TwoLayers(nn.Module):
    """A convolution, batch normalisation that is far from the identity, ReLU, and a linear map of the mean."""

    def __init__(self, seed: int, *, bias: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # Without a bias: batch normalisation takes it away again, and Adam would follow rounding errors.
            self.conv = nn.Conv2d(3, WIDTH, 3, bias=bias)
            self.norm = nn.BatchNorm2d(WIDTH)
            self.linear = nn.Linear(WIDTH, CLASSES)
            nn.init.uniform_(self.norm.weight, 0.5, 2.0)
            nn.init.normal_(self.norm.bias)
            nn.init.normal_(self.linear.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return logits


def two_layers(seed: int, *, bias: bool = True) -> Model:
    module = TwoLayers(seed, bias=bias).eval()
    return Model(name=f"two-{seed}", module=module, preprocessing=PIXELS, classes=CLASSES)


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))


def normalised(images: list[np.ndarray] | np.ndarray) -> torch.Tensor:
    """Turn pixels (N, H, W, C) in 0..255 into the model's input (N, C, H, W) in float64."""
    pixels = (np.array(images, dtype=np.float64) - np.array(PIXELS.mean)) / np.array(PIXELS.std)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
