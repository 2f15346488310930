"""Which optimiser the methods that learn from every prediction descend with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from cema.adapt._checks import require
from cema.adapt._online import OnlineModel

if TYPE_CHECKING:
    from cema.adapt.adapter import Context
    from cema.models.spec import Model

__all__ = ["OptimizerName", "online_model", "require_optimizer"]

OptimizerName = Literal["sgd", "adam"]


def online_model(
    model: Model, context: Context, *, optimizer: OptimizerName, lr: float, momentum: float
) -> OnlineModel:
    """Return a copy of a model that learns online, by SGD or by Adam.

    Parameters
    ----------
    model, context, lr, momentum
        As for `OnlineModel`; with Adam, momentum is its first beta. The second is 0.999.
    optimizer : {"sgd", "adam"}
        Which one.

    Returns
    -------
    OnlineModel
        At the source model.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.
    """
    online = OnlineModel(model, context, lr=lr, momentum=momentum)
    if optimizer == "adam":
        parameters = list(online.parameters.values())
        online.optimizer = torch.optim.Adam(parameters, lr=lr, betas=(momentum, 0.999))  # type: ignore[assignment]
    return online


def require_optimizer(value: str) -> None:
    """Check the name of an optimiser, which a structure made in Python does not check by itself."""
    require(value in ("sgd", "adam"), "optimizer", 'one of "sgd" and "adam"', value)
