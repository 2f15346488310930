"""RDumb: ETA that begins again as the source model, every so many steps.

Press et al., "RDumb: A simple approach that questions our progress in continual test-time adaptation", NeurIPS 2023.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cema._util.checks import require
from cema.methods.base import method
from cema.methods.eta import ETA, PAPERS, SHORT, ETAConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext, StepResult
    from cema.models.spec import Model

__all__ = ["RDumb", "RDumbConfig"]


class RDumbConfig(ETAConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `RDumb`: those of ETA and the interval; the defaults are those for ImageNet-C.

    Attributes
    ----------
    reset_every : int
        Steps, which are batches of the stream, after which everything learned is forgotten.
    """

    reset_every: int = 1000

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        ETAConfig.__post_init__(self)
        require(
            self.reset_every >= 1, "reset_every", "a whole number of at least 1 (steps)", self.reset_every
        )


# The authors take ETA's values, and 1,000 steps of 64 images for all data. Until its first reset RDumb is ETA to the
# bit, so on short streams, which end before it, what was tuned for ETA was tuned for RDumb.
@method("rdumb", config=RDumbConfig, colour="#aec7e8", papers=PAPERS, short=SHORT)
class RDumb(ETA):
    """ETA, of which nothing is left after every T steps but the source model.

    Before the batches T + 1, 2 T + 1, ... the source parameters are put back, and the momentum and the average
    prediction are forgotten. The batch after a reset is predicted by the source model with batch statistics.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : RDumbConfig, optional
        None for the defaults.
    context : Context
        Device, precision and codec.

    Attributes
    ----------
    resets : int
        How often the source parameters were put back.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.

    Notes
    -----
    The interval counts steps and not images, as the paper and the authors' program do: how far a model can have gone
    from its source follows from the number of steps and the learning rate, whatever the size of a batch. A batch that
    teaches nothing, because nothing in it passes the filters, counts too.

    1,000 batches of 64 are 64,000 images. On a stream that is shorter the row equals ETA's; the protocols that join
    many corruptions into one stream are those that it is for.
    """

    def __init__(self, edge: Model, config: RDumbConfig | None = None, *, context: MethodContext) -> None:
        config = config or RDumbConfig()
        super().__init__(edge, config, context=context)
        self.resets = 0
        self._every = config.reset_every
        self._steps = 0
        self._source = {name: p.detach().clone() for name, p in self.model.parameters.items()}

    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Begin again if it is time to, then predict a batch and learn from what passes, as `ETA` does."""
        if self._steps == self._every:
            self._reset()
        self._steps += 1
        return super().step(images, edge=edge)

    @torch.no_grad()
    def _reset(self) -> None:
        for name, parameter in self.model.parameters.items():
            parameter.copy_(self._source[name])
        self.model.optimizer.state.clear()
        self._redundancy.mean = None
        self._steps = 0
        self.resets += 1
