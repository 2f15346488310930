"""A foundation model that cannot teach the tiny edge model: it has other classes."""

from __future__ import annotations

from cloud_tiny_models import PREPROCESSING, network
from torch import nn

from cema.models.spec import Model

__all__ = ["of_three"]


def of_three() -> Model:
    module = network(12)
    module[-1] = nn.Linear(12 * 16, 3)
    return Model("migration_models:of_three", module.eval(), PREPROCESSING, 3)
