"""The two steps of CEMA: entropy minimisation of the foundation model, and its distillation into the edge model.

Chen et al. (2024), section "Cloud": H(x) E(x; theta), and H(x) [alpha KL + beta CE + ENT].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cema.adapt.labels import UNLABELLED, corrected
from cema.adapt.losses import distillation_loss, entropy_loss

if TYPE_CHECKING:
    from cema.adapt.config import AdaptConfig
    from cema.adapt.labels import Labelled
    from cema.adapt.trainable import TrainableModel
    from cema.ondevice.batch import Batch

__all__ = ["Descent", "DistillationStep", "FoundationStep"]


class Descent(NamedTuple):
    """What one descent did.

    Attributes
    ----------
    losses : dict of str to float
        Before it, by name.
    skipped : int
        How many updates of parameters (0 or 1) were not made.
    """

    losses: dict[str, float]
    skipped: int


class FoundationStep:
    """Entropy minimisation of the foundation model on new uploads.

    Parameters
    ----------
    foundation : TrainableModel
        What is adapted.
    config : AdaptConfig
        Learning rate and E_max^0.
    """

    def __init__(self, foundation: TrainableModel, config: AdaptConfig) -> None:
        self.foundation = foundation
        self.e_max = config.e_max * math.log(foundation.classes)
        self.enabled = config.foundation_lr > 0

    def __call__(
        self,
        images: Batch,
        share: float = 1.0,
        *,
        reset: bool = False,
        labels: torch.Tensor | None = None,
        again: Labelled[Any] | None = None,
    ) -> tuple[Descent, torch.Tensor]:
        """Make one step; the running statistics follow the images first.

        Parameters
        ----------
        images : Batch
            New uploads.
        share : float
            How much of a full batch of new uploads this is, in (0, 1]; the learning rate shrinks by it.
        reset : bool
            Whether the window of statistics is cleared first.
        labels : torch.Tensor, optional
            The true classes of the new uploads, where some are known, see `cema.adapt.labels`: they are learned there.
        again : Labelled, optional
            Earlier uploads with true classes, which are learned too.

        Returns
        -------
        Descent
            With ``foundation_loss``; without losses when the learning rate is 0.
        torch.Tensor
            Logits (N, classes), float32, from before the descent: what the edge model is taught.
        """
        if not self.enabled:
            return Descent({}, 0), self.foundation.follow(images, reset=reset)
        losses = []
        parts, truth = [images], labels
        if again is not None and again.items:
            parts = [images, again.images]
            own = torch.full((len(images),), UNLABELLED) if labels is None else labels
            truth = torch.cat([own, again.labels])
        count = sum(map(len, parts))

        def loss(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            known = None if truth is None else truth[rows].to(logits.device)
            part = entropy_loss(logits, self.e_max, known) * _part(rows, count)
            losses.append(float(part.detach()))
            return share * part

        logits, moved = self.foundation.learn(parts, loss, follow=len(images) > 0, reset=reset)
        return Descent({"foundation_loss": sum(losses)}, int(not moved)), logits[: len(images)]


class DistillationStep:
    """Distillation of the foundation model into the edge model.

    Parameters
    ----------
    edge : TrainableModel
        The pupil.
    config : AdaptConfig
        Learning rate, loss weights and E_max^0.
    """

    def __init__(self, edge: TrainableModel, config: AdaptConfig) -> None:
        self.edge = edge
        self.weights = config.loss_weights
        self.e_max = config.e_max * math.log(edge.classes)
        self.enabled = config.edge_lr > 0

    def __call__(
        self,
        fresh: Batch,
        replayed: Batch,
        targets: torch.Tensor,
        share: float = 1.0,
        *,
        reset: bool = False,
        follow: bool = True,
        labels: torch.Tensor | None = None,
    ) -> Descent:
        """Make one step; the running statistics follow the new uploads first.

        Parameters
        ----------
        fresh, replayed : Batch
            New uploads, and what is replayed beside them; either may be empty.
        targets : torch.Tensor
            The foundation model's logits on the new uploads and then on the replayed ones, shape (N, classes).
        share : float
            How much of a full batch of new uploads is among them, in (0, 1]; the learning rate shrinks by it.
        reset : bool
            Whether the window of statistics is cleared first.
        follow : bool
            False where they have followed these uploads already.
        labels : torch.Tensor, optional
            The true classes of all of them, where some are known, see `cema.adapt.labels`: they count in the place of
            what the foundation model chose.

        Returns
        -------
        Descent
            With ``distillation_loss`` and its weighted terms ``kl``, ``ce``, ``entropy``; without losses when the
            learning rate is 0.
        """
        if not self.enabled:
            if fresh and follow:
                self.edge.follow(fresh, reset=reset)
            return Descent({}, 0)
        losses = dict.fromkeys(("distillation_loss", "kl", "ce", "entropy"), 0.0)
        known = None
        if labels is not None:
            targets = corrected(targets, labels)
            known = labels.to(targets.device) != UNLABELLED

        def loss(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            sure = None if known is None else known[rows]
            terms = distillation_loss(logits, targets[rows], self.weights, self.e_max, labelled=sure)
            part = _part(rows, len(targets))
            for name, term in zip(losses, (terms.total, terms.kl, terms.ce, terms.entropy), strict=True):
                losses[name] += part * float(term.detach())
            return share * part * terms.total

        lesson = self.edge.learn([fresh, replayed], loss, follow=follow and len(fresh) > 0, reset=reset)
        return Descent(losses, int(not lesson.moved))


def _part(rows: slice, count: int) -> float:
    """Return which part of `count` samples a slice is."""
    return float(rows.stop - rows.start) / count
