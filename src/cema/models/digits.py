"""The built-in convolutional classifiers of handwritten digits, with the weights that ship with the package."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from cema.errors import ModelError
from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

__all__ = [
    "DIGITS_LABELS",
    "DIGITS_PREPROCESSING",
    "DigitsNet",
    "digits_cnn",
    "digits_cnn_foundation",
    "digits_net",
    "shipped_model",
    "shipped_record",
]

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


def digits_cnn() -> Model:
    """Return the edge model: small, lightly augmented, so that it degrades as deployed models do.

    Returns
    -------
    Model
        With the weights that ship with the package.

    Raises
    ------
    ModelError
        If the shipped weights are missing or damaged.
    """
    return shipped_model("digits-cnn", digits_net("digits-cnn"))


def digits_cnn_foundation() -> Model:
    """Return the foundation model: some 250,000 parameters, trained with strong augmentation.

    Returns
    -------
    Model
        With the weights that ship with the package.

    Raises
    ------
    ModelError
        If the shipped weights are missing or damaged.
    """
    return shipped_model("digits-cnn-foundation", digits_net("digits-cnn-foundation"))


def shipped_record(name: str) -> dict[str, Any]:
    """Return how the shipped weights of a model came about: seed, split, recipe, accuracy, digest.

    Parameters
    ----------
    name : str
        Such as ``"digits-cnn"``.

    Returns
    -------
    dict
        What `cema.recipes.digits.train_digits` recorded.

    Raises
    ------
    ModelError
        If there is no record under that name.
    """
    try:
        record: dict[str, Any] = json.loads(_read(f"{name}.json"))
    except ValueError as error:
        raise ModelError(f"the shipped record of {name} is damaged ({error}); reinstall cema") from error
    return record


def shipped_model(name: str, net: nn.Module) -> Model:
    """Load the weights that ship with the package into a model of digits.

    Parameters
    ----------
    name : str
        Of the model, and of its files in the package.
    net : torch.nn.Module
        Its architecture; changed in place, and put in evaluation mode.

    Returns
    -------
    Model
        Ready for use.

    Raises
    ------
    ModelError
        If the files are missing or damaged, or are of another architecture.
    """
    content = _read(f"{name}.safetensors")
    expected = shipped_record(name).get("sha256")
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ModelError(
            f"the shipped weights of {name} have sha256 {digest}, but their record says {expected}; "
            "reinstall cema"
        )
    try:
        net.load_state_dict(load_safetensors(content), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the shipped weights of {name} do not fit the model: {error}; reinstall cema"
        ) from error
    net.eval()
    return Model(
        name=name,
        module=net,
        preprocessing=DIGITS_PREPROCESSING,
        classes=len(DIGITS_LABELS),
        labels=DIGITS_LABELS,
    )


def _read(file: str) -> bytes:
    try:
        return (files("cema.models") / "weights" / file).read_bytes()
    except OSError as error:
        raise ModelError(f"the shipped file {file} cannot be read ({error}); reinstall cema") from error
