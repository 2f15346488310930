"""Tent: entropy minimisation.

Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", ICLR 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from cema._util.checks import require_fraction, require_rate
from cema.adapt.losses import softmax_entropy
from cema.adapt.optimizers import OptimizerName, as_array, require_optimizer
from cema.methods.base import Rates, StepResult, Uplink, method
from cema.methods.online import OnlineModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext, Rates, StepResult, Uplink, method
    from cema.models.spec import Model

__all__ = ["Tent", "TentConfig"]


class TentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `Tent`; the defaults are those for ImageNet-C.

    For CIFAR-10-C the authors' program uses Adam at 1e-3.

    Attributes
    ----------
    lr : float
        The learning rate.
    momentum : float
        SGD's momentum, or Adam's first beta, in [0, 1).
    optimizer : {"sgd", "adam"}
        Which of the two.
    """

    lr: float = 0.00025
    momentum: float = 0.9
    optimizer: OptimizerName = "sgd"

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_rate("lr", self.lr)
        require_fraction("momentum", self.momentum, below_one=True)
        require_optimizer(self.optimizer)


# Wang et al., ICLR 2021: SGD, 2.5e-4 (ImageNet); Adam, 1e-3 (CIFAR). For ViT 1e-3, as Niu et al., ICLR 2023. No paper
# has digits: they take CIFAR-10's values.
PAPERS: Rates = {
    "imagenet/layernorm": {"lr": 1e-3},
    **{
        key: {"optimizer": "adam", "lr": 0.001}
        for key in (
            "cifar/batchnorm",
            "cifar/groupnorm",
            "cifar100/batchnorm",
            "cifar100/groupnorm",
            "digits/batchnorm",
            "digits/groupnorm",
        )
    },
    **{key: {"lr": 0.001} for key in ("cifar/layernorm", "cifar100/layernorm", "digits/layernorm")},
}
SHORT: Rates = {
    "cifar/batchnorm": {"optimizer": "sgd", "lr": 0.025},
    "digits/batchnorm": {"optimizer": "sgd", "lr": 2.5e-4},
    "digits/layernorm": {"optimizer": "sgd", "lr": 2.5e-4},
}


@method("tent", config=TentConfig, colour="#8c564b", papers=PAPERS, short=SHORT)
class Tent:
    """Predict with batch statistics, then minimise the mean entropy of these predictions.

    L = (1 / N) sum_i E(x_i; w),  w the affine parameters of the normalisation layers.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : TentConfig, optional
        None for the defaults.
    context : Context
        Device, precision and codec.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.
    """

    def __init__(self, edge: Model, config: TentConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or TentConfig()
        c = self.config
        self.model = OnlineModel(edge, context, lr=c.lr, momentum=c.momentum, optimizer=c.optimizer)
        self.uplink = Uplink(context.codec)

    @torch.enable_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch and learn from all of it; without finite gradients nothing is learned."""
        logits = self.model.predict(images)
        self.model.descend(self._entropy(logits).mean())
        count = len(images)
        return StepResult(
            logits=as_array(logits),
            uploads=count,
            bytes_up=self.uplink.count(images),
            forwards=count,
            backwards=count,
        )

    def _entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what is minimised, (N,) in nats, of logits (N, C)."""
        return softmax_entropy(logits)
