"""The cross-entropy between two predictions: what CoTTA, RoTTA and ROID learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["cross_entropies"]


def cross_entropies(student: torch.Tensor, teacher: torch.Tensor, *, symmetric: bool = False) -> torch.Tensor:
    """Cross-entropy of one prediction with another as its soft label, image by image.

    -sum_c q_c log p_c,  and if symmetric  -1/2 sum_c (q_c log p_c + p_c log q_c),  with p = softmax(student) and
    q = softmax(teacher).

    Parameters
    ----------
    student, teacher : torch.Tensor
        Logits, shape (N, C). Both are differentiated, unless one was made without gradients.
    symmetric : bool
        Whether the label is learned from too: the mean of both directions.

    Returns
    -------
    torch.Tensor
        Shape (N,), nats.
    """
    log_s, log_t = student.log_softmax(dim=1), teacher.log_softmax(dim=1)
    losses = -(log_t.exp() * log_s).sum(dim=1)
    if symmetric:
        losses = 0.5 * losses - 0.5 * (log_s.exp() * log_t).sum(dim=1)
    return losses
