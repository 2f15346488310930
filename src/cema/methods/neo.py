"""NEO: move the mean of the features to the origin, and learn nothing.

Murphy et al., "NEO: No-Optimization Test-Time Adaptation through Latent Re-Centering", ICLR 2026 (arXiv 2510.05635).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import torch

from cema._util.checks import require
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.optimizers import as_array
from cema.methods.base import StepResult, method
from cema.methods.head import find_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["NEO", "NEOConfig"]


class NEOConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `NEO`; by default there is nothing to choose, as in the paper.

    Attributes
    ----------
    rate : float, optional
        None for the mean of all features so far. A number alpha in (0, 1] for the authors' continual variant, whose
        mean starts at zero and moves by alpha with every batch; they take 0.1.
    """

    rate: float | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.rate is not None:
            require(0 < self.rate <= 1, "rate", "a number in (0, 1], or none for the mean of all", self.rate)


@method("neo", config=NEOConfig, cost=1.0, colour="#7f9c00")
class NEO:
    r"""Subtract the mean of all features so far from the features, before the last linear layer.

    With h_i the features of the n images of a batch, N images so far (these included) and a head z = W h + b,

    .. math:: m \leftarrow m + \frac{n}{N} \Big(\frac{1}{n} \sum_i h_i - m\Big), \qquad z_i = W (h_i - m) + b

    The batch that is predicted is part of the mean. Nothing else enters: neither the mean of the source's features,
    which the paper expects near the origin (neural collapse), nor any shrinkage. This is the rule of the authors'
    program.

    As the head is linear, the same is a shift of all logits by one vector: the usual logits minus their mean over all
    images so far, plus the head's bias, W (h - m) + b = z - (W m + b) + b.

    The model runs in evaluation mode and never changes, so there is nothing to upload.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : NEOConfig, optional
        None for the defaults.
    context : Context
        Device and precision.

    Attributes
    ----------
    mean : torch.Tensor
        m, float32, (D,).

    Raises
    ------
    NotApplicable
        When the logits are not the output of a linear layer.

    Notes
    -----
    A first image that comes alone is its own mean: its logits are the head's bias, whatever it shows.

    Where the last layer works on several places of an image (a convolution), the features' mean is over places too.

    Features that are not finite do not enter the mean; the authors' program has no such rule.
    """

    def __init__(self, edge: Model, config: NEOConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or NEOConfig()
        self.model = AdaptableModel(edge, device=context.device, dtype=context.dtype)
        self.head = find_head(self.model, "NEO")
        self.mean = torch.zeros_like(self.head.weight[0])
        self._count = 0
        self.head.layer.register_forward_pre_hook(self._recentre)

    @torch.no_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch; see `cema.methods.base.Adapter`."""
        logits = as_array(self.model.forward(images))
        return StepResult(logits=logits, uploads=0, bytes_up=0, forwards=len(images), backwards=0)

    def _recentre(self, _: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self._follow(self.head.features(inputs[0]))
        return (self.head.less(inputs[0], self.mean), *inputs[1:])

    def _follow(self, features: torch.Tensor) -> None:
        """Take features (N, D) into the mean."""
        finite = features[torch.isfinite(features).all(dim=1)]
        if not len(finite):
            return
        self._count += len(finite)
        rate = len(finite) / self._count if self.config.rate is None else self.config.rate
        self.mean = torch.lerp(self.mean, finite.mean(dim=0), rate)
