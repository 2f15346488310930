"""LAME: leave the model alone and correct its predictions by those for similar images of the batch.

Boudiaf et al., "Parameter-free Online Test-time Adaptation", CVPR 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec
import torch
from torch import nn

from cema._util.checks import require
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.optimizers import as_array
from cema.methods.base import NotApplicable, StepResult, method

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.methods.base import MethodContext
    from cema.models.spec import Model

__all__ = ["Lame", "LameConfig", "affinity_matrix", "laplacian_adjusted"]

Affinity = Literal["knn", "rbf", "linear"]

# The authors' constants: what keeps logarithms of probabilities finite, and which change of the bound is none.
_LEAST = 1e-10
_LEAST_ASSIGNED = 1e-20
_TOLERANCE = 1e-8


class LameConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `Lame`.

    Attributes
    ----------
    affinity : {"knn", "rbf", "linear"}
        How alike two images are; see `affinity_matrix`.
    neighbours : int
        k: how many neighbours an image has, or which neighbour's distance sets the width of the RBF.
    max_steps : int
        Steps after which an iteration that has not converged ends.
    """

    affinity: Affinity = "knn"
    neighbours: int = 5
    max_steps: int = 100

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name in ("neighbours", "max_steps"):
            require(getattr(self, name) >= 1, name, "a whole number of at least 1", getattr(self, name))


@method(
    "lame",
    config=LameConfig,
    cost=1.3,
    colour="#009e73",
    short={key: {"neighbours": 1} for key in ("cifar/batchnorm", "digits/batchnorm", "digits/layernorm")},
)
class Lame:
    r"""Laplacian adjusted maximum-likelihood estimation of a batch's classes.

    With p_i the source model's softmax for image i and w_ij how alike the features of i and j are, the assignments
    z_i, distributions over the classes, minimise

    .. math:: \sum_i KL(z_i \| p_i) - \sum_{i,j} w_{ij} z_i^T z_j

    by the concave-convex procedure, whose step has a closed form (equation 5 of the paper):

    .. math:: z_{ik} \propto p_{ik} \exp\Big(\sum_j w_{ij} z_{jk}\Big)

    Features are what goes into the model's last linear layer, scaled to length 1. The model runs in evaluation mode
    and never changes, so there is nothing to upload.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : LameConfig, optional
        None for the defaults.
    context : Context
        Device and precision.

    Raises
    ------
    NotApplicable
        When the logits do not come from a linear layer.
    """

    def __init__(self, edge: Model, config: LameConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or LameConfig()
        self.model = AdaptableModel(edge, device=context.device, dtype=context.dtype)
        self._features: torch.Tensor | None = None
        heads = [
            layer
            for layer in self.model.module.modules()
            if isinstance(layer, nn.Linear) and layer.out_features == self.model.classes
        ]
        for layer in heads:
            layer.register_forward_pre_hook(self._keep)
        if not heads:
            raise NotApplicable(
                f"LAME compares what goes into the linear layer that makes the logits, and {self.model.name} has no "
                f"linear layer with {self.model.classes} outputs: choose a model that ends in one"
            )

    def _keep(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        # The last call of a pass stays: a model may have several such layers, and the last makes the logits.
        self._features = inputs[0]

    @torch.no_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch; see `cema.methods.base.Adapter`."""
        logits = self.model.forward(images)
        features, self._features = self._features, None
        if features is None or features.shape[0] != len(logits):
            raise NotApplicable(
                f"LAME needs one vector of features for each image, and {self.model.name} calls no linear layer of "
                f"{self.model.classes} outputs with one: choose another model"
            )
        # Small, and the end of the iteration is a matter of eight digits: float64, where numpy is.
        wide = features.to("cpu", torch.float64).flatten(1)
        likeness = affinity_matrix(wide, self.config.affinity, self.config.neighbours)
        probabilities = logits.to("cpu", torch.float64).softmax(dim=1)
        assigned = laplacian_adjusted(probabilities, likeness, self.config.max_steps)
        adjusted = as_array(assigned.clamp_min(_LEAST_ASSIGNED).log())
        return StepResult(logits=adjusted, uploads=0, bytes_up=0, forwards=len(images), backwards=0)


def affinity_matrix(features: torch.Tensor, kind: Affinity, neighbours: int) -> torch.Tensor:
    """Return how alike images are, w_ij, from their features.

    Parameters
    ----------
    features : torch.Tensor
        Shape (N, D), of any length.
    kind : {"knn", "rbf", "linear"}
        1 where j is one of the k nearest neighbours of i, else 0; exp(-d^2 / (2 s^2)) of their distance d, with s the
        mean distance to the k-th nearest, the image itself counted as in the authors' program; or the cosine.
    neighbours : int
        k; in a smaller batch all others are neighbours.

    Returns
    -------
    torch.Tensor
        Shape (N, N), of the features' dtype.
    """
    directions = nn.functional.normalize(features, dim=1)
    if kind == "linear":
        return directions @ directions.T
    count = len(directions)
    distances = torch.cdist(directions, directions, compute_mode="donot_use_mm_for_euclid_dist")
    if kind == "rbf":
        width = distances.kthvalue(min(neighbours, count), dim=1).values.mean()
        # Images that are all alike are at distance 0 whatever the width.
        return torch.exp(-(distances**2) / (2 * width.clamp_min(1e-12) ** 2))
    # An image is no neighbour of itself, not even where another has the very same features.
    distances.fill_diagonal_(torch.inf)
    nearest = distances.topk(min(neighbours, count - 1), dim=1, largest=False).indices
    return torch.zeros_like(distances).scatter_(1, nearest, 1.0)


def laplacian_adjusted(probabilities: torch.Tensor, likeness: torch.Tensor, max_steps: int) -> torch.Tensor:
    """Iterate the closed-form step until the bound changes by no more than a part in 10^8.

    Parameters
    ----------
    probabilities : torch.Tensor
        The source model's softmax, shape (N, C), float64.
    likeness : torch.Tensor
        Shape (N, N), float64.
    max_steps : int
        Steps at most.

    Returns
    -------
    torch.Tensor
        The assignments z, shape (N, C); rows sum to 1.
    """
    unary = -(probabilities + _LEAST).log()
    assigned, before = (-unary).softmax(dim=1), torch.inf
    for step in range(max_steps):
        pairwise = likeness @ assigned
        assigned = (pairwise - unary).softmax(dim=1)
        entropy = assigned * assigned.clamp_min(_LEAST_ASSIGNED).log()
        bound = float((assigned * (unary - pairwise) + entropy).sum())
        if step > 1 and abs(bound - before) <= _TOLERANCE * abs(before):
            break
        before = bound
    return assigned
