"""A model that learns in the very pass that predicts: what PL, Tent, ETA and EATA have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cema.adapt.adaptable import AdaptableModel
from cema.adapt.norm import normalising
from cema.adapt.optimizers import OptimizerName, descend, make_optimizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["OnlineModel"]


class OnlineModel(AdaptableModel):
    """A copy of a model that normalises with batch statistics and learns its norm affine parameters.

    Parameters
    ----------
    model : cema.models.spec.Model
        The source; copied.
    context : Context
        Device and precision.
    lr, momentum : float
        The learning rate, and SGD's momentum or Adam's first beta.
    optimizer : {"sgd", "adam"}
        What it descends with.

    Attributes
    ----------
    optimizer : torch.optim.Optimizer
        Over all `parameters`.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.
    ValueError
        When the device is not available.

    Notes
    -----
    LayerNorm and GroupNorm normalise each image by itself anyway. A BatchNorm that sees a single value per channel
    (a batch of one image, after global pooling) has no variance to use and falls back to running statistics.
    """

    def __init__(
        self,
        model: Model,
        context: MethodContext,
        *,
        lr: float,
        momentum: float,
        optimizer: OptimizerName = "sgd",
    ) -> None:
        super().__init__(model, device=context.device, dtype=context.dtype)
        self.optimizer = make_optimizer(optimizer, list(self.parameters.values()), lr=lr, momentum=momentum)

    def predict(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return logits (N, C), float32, with batch statistics, ready to be differentiated."""
        with normalising(self.layers.values(), "batch"):
            return self.forward(images)

    def descend(self, loss: torch.Tensor) -> bool:
        """Descend by one step; see :func:`cema.adapt.optimizers.descend`."""
        return descend(self.optimizer, loss)
