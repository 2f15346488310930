"""The two steps of CEMA: entropy minimisation of the foundation model, and its distillation into the edge model.

Chen et al. (2024), section "Cloud": H(x) E(x; theta), and H(x) [alpha KL + beta CE + ENT].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from cema.adapt.losses import distillation_loss, entropy_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from cema.adapt.config import AdaptConfig
    from cema.adapt.trainable import TrainableModel

__all__ = ["Descent", "DistillationStep", "FoundationStep"]


class Descent(NamedTuple):
    """What one descent did: the losses before it by name, and how many updates (0 or 1) were not made."""

    losses: dict[str, float]
    skipped: int


class FoundationStep:
    """Entropy minimisation of the foundation model on new uploads.

    Parameters
    ----------
    foundation : AdaptedModel
        What is adapted.
    config : AdaptConfig
        Learning rate and E_max^0.
    """

    def __init__(self, foundation: TrainableModel, config: AdaptConfig) -> None:
        self.foundation = foundation
        self.e_max = config.e_max * math.log(foundation.classes)
        self.enabled = config.foundation_lr > 0

    def __call__(self, images: Sequence[np.ndarray], share: float = 1.0) -> Descent:
        """Make one step.

        Parameters
        ----------
        images : sequence of ndarray
            uint8, height x width x channels.
        share : float
            How much of a full batch of new uploads this is, in (0, 1]; the learning rate shrinks by it.

        Returns
        -------
        Descent
            With ``foundation_loss``; without losses when the learning rate is 0.
        """
        if not self.enabled:
            return Descent({}, 0)
        with self.foundation.training():
            loss = entropy_loss(self.foundation.forward(images), self.e_max)
            moved = self.foundation.step(share * loss)
            return Descent({"foundation_loss": float(loss.detach())}, int(not moved))


class DistillationStep:
    """Distillation of the foundation model into the edge model.

    Parameters
    ----------
    edge, foundation : AdaptedModel
        The pupil and the teacher.
    config : AdaptConfig
        Learning rate, loss weights and E_max^0.
    """

    def __init__(self, edge: TrainableModel, foundation: TrainableModel, config: AdaptConfig) -> None:
        self.edge = edge
        self.foundation = foundation
        self.weights = config.loss_weights
        self.e_max = config.e_max * math.log(edge.classes)
        self.enabled = config.edge_lr > 0

    def __call__(self, images: Sequence[np.ndarray], share: float = 1.0) -> Descent:
        """Make one step.

        Parameters
        ----------
        images : sequence of ndarray
            New and replayed ones, uint8, height x width x channels.
        share : float
            How much of a full batch of new uploads is among them, in (0, 1]; the learning rate shrinks by it.

        Returns
        -------
        Descent
            With ``distillation_loss`` and its weighted terms ``kl``, ``ce``, ``entropy``; without losses when the
            learning rate is 0.
        """
        if not self.enabled:
            return Descent({}, 0)
        teacher = self.foundation.logits(images)
        with self.edge.training():
            terms = distillation_loss(self.edge.forward(images), teacher, self.weights, self.e_max)
            losses = {
                "distillation_loss": float(terms.total.detach()),
                "kl": float(terms.kl.detach()),
                "ce": float(terms.ce.detach()),
                "entropy": float(terms.entropy.detach()),
            }
            return Descent(losses, int(not self.edge.step(share * terms.total)))
