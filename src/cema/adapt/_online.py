"""A model that learns in the very pass that predicts: what PL, Tent, ETA and EATA have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cema.adapt._copy import ModelCopy
from cema.adapt._optimizers import OptimizerName, make_optimizer
from cema.adapt.norm import normalising

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.adapt.adapter import Context
    from cema.models.spec import Model

__all__ = ["OnlineModel", "as_array", "descend"]


class OnlineModel(ModelCopy):
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
        self, model: Model, context: Context, *, lr: float, momentum: float, optimizer: OptimizerName = "sgd"
    ) -> None:
        super().__init__(model, device=context.device, dtype=context.dtype)
        self.optimizer = make_optimizer(optimizer, list(self.parameters.values()), lr=lr, momentum=momentum)

    def predict(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return logits (N, C), float32, with batch statistics, ready to be differentiated."""
        with normalising(self.layers.values(), "batch"):
            return self.forward(images)

    def descend(self, loss: torch.Tensor) -> bool:
        """Descend by one step; see :func:`descend`."""
        return descend(self.optimizer, loss)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> bool:
    """Descend by one step, unless that would spoil the model.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Whose parameters to change.
    loss : torch.Tensor
        A scalar.

    Returns
    -------
    bool
        False when a gradient was not finite: the parameters are as before.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    finite = bool(torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all())
    if finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return finite


def as_array(logits: torch.Tensor) -> np.ndarray:
    """Return logits as an array of float32, where numpy is."""
    array: np.ndarray = logits.detach().to("cpu", torch.float32).numpy()
    return array
