"""A model's copy with its normalisation layers made adaptable: what every method begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cema.adapt.norm import prepare
from cema.models.copying import copy_module
from cema.models.device import memory_format, why_unusable
from cema.models.digest import model_digest
from cema.ondevice.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.models.spec import Model

__all__ = ["AdaptableModel"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class AdaptableModel:
    """A copy of a model, frozen but for the affine parameters of its normalisation layers.

    Parameters
    ----------
    model : cema.models.spec.Model
        The source; copied.
    device : str
        A torch device.
    dtype : {"float32", "bfloat16"}
        Precision inside the network.

    Attributes
    ----------
    module : torch.nn.Module
        The copy, its BatchNorm layers replaced by `AdaptiveBatchNorm`.
    parameters : dict of str to torch.nn.Parameter
        What may be trained.
    layers : dict of str to AdaptiveBatchNorm
        Whose statistics may move.
    forwards, backwards : int
        Samples that passed through the network so far, and how many of them with gradients.
    source_digest : str
        Hex SHA-256 of the source model's tensors; identifies what an adaptation began from.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.
    ValueError
        When dtype is unknown or the device is not available.
    """

    def __init__(self, model: Model, *, device: str = "cpu", dtype: str = "float32") -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(sorted(_DTYPES))}, got {dtype!r}")
        self.name = model.name
        self.classes = model.classes
        self.preprocessing = model.preprocessing
        self.device = _available(device)
        self.dtype = _DTYPES[dtype]
        self.forwards = self.backwards = 0
        self.source_digest = model_digest(model.module)
        self._memory = memory_format(model.module)
        self.module = copy_module(model).to(self.device, torch.float32)
        self.module.to(memory_format=self._memory)  # type: ignore[call-overload]
        self.parameters, self.layers = prepare(self.module)

    def inputs(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return uint8 HWC images as the model's input (N, C, H, W), float32, where the model is."""
        if isinstance(images, Batch):
            # The array is the batch's, for others too.
            pixels = torch.from_numpy(images.inputs(self.preprocessing))
            return pixels.to(self.device, copy=True, memory_format=self._memory)
        pixels = torch.from_numpy(self.preprocessing(images))
        return pixels.to(self.device, memory_format=self._memory)

    def as_inputs(self, pixels: np.ndarray) -> torch.Tensor:
        """Return preprocessed inputs (N, C, H, W), float32, where the model is and laid out in memory as it wants."""
        return torch.from_numpy(pixels).to(self.device, copy=True, memory_format=self._memory)

    def run(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (N, classes), float32, in whatever mode the layers are."""
        self.forwards += len(inputs)
        self.backwards += len(inputs) * torch.is_grad_enabled()
        return self.network(inputs)

    def network(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits as `run` does, and count no pass."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            # A copy, because a forward may change its input in place, and several passes may share it.
            logits: torch.Tensor = self.module(inputs.clone())
        return logits.float()

    def forward(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return logits (N, classes), float32, of uint8 HWC images, in whatever mode the layers are."""
        return self.run(self.inputs(images))


def _available(device: str) -> torch.device:
    if reason := why_unusable(device):
        raise ValueError(
            f'device: expected one that this torch can use, got {device!r} ({reason}); "cpu" always works'
        )
    return torch.device(device)
