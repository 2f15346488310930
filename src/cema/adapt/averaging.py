"""The average of a model's parameters over the latest steps: what is published in place of the last step's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["ParameterAverage"]


class ParameterAverage:
    r"""An exponential average of parameters, which begins at them as they are.

    After each step,

    .. math:: \bar w_n = d \bar w_{n-1} + (1 - d) w_n

    Many steps over few samples at a high rate leave the parameters somewhere around what fits all of them; their
    average is nearer to it than the last step (Polyak and Juditsky, 1992).

    Parameters
    ----------
    parameters : mapping of str to torch.Tensor
        What is averaged; changed by steps in place.
    decay : float
        d, in [0, 1); 0 for the parameters as they are.

    Examples
    --------
    >>> parameters = {"weight": torch.zeros(1)}
    >>> average = ParameterAverage(parameters, decay=0.5)
    >>> _ = parameters["weight"].fill_(4.0)
    >>> average.moved()
    >>> with average.in_place():
    ...     parameters["weight"].item()
    2.0
    >>> parameters["weight"].item()
    4.0
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self._mean: dict[str, torch.Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Begin again at the parameters as they are."""
        self._mean = self._copies() if self._decay else {}

    def _copies(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def moved(self) -> None:
        """Take in the parameters after a step."""
        for name, mean in self._mean.items():
            mean.lerp_(self._parameters[name].detach(), 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parameters be their average inside the context."""
        if not self._mean:
            yield
            return
        latest = self._copies()
        self._put(self._mean)
        try:
            yield
        finally:
            self._put(latest)

    @torch.no_grad()
    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the average by the names of the parameters, for `load`; nothing where there is none."""
        return dict(self._mean)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `tensors` returned; begin at the parameters as they are where that was nothing."""
        self.restart()
        for name, mean in self._mean.items():
            mean.copy_(tensors.get(name, mean))
