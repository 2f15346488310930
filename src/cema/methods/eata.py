"""EATA: ETA held near the source model where the source model's predictions depend on it most.

Niu et al., "Efficient Test-Time Model Adaptation without Forgetting", ICML 2022.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from cema._util.checks import require, require_rate
from cema.methods.base import NotApplicable, method
from cema.methods.eta import ETA, SHORT, ETAConfig
from cema.methods.eta import PAPERS as ETA_PAPERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cema.methods.base import MethodContext
    from cema.methods.online import OnlineModel
    from cema.models.spec import Model

__all__ = ["EATA", "EATAConfig", "fisher_information"]


class EATAConfig(ETAConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `EATA`: those of ETA and of the regulariser; the defaults are those for ImageNet-C.

    Attributes
    ----------
    fisher_alpha : float
        Weight of the regulariser (the authors take 2000 for ImageNet-C and 1 for CIFAR-10-C); at 0 EATA is ETA.
    fisher_size : int
        Source images that the Fisher information is taken on, at most.
    fisher_batch : int
        Of how many of them a gradient is taken and squared at a time.
    """

    fisher_alpha: float = 2000.0
    fisher_size: int = 2000
    fisher_batch: int = 64

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        ETAConfig.__post_init__(self)
        require_rate("fisher_alpha", self.fisher_alpha)
        for name in ("fisher_size", "fisher_batch"):
            value = getattr(self, name)
            require(value >= 1, name, "a whole number of at least 1", value)


# As ETA, and the weight of the Fisher penalty: 2000 (ImageNet), 1 (CIFAR-10).
PAPERS = {
    **ETA_PAPERS,
    **{name: {**ETA_PAPERS[name], "fisher_alpha": 1.0} for name in ("cifar", "cifar100", "digits")},
}


@method("eata", config=EATAConfig, colour="#17becf", papers=PAPERS, short=SHORT)
class EATA(ETA):
    """ETA with a penalty on leaving the source parameters w_0, weighed by Fisher information.

    L = L_ETA + fisher_alpha sum_j F_j (w_j - w_0j)^2,  F as :func:`fisher_information` returns it.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : EATAConfig, optional
        None for the defaults.
    context : Context
        Device, precision, codec, seed, and the source images; what is worked out from these is kept in its memo.

    Raises
    ------
    NotApplicable
        When there are no source images.
    ModelError
        When the model has no adaptable normalisation layer.

    Notes
    -----
    The passes over source images happen before the stream begins and are in no `StepResult`.
    """

    def __init__(self, edge: Model, config: EATAConfig | None = None, *, context: MethodContext) -> None:
        config = config or EATAConfig()
        super().__init__(edge, config, context=context)
        if not len(context.source_images):
            raise NotApplicable(
                "EATA takes Fisher information on clean source images and this data set offers none: choose eta, "
                "which is EATA without that, or a data set with clean images"
            )
        self._alpha = config.fisher_alpha
        self._source = {name: p.detach().clone() for name, p in self.model.parameters.items()}
        self.fisher = _remembered(self.model, config, context)

    def _regularised(self, loss: torch.Tensor) -> torch.Tensor:
        for name, parameter in self.model.parameters.items():
            loss = loss + self._alpha * (self.fisher[name] * (parameter - self._source[name]) ** 2).sum()
        return loss


@torch.enable_grad()
def fisher_information(
    model: OnlineModel, images: Sequence[np.ndarray], batch: int, order: Sequence[int] | None = None
) -> dict[str, torch.Tensor]:
    """Return the diagonal Fisher information of a model's norm affine parameters, with its own labels.

    F_j = (1 / B) sum_b (d/dw_j CE(f(X_b; w), argmax f(X_b; w)))^2 over B batches X_b: the square of a batch's mean
    gradient, as in the authors' program, not the mean of squares.

    Parameters
    ----------
    model : OnlineModel
        The source model; its gradients are cleared.
    images : sequence of ndarray of uint8 (H, W, C)
        Source images.
    batch : int
        Images in a batch; the last may be smaller. A batch whose gradient is not finite is left out.
    order : sequence of int, optional
        Which images to take, in which order; None for all as they come.

    Returns
    -------
    dict of str to torch.Tensor
        By parameter name, in its shape.
    """
    fisher = {name: torch.zeros_like(p) for name, p in model.parameters.items()}
    batches = 0
    chosen = range(len(images)) if order is None else order
    for start in range(0, len(chosen), batch):
        # A batch at a time: a data set may be larger than memory.
        logits = model.predict([images[i] for i in chosen[start : start + batch]])
        loss = torch.nn.functional.cross_entropy(logits, logits.argmax(1))
        gradients = torch.autograd.grad(
            loss, list(model.parameters.values()), allow_unused=True, materialize_grads=True
        )
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            batches += 1
            for name, gradient in zip(fisher, gradients, strict=True):
                fisher[name] += gradient**2
    return {name: total / max(1, batches) for name, total in fisher.items()}


def _remembered(model: OnlineModel, config: EATAConfig, context: MethodContext) -> dict[str, torch.Tensor]:
    """Return the Fisher information of a random choice of source images, from the context's memo if it is there."""
    images = context.source_images
    settings = (config.fisher_size, config.fisher_batch, context.seed, str(model.device), str(model.dtype))
    key = ("fisher", model.source_digest, id(images), *settings)
    if key not in context.memo:
        # Data sets are often ordered by class, which batch statistics would not survive.
        order = np.random.default_rng(context.seed).permutation(len(images))[: config.fisher_size]
        fisher = fisher_information(model, images, config.fisher_batch, order.tolist())
        # With the images, so that no other object can have their id.
        context.memo[key] = (images, fisher)
    return cast("tuple[object, dict[str, torch.Tensor]]", context.memo[key])[1]
