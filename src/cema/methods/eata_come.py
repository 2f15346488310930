"""EATA with COME: the entropy of an opinion, which may be uncertain, takes the place of the softmax entropy.

Zhang et al., "COME: Test-time Adaption by Conservatively Minimizing Entropy", ICLR 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cema.adapt.opinion import opinion_entropy
from cema.methods.base import method
from cema.methods.eata import EATA, PAPERS, EATAConfig

if TYPE_CHECKING:
    import torch

__all__ = ["EATACOME"]


# The authors' program has ImageNet only, and EATA's settings: SGD, 2.5e-4, for ViT 1e-3, E_0 of 0.4 ln C, the penalty's
# weight 2000. Other data take EATA's too. On short streams of digits with BatchNorm nothing was better.
@method(
    "eata-come",
    config=EATAConfig,
    colour="#9edae5",
    papers=PAPERS,
    short={"cifar/batchnorm": {"lr": 0.01}, "digits/layernorm": {"lr": 0.005}},
)
class EATACOME(EATA):
    """EATA with the entropy of the opinion H, as in `opinion_entropy`, wherever EATA has the softmax entropy.

    So it is H that is compared with E_0, that weighs, exp(E_0 - H), and that is minimised. The redundancy filter goes
    on to compare softmax predictions, and the Fisher information stays EATA's, both as in the authors' program.

    Parameters
    ----------
    edge, config, context
        As those of `EATA`.

    Raises
    ------
    NotApplicable
        When there are no source images.
    ModelError
        When the model has no adaptable normalisation layer.

    Notes
    -----
    Small logits, as of a strongly regularised network, mean a large u and so a large H: at the same E_0 fewer samples
    then pass than with EATA.
    """

    def _entropy(self, logits: torch.Tensor) -> torch.Tensor:
        return opinion_entropy(logits)
