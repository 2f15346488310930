"""The second filter of ETA: a sample whose prediction is like the average one teaches nothing new.

Niu et al., "Efficient Test-Time Model Adaptation without Forgetting", ICML 2022, eqn. 5. The published program of CEMA
selects with it too.
"""

from __future__ import annotations

import torch

__all__ = ["RedundancyFilter"]


class RedundancyFilter:
    """Pass the samples whose prediction is unlike the moving average of those that passed.

    ``|cos(p(x), m)| < epsilon``, ``m <- a m + (1 - a) mean of p(x) over those that passed``. The first samples have no
    average to be like: all pass and start it.

    Parameters
    ----------
    margin : float
        The cosine similarity epsilon, in [0, 1]; at 1 only exact copies of the average are redundant.
    average : float
        How much of the average stays at each update, in [0, 1).
    """

    def __init__(self, margin: float, average: float = 0.9) -> None:
        self.margin = margin
        self._keep = average
        self._average: torch.Tensor | None = None

    @torch.no_grad()
    def passes(self, logits: torch.Tensor) -> torch.Tensor:
        """Decide about one call's samples, and move the average to those that pass.

        Parameters
        ----------
        logits : torch.Tensor
            Shape (N, C); N may be 0.

        Returns
        -------
        torch.Tensor
            Shape (N,), bool.
        """
        p = torch.softmax(logits, dim=1)
        unlike = torch.ones(len(p), dtype=torch.bool, device=p.device)
        if self._average is not None:
            unlike = torch.cosine_similarity(self._average[None], p, dim=1).abs() < self.margin
        if unlike.any():
            mean = p[unlike].mean(0)
            self._average = mean if self._average is None else torch.lerp(mean, self._average, self._keep)
        return unlike
