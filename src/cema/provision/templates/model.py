"""Your own models: the one that devices run (`build`), and a stronger one that teaches it (`build_strong`).

This file works as it stands, with networks that have learned nothing. Fill in what is marked 1 to 4, then make a fleet
of it in a new folder:

    cema init my-fleet --model model.py:build --foundation model.py:build_strong
"""

from __future__ import annotations

import torch
from torch import nn

from cema import Model, Preprocessing

# 1. The names of your classes, in the order of the network's outputs.
CLASSES = ("cat", "dog", "neither")

# 2. What becomes of an image, whose pixels are 0 to 255: it is resized, then (pixel - mean) / std in each channel.
PIXELS = Preprocessing(height=96, width=96, channels=3, mean=(127.5,) * 3, std=(127.5,) * 3)


def network(width: int) -> nn.Module:
    """3. Your network: it returns logits (no softmax), and has BatchNorm, LayerNorm, GroupNorm or RMSNorm layers."""
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, len(CLASSES))),
    )


def build() -> Model:
    """Return the model that devices run. Every call must return the same one."""
    torch.manual_seed(0)
    net = network(16)
    # 4. Your trained weights, from a file that `safetensors.torch.save_file(net.state_dict(), PATH)` wrote:
    # net.load_state_dict(safetensors.torch.load_file("/home/me/edge.safetensors"))
    return Model(
        name="my-model", module=net.eval(), preprocessing=PIXELS, classes=len(CLASSES), labels=CLASSES
    )


def build_strong() -> Model:
    """Return the stronger model, with the same classes. It runs in the cloud only, so it may be large."""
    torch.manual_seed(1)
    net = network(64)
    return Model(
        name="my-teacher", module=net.eval(), preprocessing=PIXELS, classes=len(CLASSES), labels=CLASSES
    )
