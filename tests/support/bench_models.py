"""Models of a stranger, found by their names: one that some methods do not apply to, and two that are always right."""

from __future__ import annotations

import torch
from torch import nn

from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

__all__ = ["brightness_12", "brightness_20", "layer_norm"]


def layer_norm() -> Model:
    """Return an untrained classifier of digits with LayerNorm and no BatchNorm."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(32 * 32, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 10)
    )
    preprocessing = Preprocessing(height=32, width=32, channels=1, mean=(128.0,), std=(64.0,))
    return Model("bench_models:layer_norm", module, preprocessing, 10)


class _Brightness(nn.Module):
    """Answers with the class whose number times ten is nearest to an image's mean."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.classes = classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tens = torch.arange(self.classes) * 10.0
        return -((self.norm(images).mean((1, 2, 3))[:, None] - tens) ** 2)


def _brightness(classes: int) -> Model:
    preprocessing = Preprocessing(height=32, width=32, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Model(f"bench_models:brightness_{classes}", _Brightness(classes), preprocessing, classes)


def brightness_12() -> Model:
    """Return a model of twelve classes, each 10 brighter than the one before."""
    return _brightness(12)


def brightness_20() -> Model:
    """Return a model of twenty classes, each 10 brighter than the one before."""
    return _brightness(20)
