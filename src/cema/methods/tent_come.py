"""Tent with COME: minimise the entropy of an opinion, which may be uncertain, in place of the softmax entropy.

Zhang et al., "COME: Test-time Adaption by Conservatively Minimizing Entropy", ICLR 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cema.adapt.opinion import opinion_entropy
from cema.methods.base import method
from cema.methods.tent import PAPERS, SHORT, Tent, TentConfig

if TYPE_CHECKING:
    import torch

__all__ = ["TentCOME"]


# The authors' program has ImageNet only, and Tent's settings: SGD, 2.5e-4, for ViT 1e-3. Other data take Tent's too.
# On short streams Tent's rates turned out to be the best for it as well.
@method("tent-come", config=TentConfig, colour="#c49c94", papers=PAPERS, short=SHORT)
class TentCOME(Tent):
    """Tent with the entropy of the opinion: L = (1 / N) sum_i H(x_i; w), H as in `opinion_entropy`.

    Parameters
    ----------
    edge, config, context
        As those of `Tent`.

    Raises
    ------
    ModelError
        When the model has no adaptable normalisation layer.
    """

    def _entropy(self, logits: torch.Tensor) -> torch.Tensor:
        return opinion_entropy(logits)
