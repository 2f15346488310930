"""One model while it is being adapted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from cema.adapt._checkpoint import checkpointing
from cema.adapt._copy import ModelCopy
from cema.adapt._online import descend
from cema.adapt.norm import normalising
from cema.adapt.statistics import RunningStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from cema.adapt.config import AdaptConfig
    from cema.models.spec import Model

__all__ = ["AdaptedModel"]


class AdaptedModel(ModelCopy):
    """A copy of a model with its trainable norm state, optimiser and running statistics.

    Parameters
    ----------
    model : cema.models.spec.Model
        The source; copied.
    config : AdaptConfig
        What running statistics follow, SGD's momentum, chunk size and checkpointing.
    learning_rate : float
        SGD's.
    device : str
        A torch device.
    dtype : {"float32", "bfloat16"}
        Precision inside the network.

    Attributes
    ----------
    optimizer : torch.optim.SGD
        Over all `parameters`.
    statistics : RunningStatistics
        Moves those of all `layers`.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.
    ValueError
        When dtype is unknown or the device is not available.
    """

    def __init__(
        self, model: Model, config: AdaptConfig, learning_rate: float, *, device: str, dtype: str
    ) -> None:
        super().__init__(model, device=device, dtype=dtype)
        self._config = config
        self._source = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimizer = torch.optim.SGD(
            list(self.parameters.values()), lr=learning_rate, momentum=config.sgd_momentum
        )
        self.statistics = RunningStatistics(
            list(self.layers.values()),
            start=config.start,
            window=config.window if config.statistics == "window" else None,
            momentum=config.statistics_momentum,
            batch=config.fresh,
        )

    @torch.no_grad()
    def logits(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Return logits (N, C), float32, with running statistics, in chunks and without gradients."""
        chunk = self._config.chunk
        parts = [self.forward(images[i : i + chunk]) for i in range(0, len(images), chunk)]
        return torch.cat(parts) if parts else torch.empty(0, self.classes, device=self.device)

    @torch.no_grad()
    def observe(self, images: Sequence[np.ndarray], *, anew: bool = False) -> bool:
        """Move the running statistics by a pass in which every layer uses this batch's own statistics.

        Returns
        -------
        bool
            False when the model has no running statistics, or the batch is too small to have a variance.
        """
        if not self.layers:
            return False
        with normalising(self.layers.values(), "batch"):
            self.forward(images)
        return self.statistics.observe(len(images), anew=anew)

    def follow(self, fresh: Sequence[np.ndarray], *, changed: bool = False, anew: bool = False) -> None:
        """Move the running statistics before a step, as configured.

        Parameters
        ----------
        fresh : sequence of ndarray
            New uploads.
        changed, anew : bool
            Whether they show that the environment has changed, and whether a window of statistics begins with them.
        """
        first = self._config.statistics == "step" and not self.statistics.started
        if first or self._config.statistics in {"window", "fresh"}:
            self.observe(fresh, anew=anew)
        if changed and self._config.on_change == "reset":
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Put the source model's affine parameters back and forget the optimiser's momentum."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self._source[name])
        self.optimizer.state.clear()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let layers renormalise, and activations be recomputed if so configured, inside a ``with`` block.

        With ``statistics = "step"`` the running statistics move when the block is left, by one full batch
        however many images there were, as in the published code.
        """
        with normalising(self.layers.values(), "renorm"), checkpointing(self.module, self._config.checkpoint):
            yield
        if self._config.statistics == "step":
            self.statistics.observe(self._config.fresh)

    def step(self, loss: torch.Tensor) -> bool:
        """Descend by one SGD step.

        Returns
        -------
        bool
            False when a gradient was not finite: the parameters are as before.
        """
        return descend(self.optimizer, loss)
