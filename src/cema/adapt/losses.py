"""The entropy and distillation losses of CEMA, equations (4) to (6) of the paper.

Everything is computed in at least float32, whatever precision the models ran in, and stays finite for any
finite logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cema.adapt.config import LossWeights

__all__ = ["DistillationTerms", "distillation_loss", "entropy_loss", "sample_weights", "softmax_entropy"]

# exp(-1e4) is 0 in float64 already, so a class this improbable adds nothing, while 0 * -inf would add NaN.
_LOG_FLOOR = -1e4


def softmax_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Softmax entropy E(x) = -sum_c p_c log p_c.

    Parameters
    ----------
    logits : torch.Tensor
        Shape (N, C).

    Returns
    -------
    torch.Tensor
        Shape (N,), nats, float32 or wider, differentiable.
    """
    log_p = _log_softmax(logits)
    return -(log_p.exp() * log_p).sum(dim=-1)


def sample_weights(entropy: torch.Tensor, e_max: float) -> torch.Tensor:
    """Weight H(x) = exp(E_max^0 - E(x)): the surer a prediction, the more it counts.

    No gradient flows through it.

    Parameters
    ----------
    entropy : torch.Tensor
        Shape (N,), nats.
    e_max : float
        E_max^0 in nats.

    Returns
    -------
    torch.Tensor
        Shape (N,), detached.
    """
    return torch.exp(e_max - entropy.detach())


def entropy_loss(logits: torch.Tensor, e_max: float, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Loss of the foundation step, the mean over the batch of H(x) E(x; theta).

    Parameters
    ----------
    logits : torch.Tensor
        The foundation model's, shape (N, C).
    e_max : float
        E_max^0 in nats.
    labels : torch.Tensor, optional
        Shape (N,), int64: the true classes, below 0 where they are not known. Where they are, the loss of a sample is
        CE(x, label) in its place.

    Returns
    -------
    torch.Tensor
        A scalar.
    """
    entropy = softmax_entropy(logits)
    losses = sample_weights(entropy, e_max) * entropy
    if labels is not None:
        truth = -_log_softmax(logits).gather(-1, labels.clamp_min(0)[:, None]).squeeze(-1)
        losses = torch.where(labels >= 0, truth, losses)
    return losses.mean()


@dataclass(frozen=True)
class DistillationTerms:
    """The distillation loss and its three terms, each a batch mean already multiplied by H(x) and its weight.

    Attributes
    ----------
    total, kl, ce, entropy : torch.Tensor
        Scalars; ``total`` is the sum of the others and is what to differentiate.
    """

    total: torch.Tensor
    kl: torch.Tensor
    ce: torch.Tensor
    entropy: torch.Tensor


def distillation_loss(
    edge_logits: torch.Tensor,
    foundation_logits: torch.Tensor,
    weights: LossWeights,
    e_max: float,
    *,
    labelled: torch.Tensor | None = None,
) -> DistillationTerms:
    """Loss of the distillation step, H(x) [alpha KL(g||f) + beta CE(g, y) + ENT(g)], y = argmax f.

    Parameters
    ----------
    edge_logits : torch.Tensor
        Of g, shape (N, C); the only input that receives gradients.
    foundation_logits : torch.Tensor
        Of f, shape (N, C).
    weights : LossWeights
        The terms' weights, the direction of the divergence, and whose entropy makes H(x).
    e_max : float
        E_max^0 in nats.
    labelled : torch.Tensor, optional
        Shape (N,), bool: for which samples the foundation model's logits say what a person has said. Whatever a model's
        entropy is there, H(x) is at least 1, its value at E_max^0.

    Returns
    -------
    DistillationTerms
        Means over the batch.
    """
    log_g, log_f = _log_softmax(edge_logits), _log_softmax(foundation_logits.detach())
    entropy = -(log_g.exp() * log_g).sum(dim=-1)
    h = {
        "edge": sample_weights(entropy, e_max),
        "foundation": sample_weights(softmax_entropy(foundation_logits), e_max),
    }
    if labelled is not None:
        h = {name: torch.where(labelled, weight.clamp_min(1.0), weight) for name, weight in h.items()}
    if weights.divergence == "edge||foundation":
        divergence = (log_g.exp() * (log_g - log_f)).sum(dim=-1)
    else:
        divergence = (log_f.exp() * (log_f - log_g)).sum(dim=-1)
    labels = foundation_logits.argmax(dim=-1, keepdim=True)
    cross_entropy = -log_g.gather(-1, labels).squeeze(-1)
    kl = weights.kl * (h[weights.teaching_weight] * divergence).mean()
    ce = weights.ce * (h[weights.teaching_weight] * cross_entropy).mean()
    ent = weights.entropy * (h[weights.entropy_weight] * entropy).mean()
    return DistillationTerms(total=kl + ce + ent, kl=kl, ce=ce, entropy=ent)


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide, dim=-1).clamp_min(_LOG_FLOOR)
