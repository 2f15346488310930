"""PL: learning from one's own labels.

Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML
workshop 2013, applied at test time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from cema._util.checks import require_fraction, require_rate
from cema.adapt.optimizers import OptimizerName, as_array, require_optimizer
from cema.methods.base import StepResult, Uplink, method
from cema.methods.online import OnlineModel
from cema.methods.tent import PAPERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["PL", "PLConfig"]


class PLConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `PL`; optimiser as for Tent.

    Attributes
    ----------
    lr : float
        The learning rate.
    momentum : float
        SGD's momentum, or Adam's first beta, in [0, 1).
    threshold : float
        Learn only from predictions whose largest probability is at least this, in [0, 1].
    optimizer : {"sgd", "adam"}
        Which of the two.
    """

    lr: float = 0.00025
    momentum: float = 0.9
    threshold: float = 0.0
    optimizer: OptimizerName = "sgd"

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require_rate("lr", self.lr)
        require_fraction("momentum", self.momentum, below_one=True)
        require_optimizer(self.optimizer)
        require_fraction("threshold", self.threshold)


@method(
    "pl",
    config=PLConfig,
    colour="#c9b600",
    papers=PAPERS,
    short={
        "cifar/batchnorm": {"optimizer": "sgd", "lr": 0.01},
        "digits/batchnorm": {"optimizer": "sgd", "lr": 2.5e-4},
        "digits/layernorm": {"optimizer": "sgd", "lr": 2.5e-4},
    },
)
class PL:
    """Predict with batch statistics, then minimise cross-entropy against the predicted labels.

    L = mean over max_c p_c(x_i) >= threshold of -log p_{y_i}(x_i; w),  y_i = argmax_c p_c(x_i).

    Everything is uploaded, also with a threshold: where the decision falls is the cloud.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : PLConfig, optional
        None for the defaults.
    context : Context
        Device, precision and codec.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.
    """

    def __init__(self, edge: Model, config: PLConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or PLConfig()
        c = self.config
        self.model = OnlineModel(edge, context, lr=c.lr, momentum=c.momentum, optimizer=c.optimizer)
        self.uplink = Uplink(context.codec)

    @torch.enable_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch and learn from what is confident; without finite gradients nothing is learned."""
        logits = self.model.predict(images)
        log_confidence, labels = torch.log_softmax(logits, dim=1).max(dim=1)
        sure = log_confidence.detach().exp() >= self.config.threshold
        chosen = int(sure.sum())
        if chosen:
            self.model.descend(torch.nn.functional.cross_entropy(logits[sure], labels[sure]))
        return StepResult(
            logits=as_array(logits),
            uploads=len(images),
            bytes_up=self.uplink.count(images),
            forwards=len(images),
            backwards=chosen,
        )
