"""A pass in which every normalisation layer uses, and tells, the statistics of what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cema.adapt.norm import normalising
from cema.adapt.statistics import merge_of
from cema.ondevice.folding import StatisticsLayer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cema.adapt.adaptable import AdaptableModel
    from cema.adapt.norm import AdaptiveBatchNorm
    from cema.ondevice.window import Blend

__all__ = ["read_statistics", "statistics_layers", "statistics_of"]


def statistics_layers(layers: Mapping[str, AdaptiveBatchNorm]) -> tuple[StatisticsLayer, ...]:
    """Return how the statistics of a model's layers lie in one array (2, K): in the order of `layers`."""
    return tuple(
        StatisticsLayer(layer=name, size=layer.running_mean.numel(), eps=float(layer.eps))
        for name, layer in layers.items()
    )


def statistics_of(layers: Mapping[str, AdaptiveBatchNorm]) -> np.ndarray:
    """Return the running statistics of a model's layers, float32 (2, K)."""
    if not layers:
        return np.empty((2, 0), np.float32)
    means = torch.cat([layer.running_mean.flatten() for layer in layers.values()])
    variances = torch.cat([layer.running_var.flatten() for layer in layers.values()])
    return torch.stack([means, variances]).to("cpu", torch.float32).numpy()


@torch.no_grad()
def read_statistics(
    model: AdaptableModel, inputs: torch.Tensor, blend: Blend
) -> tuple[torch.Tensor, np.ndarray]:
    """Make a pass in which every layer moves to a blend before it normalises; the model's statistics stay as they were.

    Parameters
    ----------
    model : AdaptableModel
        With its affine parameters as they are.
    inputs : torch.Tensor
        Shape (N, C, H, W).
    blend : Blend
        What every layer mixes their statistics with.

    Returns
    -------
    logits : torch.Tensor
        Shape (N, classes), float32.
    observed : ndarray of float32 (2, K)
        Means and unbiased variances of the inputs; what was known, where a layer saw a single value per channel.
    """
    layers = model.layers
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers.values()]
    sizes = [layer.running_mean.numel() for layer in layers.values()]
    known = torch.split(torch.from_numpy(blend.known), sizes, dim=1)
    for layer, part in zip(layers.values(), known, strict=True):
        mean, variance = part.to(layer.running_mean.device)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
        layer.merge = merge_of(mean, variance, blend.rate, union=True)
    try:
        with normalising(layers.values(), "follow"):
            logits = model.run(inputs)
        observed = [
            torch.stack(layer.observed).float() if layer.observed is not None else part.to(logits.device)
            for layer, part in zip(layers.values(), known, strict=True)
        ]
    finally:
        for layer, (mean, variance) in zip(layers.values(), before, strict=True):
            layer.merge, layer.observed = None, None
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
    return logits, torch.cat(observed, dim=1).cpu().numpy()
