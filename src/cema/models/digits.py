"""The convolutional classifiers of handwritten digits."""

from __future__ import annotations

import torch
from torch import nn

from cema.errors import ModelError
from cema.ondevice.preprocess import Preprocessing

__all__ = ["DIGITS_LABELS", "DIGITS_PREPROCESSING", "DigitsNet", "digits_net"]

#: The classes in the order of the logits.
DIGITS_LABELS: tuple[str, ...] = tuple("0123456789")

#: All models of digits look at 32 x 32 grey pixels; mean and deviation are those of the training images, rounded.
DIGITS_PREPROCESSING = Preprocessing(height=32, width=32, channels=1, mean=(25.5,), std=(70.3,))

# Channels and stride of each convolution. The first halves the sides at once: what follows costs a quarter.
_LAYERS: dict[str, tuple[tuple[int, int], ...]] = {
    "digits-cnn": ((16, 2), (32, 2), (32, 1), (48, 2)),
    "digits-cnn-foundation": ((32, 2), (64, 2), (64, 1), (96, 2), (160, 1)),
}


class DigitsNet(nn.Module):
    """Convolutions with batch normalisation and ReLU, then an average over the image and a linear map.

    Parameters
    ----------
    layers : tuple of (int, int)
        Channels out and stride of each 3 x 3 convolution.
    """

    def __init__(self, layers: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        blocks, width = [], 1
        for channels, stride in layers:
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(width, channels, 3, stride=stride, padding=1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                )
            )
            width = channels
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, len(DIGITS_LABELS))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 1, 32, 32) to logits (N, 10)."""
        features = self.pool(self.features(images)).flatten(1)
        logits: torch.Tensor = self.classifier(features)
        return logits


def digits_net(name: str) -> DigitsNet:
    """Build one of the two architectures with fresh random weights.

    Parameters
    ----------
    name : str
        ``"digits-cnn"`` or ``"digits-cnn-foundation"``.

    Returns
    -------
    DigitsNet
        In training mode.

    Raises
    ------
    ModelError
        If there is no such architecture.
    """
    if name not in _LAYERS:
        raise ModelError(f"no digits model is called {name!r}; expected one of {', '.join(_LAYERS)}")
    return DigitsNet(_LAYERS[name])
