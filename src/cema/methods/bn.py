"""BN adaptation: normalise every batch with its own statistics.

Nado et al., "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift", 2020;
Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import torch

from cema._util.checks import require
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.norm import normalising
from cema.adapt.optimizers import as_array
from cema.methods.base import NotApplicable, StepResult, method

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np

    from cema.adapt.norm import AdaptiveBatchNorm
    from cema.methods.base import MethodContext, Rates
    from cema.models.spec import Model

__all__ = ["BN", "SHORT_PRIORS", "BNConfig", "own_statistics", "require_batch_norm"]

# On short streams, for every row that mixes the source's statistics in so.
SHORT_PRIORS: Rates = {"cifar/batchnorm": {"prior": 64.0}, "imagenet/batchnorm": {"prior": 150.0}}


class BNConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of `BN`.

    Attributes
    ----------
    prior : float
        How many images the source statistics count for beside the n of the batch (N of Schneider et al., who
        recommend 16 or 256 for small batches); 0 for the batch's statistics alone.
    """

    prior: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        require(
            math.isfinite(self.prior) and self.prior >= 0,
            "prior",
            "a finite number of at least 0",
            self.prior,
        )


def prior_defaults() -> BNConfig:
    """Return the settings of Schneider et al.: source statistics that count for 16 images, for small batches."""
    return BNConfig(prior=16.0)


@method("bn", config=BNConfig, cost=1.2, colour="#e69f00")
@method(
    "bn-prior",
    config=BNConfig,
    defaults=prior_defaults,
    cost=1.2,
    colour="#f5cf7a",
    short=SHORT_PRIORS,
)
class BN:
    """Predict every batch with BatchNorm statistics of its own; nothing is kept from one batch to the next.

    With a prior of N images, mean and variance of every layer are N / (N + n) times the source model's plus
    n / (N + n) times those of the batch of n images; the batch's variance is the unbiased one, as in the authors'
    program.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    config : BNConfig, optional
        None for the defaults.
    context : Context
        Device and precision.

    Raises
    ------
    NotApplicable
        When the model has no BatchNorm with running statistics.

    Notes
    -----
    A layer that sees a single value per channel (one image, after global pooling) uses the source statistics.
    """

    def __init__(self, edge: Model, config: BNConfig | None = None, *, context: MethodContext) -> None:
        self.config = config or BNConfig()
        self.model = AdaptableModel(edge, device=context.device, dtype=context.dtype)
        require_batch_norm(self.model, "BN adaptation")

    @torch.no_grad()
    def step(self, images: Sequence[np.ndarray], *, edge: int = 0) -> StepResult:
        """Predict a batch."""
        with own_statistics(self.model.layers.values(), self.config.prior, len(images)):
            logits = self.model.forward(images)
        return StepResult(logits=as_array(logits), uploads=0, bytes_up=0, forwards=len(images), backwards=0)


def require_batch_norm(model: AdaptableModel, method: str) -> None:
    """Raise NotApplicable unless a model has BatchNorm layers whose statistics can be replaced."""
    if not model.layers:
        raise NotApplicable(
            f"{method} changes the statistics of BatchNorm layers and {model.name} has none (LayerNorm and GroupNorm "
            "keep no statistics): choose a method that learns affine parameters, such as tent or cema"
        )


@contextmanager
def own_statistics(layers: Iterable[AdaptiveBatchNorm], prior: float, count: int) -> Iterator[None]:
    """Let every pass inside a ``with`` block have BatchNorm statistics of its own, mixed with the source's.

    Parameters
    ----------
    layers : iterable of AdaptiveBatchNorm
        All of a model's, in the mode "running"; there may be none.
    prior : float
        N: how many images the source's statistics count for; 0 for those of the pass alone.
    count : int
        n: how many images a pass has.

    Yields
    ------
    None
    """
    with _mixing(list(layers), prior / (prior + count)) if prior else normalising(layers, "batch"):
        yield


@contextmanager
def _mixing(layers: Sequence[AdaptiveBatchNorm], share: float) -> Iterator[None]:
    """Let every layer normalise with `share` of its running statistics and the rest of what it is given."""
    source = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    hooks = [
        layer.register_forward_pre_hook(partial(_mix, share=share, mean=mean, variance=variance))
        for layer, (mean, variance) in zip(layers, source, strict=True)
    ]
    try:
        yield
    finally:
        for hook, layer, (mean, variance) in zip(hooks, layers, source, strict=True):
            hook.remove()
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)


def _mix(
    layer: AdaptiveBatchNorm,
    inputs: tuple[torch.Tensor, ...],
    *,
    share: float,
    mean: torch.Tensor,
    variance: torch.Tensor,
) -> None:
    """Set the running statistics that the layer is about to use."""
    x = inputs[0].detach().to(variance.dtype)
    if x.numel() // x.shape[1] < 2:
        share, batch_mean, batch_variance = 1.0, mean, variance
    else:
        batch_variance, batch_mean = torch.var_mean(x, dim=(0, *range(2, x.dim())), correction=1)
    layer.running_mean.copy_(torch.lerp(batch_mean, mean, share))
    layer.running_var.copy_(torch.lerp(batch_variance, variance, share))
