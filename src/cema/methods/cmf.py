"""CMF: ROID, averaged with a filtered copy of the source model in the place of the source model.

Lee and Chang, "Continual Momentum Filtering on Parameter Space for Online Test-time Adaptation", ICLR 2024.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cema._util.checks import require_fraction, require_rate
from cema.methods.base import method
from cema.methods.roid import PAPERS, ROID, SHORT, ROIDConfig

if TYPE_CHECKING:
    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["CMF", "CMFConfig"]

# The program that Marsden et al. took over from the authors: the bounds of the filter's momentum, and for how many
# parameters its noise is given (the affine parameters of a ViT-Base).
_LEAST_MOMENTUM, _ONE_FROM, _PARAMETERS = 0.89, 0.9999, 38400


class CMFConfig(ROIDConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `CMF`: those of ROID and of the filter; the defaults are those for ImageNet-C.

    Attributes
    ----------
    recall : float
        Share of itself that the hidden model keeps when it goes back towards the source model, at every step; alpha.
    noise : float
        How far a step may have moved the model, for 38,400 parameters; q. At 0 the hidden model stays the source model
        and CMF is ROID. ROID's `ensemble` is gamma.
    """

    recall: float = 0.99
    noise: float = 0.005

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        ROIDConfig.__post_init__(self)
        require_fraction("recall", self.recall)
        require_rate("noise", self.noise)


# The short rates were tuned for each of the two, and are the same.
@method("cmf", config=CMFConfig, cost=5.0, colour="#7aa6ff", papers=PAPERS, short=SHORT)
class CMF(ROID):
    r"""ROID's loss and answers; a Kalman filter says what the model is averaged with.

    A hidden model h (at first the source's theta_0) with a variance v (at first 0) follows the adapted model theta:

    .. math:: h &\leftarrow \alpha h + (1 - \alpha) \theta_0, \quad v \leftarrow \alpha^2 v + q \\
        \beta &= r / (v + r), \quad h \leftarrow \beta h + (1 - \beta) \theta, \quad v \leftarrow \beta v \\
        \theta &\leftarrow \gamma \theta + (1 - \gamma) h

    with r = 1 - q, q in proportion to the number of norm affine parameters, and beta between 0.89 and 1.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : CMFConfig, optional
        None for the defaults.
    context : Context
        As for ROID.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.

    Notes
    -----
    The noise grows with the number of parameters, as in the program that Marsden et al. took over. A model with some
    thousand of them moves its hidden model so little that CMF answers nearly as ROID does.
    """

    def __init__(self, edge: Model, config: CMFConfig | None = None, *, context: MethodContext) -> None:
        config = config or CMFConfig()
        super().__init__(edge, config, context=context)
        self._recall = config.recall
        self._noise = config.noise * sum(p.numel() for p in self.model.parameters.values()) / _PARAMETERS
        self._variance = 0.0
        self._hidden = {name: source.clone() for name, source in self._source.items()}

    @torch.no_grad()
    def _ensemble(self) -> None:
        momentum = self._filter()
        for name, parameter in self.model.parameters.items():
            hidden = self._hidden[name]
            hidden.lerp_(self._source[name], 1.0 - self._recall)
            hidden.lerp_(parameter, 1.0 - momentum)
            parameter.lerp_(hidden, 1.0 - self.config.ensemble)

    def _filter(self) -> float:
        """Return beta, and let the variance go a step further."""
        self._variance = self._recall**2 * self._variance + self._noise
        observed = 1.0 - self._noise
        momentum = max(_LEAST_MOMENTUM, observed / (self._variance + observed))
        momentum = momentum if momentum < _ONE_FROM else 1.0
        self._variance *= momentum
        return momentum
