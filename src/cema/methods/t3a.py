"""T3A: replace the last linear layer by the mean features of the surest images of each class.

Iwasawa and Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization", NeurIPS 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch.nn import functional

from cema._util.checks import require
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.losses import softmax_entropy
from cema.adapt.optimizers import as_array
from cema.methods.base import Rates, StepResult, method
from cema.methods.head import find_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["T3A", "T3AConfig", "surest"]

_ALL = -1


class T3AConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `T3A`.

    Attributes
    ----------
    filter_k : int
        M: how many supports a class keeps, those of the lowest entropy; -1 for all. The authors choose from 1, 5, 20,
        50, 100 and -1 on data of the source.
    """

    filter_k: int = 20

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require(
            self.filter_k >= 1 or self.filter_k == _ALL,
            "filter_k",
            "a whole number of at least 1, or -1 for all",
            self.filter_k,
        )


# The paper has none of these data. Later comparisons on ImageNet-C take 20 (Niu et al., "Test-Time Model Adaptation
# with Only Forward Passes", ICML 2024; Yu et al., "Benchmarking Test-Time Adaptation against Distribution Shifts in
# Image Classification", 2023). The latter's program has 100 for CIFAR-10-C and 20 for CIFAR-100-C. Digits, which none
# of them has, take CIFAR-10's.
PAPERS: Rates = {key: {"filter_k": 100} for key in ("cifar", "digits")}


@method("t3a", config=T3AConfig, cost=1.2, colour="#98df8a", papers=PAPERS)
class T3A:
    r"""Classify by pseudo-prototypes, the mean directions of the supports of each class.

    A support is a vector of features with its predicted class and the entropy of that prediction. The first ones are
    the rows of the head's weight, taken for features. Every image of a batch, with features h and the source model's
    logits W h + b, becomes a support of the class that these predict, and each class keeps the M of the lowest
    entropy. Then the batch is predicted, with s the supports S_k of class k:

    .. math:: z_k = h \cdot \frac{c_k}{\|c_k\|}, \qquad c_k = \sum_{s \in S_k} \frac{s}{\|s\|}

    Features are what goes into the model's last linear layer. The model runs in evaluation mode and never changes, so
    there is nothing to upload. A device keeps at most M vectors for each class.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : T3AConfig, optional
        None for the defaults.
    context : Context
        Device and precision.

    Attributes
    ----------
    supports : torch.Tensor
        Directions s / |s|, float32, (S, D).
    labels : torch.Tensor
        Their classes, int64, (S,).
    entropies : torch.Tensor
        Nats, float32, (S,).

    Raises
    ------
    NotApplicable
        When the logits are not the output of a linear layer.

    Notes
    -----
    As in the authors' program: the head's own rows are dropped like all others once M images of their class are surer;
    a class without supports has the logit 0; the bias b enters the entropies and the predicted classes of supports,
    and not the logits, whose scale is that of the features, so that their softmax is no calibrated probability.

    With M = -1 all supports are kept, as the paper says; the authors' program then drops the least sure one of each
    class at every batch. Features that are not finite never become supports; the program has no such rule.
    """

    def __init__(self, edge: Model, config: T3AConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or T3AConfig()
        self.model = AdaptableModel(edge, device=context.device, dtype=context.dtype)
        self.head = find_head(self.model, "T3A")
        weight = self.head.weight
        self.supports = weight[:0]
        self.labels = torch.zeros(0, dtype=torch.int64, device=weight.device)
        self.entropies = weight.new_zeros(0)
        self._add(weight, functional.linear(weight, weight, self.head.bias))
        self._features = weight[:0]
        self.head.layer.register_forward_pre_hook(self._keep)

    def _keep(self, _: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = self.head.features(inputs[0])

    @torch.no_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch; see `cema.methods.base.Adapter`."""
        logits = self.model.forward(images)
        features, self._features = self._features, self._features[:0]
        self._add(features, logits)
        adjusted = as_array(functional.linear(features, self._prototypes()))
        return StepResult(logits=adjusted, uploads=0, bytes_up=0, forwards=len(images), backwards=0)

    def _add(self, features: torch.Tensor, logits: torch.Tensor) -> None:
        """Make features (N, D) with logits (N, C) supports, and let each class keep the surest."""
        finite = torch.isfinite(features).all(dim=1)
        directions = functional.normalize(features[finite], dim=1)
        logits = logits[finite]
        self.supports = torch.cat([self.supports, directions])
        self.labels = torch.cat([self.labels, logits.argmax(dim=1)])
        self.entropies = torch.cat([self.entropies, softmax_entropy(logits)])
        if self.config.filter_k != _ALL:
            kept = surest(self.labels, self.entropies, self.config.filter_k)
            self.supports, self.labels = self.supports[kept], self.labels[kept]
            self.entropies = self.entropies[kept]

    def _prototypes(self) -> torch.Tensor:
        """Return the direction of each class, (C, D)."""
        sums = torch.zeros_like(self.head.weight).index_add_(0, self.labels, self.supports)
        return functional.normalize(sums, dim=1)


def surest(labels: torch.Tensor, entropies: torch.Tensor, count: int) -> torch.Tensor:
    """Return which supports are among those of the lowest entropy in their class.

    Parameters
    ----------
    labels : torch.Tensor
        Classes, int64, (S,).
    entropies : torch.Tensor
        Shape (S,).
    count : int
        How many of each class, at least 1; of equal ones the first.

    Returns
    -------
    torch.Tensor
        Indices, int64, by class and then by entropy.
    """
    order = torch.argsort(entropies, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    classes = labels[order]
    # A support's rank in its class: its place, less the place where its class begins.
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(classes, classes)
    return order[rank < count]
