"""Which optimiser a method descends with, for those whose programs take another one for other data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from cema.adapt._checks import require

__all__ = ["OptimizerName", "make_optimizer", "require_optimizer"]

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
