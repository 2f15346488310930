"""ETA: entropy minimisation on samples that are reliable and unlike those before.

Niu et al., "Efficient Test-Time Model Adaptation without Forgetting", ICML 2022: EATA without its regulariser.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import torch

from cema._util.checks import require_fraction, require_rate
from cema.adapt.losses import sample_weights, softmax_entropy
from cema.adapt.optimizers import as_array
from cema.methods.base import StepResult, Uplink, method
from cema.methods.online import OnlineModel
from cema.ondevice.selection.redundancy import RedundancyFilter

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["ETA", "ETAConfig"]


class ETAConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `ETA`; the defaults are those for ImageNet-C.

    Attributes
    ----------
    lr : float
        SGD's learning rate.
    momentum : float
        SGD's momentum, in [0, 1).
    e_margin : float
        Entropy E_0 below which a prediction is reliable, as a fraction of ln C.
    d_margin : float
        Cosine similarity epsilon to the average prediction below which a sample is not redundant, in [0, 1]; at 1
        only exact copies of the average are.
    average : float
        How much of the average prediction stays at each update, in [0, 1).
    """

    lr: float = 0.00025
    momentum: float = 0.9
    e_margin: float = 0.4
    d_margin: float = 0.05
    average: float = 0.9

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_rate("lr", self.lr)
        require_fraction("momentum", self.momentum, below_one=True)
        require_rate("e_margin", self.e_margin)
        require_fraction("d_margin", self.d_margin)
        require_fraction("average", self.average, below_one=True)


# Niu et al., ICML 2022: 2.5e-4, margin 0.05 (ImageNet); 5e-3, margin 0.4 (CIFAR-10). For ViT 1e-3, as Niu et al., ICLR
# 2023. No paper has digits: they take CIFAR-10's values.
PAPERS = {
    "imagenet/layernorm": {"lr": 1e-3},
    **{key: {"lr": 0.005, "d_margin": 0.4} for key in ("cifar", "cifar100", "digits")},
    **{key: {"lr": 0.001} for key in ("cifar/layernorm", "cifar100/layernorm", "digits/layernorm")},
}
SHORT = {
    "cifar/batchnorm": {"lr": 0.025},
    "digits/batchnorm": {"lr": 2.5e-4},
    "digits/layernorm": {"lr": 0.01},
}


@method("eta", config=ETAConfig, colour="#1f77b4", papers=PAPERS, short=SHORT)
class ETA:
    """Predict with batch statistics, then minimise the weighted entropy of the samples that pass two filters.

    L = mean over S of exp(E_0 - E(x)) E(x; w),  the weight without gradient,
    S = {x: E(x) < E_0 and |cos(p(x), m)| < epsilon},  m <- 0.9 m + 0.1 mean over S of p(x).

    The first batch has no m: all that is reliable is taken and starts it. What passes is uploaded.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : ETAConfig, optional
        None for the defaults.
    context : Context
        Device, precision and codec.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.

    Notes
    -----
    As in the authors' program, the gradient flows through the statistics of the whole batch, those that did not
    pass included; `StepResult.backwards` counts those that passed, as the paper does.
    """

    def __init__(self, edge: Model, config: ETAConfig | None = None, *, context: MethodContext) -> None:
        self.config: ETAConfig = config or ETAConfig()
        self.model = OnlineModel(edge, context, lr=self.config.lr, momentum=self.config.momentum)
        self.uplink = Uplink(context.codec)
        self._e_0 = self.config.e_margin * math.log(edge.classes)
        self._redundancy = RedundancyFilter(self.config.d_margin, self.config.average)

    @torch.enable_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch and learn from what passes; without finite gradients nothing is learned."""
        logits = self.model.predict(images)
        entropy = self._entropy(logits)
        passed = self._select(logits.detach(), entropy.detach())
        if len(passed):
            chosen = entropy[passed]
            loss = (sample_weights(chosen, self._e_0) * chosen).mean()
            self.model.descend(self._regularised(loss))
        return StepResult(
            logits=as_array(logits),
            uploads=len(passed),
            bytes_up=self.uplink.count([images[i] for i in passed.tolist()]),
            forwards=len(images),
            backwards=len(passed),
        )

    def _entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what is minimised, weighs and is compared with E_0, (N,) in nats, of logits (N, C)."""
        return softmax_entropy(logits)

    def _select(self, logits: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        """Return which samples pass both filters, (S,) int64, and move the average prediction to them."""
        reliable = torch.nonzero(entropy < self._e_0).flatten()
        passes = torch.from_numpy(self._redundancy.passes(as_array(logits[reliable])))
        return reliable[passes.to(reliable.device)]

    def _regularised(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss to descend."""
        return loss
