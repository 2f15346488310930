"""ONDA: running statistics follow the stream.

Mancini et al., "Kitting in the Wild through Online Domain Adaptation", IROS 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import torch

from cema._util.checks import require
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.optimizers import as_array
from cema.methods.base import StepResult, method
from cema.methods.bn import require_batch_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.adapt.norm import AdaptiveBatchNorm
    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["ONDA", "ONDAConfig"]


class ONDAConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `ONDA`.

    Attributes
    ----------
    momentum : float
        Rate alpha of the exponential average, in (0, 1].
    every : int
        Images n_t after which the running statistics move.
    """

    momentum: float = 0.1
    every: int = 10

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require(0 < self.momentum <= 1, "momentum", "a number in (0, 1]", self.momentum)
        require(self.every >= 1, "every", "a whole number of at least 1", self.every)


@method("onda", config=ONDAConfig, cost=1.3, colour="#56b4e9", short={"cifar/batchnorm": {"momentum": 0.05}})
class ONDA:
    """Predict with running statistics, and move them after every n_t images.

    mu <- (1 - alpha) mu + alpha mu_t,  sigma^2 <- (1 - alpha) sigma^2 + alpha n / (n - 1) sigma_t^2,

    where mu_t and sigma_t^2 are those of what a layer was given while the n_t images were predicted, n values per
    channel. How the stream is cut into batches makes no difference: a batch is predicted in chunks that end where
    the statistics move.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : ONDAConfig, optional
        None for the defaults.
    context : Context
        Device and precision.

    Raises
    ------
    NotApplicable
        When the model has no BatchNorm with running statistics.

    Notes
    -----
    As published, a layer's statistics are observed while the layers before it still move, so that those of a deep
    network need not fit one another for a while (`cema.adapt.statistics` says more).
    """

    def __init__(self, edge: Model, config: ONDAConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or ONDAConfig()
        self.model = AdaptableModel(edge, device=context.device, dtype=context.dtype)
        require_batch_norm(self.model, "ONDA")
        self._pending = 0
        self._moments = {name: _Moments() for name in self.model.layers}
        for name, layer in self.model.layers.items():
            layer.register_forward_pre_hook(partial(_take, moments=self._moments[name]))

    @torch.no_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch, moving the running statistics on the way."""
        parts, start = [], 0
        while start < len(images):
            chunk = images[start : start + max(1, self.config.every - self._pending)]
            parts.append(self.model.forward(chunk))
            start += len(chunk)
            self._pending += len(chunk)
            if self._pending >= self.config.every:
                self._move()
        logits = as_array(torch.cat(parts))
        return StepResult(logits=logits, uploads=0, bytes_up=0, forwards=len(images), backwards=0)

    def _move(self) -> None:
        """Move the running statistics; wait for more images where a layer has a single value per channel."""
        if any(moments.count == 1 for moments in self._moments.values()):
            return
        for name, layer in self.model.layers.items():
            self._moments[name].move(layer, self.config.momentum)
        self._pending = 0


@dataclass
class _Moments:
    """The values per channel that a layer was given, with their sums: float64, since they are subtracted."""

    count: int = 0
    total: torch.Tensor | None = None
    squares: torch.Tensor | None = None

    def add(self, x: torch.Tensor) -> None:
        """Take in inputs (N, C, ...)."""
        dims = (0, *range(2, x.dim()))
        wide = x.detach().double()
        total, squares = wide.sum(dims), (wide * wide).sum(dims)
        self.count += x.numel() // x.shape[1]
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares

    def move(self, layer: AdaptiveBatchNorm, rate: float) -> None:
        """Move a layer's running statistics to these and forget them; statistics that are not finite do nothing."""
        if self.total is not None and self.squares is not None:
            mean = self.total / self.count
            variance = ((self.squares - self.count * mean * mean) / (self.count - 1)).clamp_min(0.0)
            if torch.isfinite(mean).all() and torch.isfinite(variance).all():
                layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), rate)
                layer.running_var.lerp_(variance.to(layer.running_var.dtype), rate)
        self.count, self.total, self.squares = 0, None, None


def _take(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], *, moments: _Moments) -> None:
    moments.add(inputs[0])
