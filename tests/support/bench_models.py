"""A model that some methods do not apply to, found by its name as a user's own is."""

from __future__ import annotations

import torch
from torch import nn

from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

__all__ = ["layer_norm"]


def layer_norm() -> Model:
    """Return an untrained classifier of digits with LayerNorm and no BatchNorm."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(32 * 32, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 10)
    )
    preprocessing = Preprocessing(height=32, width=32, channels=1, mean=(128.0,), std=(64.0,))
    return Model("bench_models:layer_norm", module, preprocessing, 10)
