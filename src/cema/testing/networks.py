"""A small pair of models with every kind of normalisation layer, whose gradients can be made to overflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

__all__ = ["CLASSES", "overflowing_gradients", "random_images", "small_model"]

CLASSES = 4
SIDE = 8
# What gradients are multiplied by on their way back. Methods copy models, and all copies read this.
_FACTOR = [1.0]


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by `_FACTOR`."""

    @staticmethod
    def forward(_: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.clone()

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * _FACTOR[0]


class _SmallNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.gn = nn.GroupNorm(2, width)
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.gn(torch.relu(self.bn(self.conv(images))))).mean((2, 3))
        logits: torch.Tensor = self.head(_Scaled.apply(self.ln(hidden)))  # type: ignore[no-untyped-call]
        return logits


def small_model(seed: int = 1, *, width: int = 8, name: str = "small") -> Model:
    """Return a classifier of 8 x 8 colour images into `CLASSES` classes, with random weights.

    Parameters
    ----------
    seed : int
        Of the weights.
    width : int
        Channels: an even number.
    name : str
        The model's name.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _SmallNet(width)
        module.bn.running_mean = 0.1 * torch.randn(width)
        module.bn.running_var = 0.5 + torch.rand(width)
    preprocessing = Preprocessing(height=SIDE, width=SIDE, channels=3, mean=(120.0,) * 3, std=(60.0,) * 3)
    return Model(name=name, module=module.eval(), preprocessing=preprocessing, classes=CLASSES)


def random_images(count: int, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Return images of noise, uint8 (8, 8, 3)."""
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))


@contextmanager
def overflowing_gradients() -> Iterator[None]:
    """Make the gradients of every small model infinite inside a ``with`` block."""
    _FACTOR[0] = float("inf")
    try:
        yield
    finally:
        _FACTOR[0] = 1.0
