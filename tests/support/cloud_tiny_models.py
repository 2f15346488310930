"""A tiny pair of BatchNorm networks for four classes: which quadrant of an 8 x 8 image is bright."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

PREPROCESSING = Preprocessing(height=8, width=8, channels=3, mean=(127.0,) * 3, std=(64.0,) * 3)


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 16, 4),
    )


def edge() -> Model:
    return Model("cloud_tiny_models:edge", network(4).eval(), PREPROCESSING, 4)


def foundation() -> Model:
    return Model("cloud_tiny_models:foundation", network(12).eval(), PREPROCESSING, 4)


def quadrants(count: int, seed: int, *, drift: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 8, 8, 3) uint8 and labels; a drifted camera has little contrast and sees blue."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    pixels = rng.normal(90, 40, (count, 8, 8, 3))
    for i, label in enumerate(labels):
        top, left = divmod(int(label), 2)
        pixels[i, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 45
    if drift:
        pixels = 0.35 * pixels + np.array([10.0, 60.0, 150.0])
    return np.clip(pixels, 0, 255).astype(np.uint8), labels


def train(module: nn.Module, seed: int) -> None:
    """Teach a network the clean task."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:  # made when the module was, from whatever state the generator had then
                nn.init.zeros_(layer.bias)
    images, labels = quadrants(512, seed)
    x, y = torch.from_numpy(PREPROCESSING(images)), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    module.train()
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    module.eval()
    torch.random.set_rng_state(generator)
