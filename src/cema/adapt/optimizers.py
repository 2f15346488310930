"""Which optimiser a method descends with, for those whose programs take another one for other data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch

from cema._util.checks import require

__all__ = ["OptimizerName", "as_array", "descend", "make_optimizer", "require_optimizer"]

OptimizerName = Literal["sgd", "adam"]


def make_optimizer(
    name: OptimizerName,
    parameters: Iterable[torch.nn.Parameter],
    *,
    lr: float,
    momentum: float,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Return SGD or Adam over some parameters.

    Parameters
    ----------
    name : {"sgd", "adam"}
        Which one.
    parameters : iterable of torch.nn.Parameter
        What it changes.
    lr : float
        The learning rate.
    momentum : float
        SGD's momentum, or Adam's first beta; the second is 0.999.
    nesterov : bool
        Of SGD.
    """
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, betas=(momentum, 0.999))
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov)


def require_optimizer(value: str) -> None:
    """Check the name of an optimiser, which a structure made in Python does not check by itself."""
    require(value in ("sgd", "adam"), "optimizer", 'one of "sgd" and "adam"', value)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor | Iterable[torch.Tensor]) -> bool:
    """Descend by one step, unless that would spoil the model.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Whose parameters to change.
    loss : torch.Tensor, or iterable of torch.Tensor
        A scalar; or several that sum up to the loss, each of them made, passed backward and let go before the next.

    Returns
    -------
    bool
        False when a gradient was not finite: the parameters are as before.
    """
    optimizer.zero_grad(set_to_none=True)
    for part in [loss] if isinstance(loss, torch.Tensor) else loss:
        part.backward()
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
