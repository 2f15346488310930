"""The source model as it is: the floor that every method is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from cema.adapt.adaptable import AdaptableModel
from cema.adapt.optimizers import as_array
from cema.methods.base import StepResult, method

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["Source", "SourceConfig"]


class SourceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `Source`: there are none."""


@method("source", config=SourceConfig, cost=1.0, colour="#888888")
class Source:
    """No adaptation: predict with the source model and learn nothing.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : SourceConfig, optional
        Has no settings.
    context : Context
        Device and precision.
    """

    def __init__(self, edge: Model, config: SourceConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or SourceConfig()
        self.model = AdaptableModel(edge, device=context.device, dtype=context.dtype)

    @torch.no_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch."""
        logits = as_array(self.model.forward(images))
        return StepResult(logits=logits, uploads=0, bytes_up=0, forwards=len(images), backwards=0)
