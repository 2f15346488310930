"""The entropy of an opinion, which COME minimises in place of the softmax entropy.

Zhang et al., "COME: Test-time Adaption by Conservatively Minimizing Entropy", ICLR 2025.
"""

from __future__ import annotations

import math

import torch

from cema.adapt.losses import softmax_entropy

__all__ = ["opinion_entropy"]


def opinion_entropy(logits: torch.Tensor) -> torch.Tensor:
    r"""Entropy of the opinion, in the sense of subjective logic, that a classifier's logits z express.

    The evidence for class c is exp(z_c). An opinion has a belief b_c in every class, and an uncertainty u, which is
    belief in none of them:

    .. math:: b_c = \frac{e^{z_c}}{S}, \quad u = \frac{C}{S}, \quad S = \sum_c e^{z_c} + C, \quad
        H = -\sum_c b_c \log b_c - u \log u

    The gradient is that of H(z n / \|z\|) with n = \|z\| held constant: it does not change the length of z. Longer
    logits would have a smaller u, so this is what keeps the uncertainty near the source model's.

    Parameters
    ----------
    logits : torch.Tensor
        Shape (N, C).

    Returns
    -------
    torch.Tensor
        Shape (N,), nats, at most log(C + 1), float32 or wider, differentiable; finite for any finite logits.

    Notes
    -----
    The authors' program adds 1e-7 to each b_c and to u before it takes logarithms; here nothing needs that. And C is
    the number of classes, where their program has 1000, which is that of ImageNet.

    Examples
    --------
    Logits of 0 are evidence of 1 for each of two classes: beliefs of 1/4, and an uncertainty of 1/2.

    >>> round(opinion_entropy(torch.zeros(1, 2)).item(), 4)
    1.0397
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    held = _with_length_held(wide)
    # (b, u) is the softmax of (z, log C), so that no exponential is written out and none can overflow.
    unknown = held.new_full((*held.shape[:-1], 1), math.log(held.shape[-1]))
    return softmax_entropy(torch.cat([held, unknown], dim=-1))


def _with_length_held(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (N, C) as they are, whose gradient has no part along them."""
    # Divided by the largest, so that no square overflows; the length is then at least 1, or 0 for logits of zero.
    largest = logits.detach().abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
    length = torch.linalg.vector_norm(logits / largest, dim=-1, keepdim=True)
    constant = length.detach()
    # The factor is 1. Its gradient is that of constant / length, and its value has no rounding.
    factor: torch.Tensor = 1.0 + (constant - length) / constant.clamp_min(1.0)
    return logits * factor
