"""A method of one's own: information maximisation, in one file.

Liang, Hu and Feng, "Do We Really Need to Access the Source Data?", ICML 2020: predictions shall be sure one by one, and
spread over the classes together. Beside Tent, on the embedded digits:

    cema bench --data digits --methods source,tent,examples/own_method.py:InfoMax --corruptions fog --samples 512
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from cema import Model
from cema.adapt.losses import softmax_entropy
from cema.adapt.optimizers import as_array
from cema.methods.base import MethodContext, StepResult, Uplink, method
from cema.methods.online import OnlineModel


class InfoMaxConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SGD's learning rate, and the weight of the second term."""

    lr: float = 0.005
    diversity: float = 1.0


@method("infomax", config=InfoMaxConfig, cost=3.0, colour="#2ca02c", short={"digits": {"lr": 0.002}})
class InfoMax:
    """Minimise E(x), averaged over a batch, minus the entropy of the mean prediction."""

    def __init__(self, edge: Model, config: InfoMaxConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or InfoMaxConfig()
        self.model = OnlineModel(edge, context, lr=self.config.lr, momentum=0.9)
        self.uplink = Uplink(context.codec)

    @torch.enable_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch, then learn from it."""
        logits = self.model.predict(images)
        mean = logits.softmax(1).mean(0)
        diversity = -(mean * mean.clamp_min(1e-8).log()).sum()
        self.model.descend(softmax_entropy(logits).mean() - self.config.diversity * diversity)
        count = len(images)
        uploaded = self.uplink.count(images)  # learning happens in the cloud: every image goes there
        return StepResult(as_array(logits), count, uploaded, forwards=count, backwards=count)
