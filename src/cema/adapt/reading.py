"""A pass in which every normalisation layer uses, and tells, the statistics of what it is given."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from cema.adapt.norm import normalising
from cema.adapt.statistics import merge_of, parts_of, with_share_of
from cema.ondevice.folding import StatisticsLayer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cema.adapt.adaptable import AdaptableModel
    from cema.adapt.norm import AdaptiveBatchNorm
    from cema.ondevice.window import Blend

__all__ = ["blending", "read_statistics", "statistics_layers", "statistics_of"]


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
    layers = list(model.layers.values())
    try:
        with blending(layers, blend) as known:
            logits = model.run(inputs)
        observed = [
            part if layer.observed is None else torch.stack(layer.observed).float()
            for layer, part in zip(layers, known, strict=True)
        ]
    finally:
        for layer in layers:
            layer.observed = None
    return logits, torch.cat(observed, dim=1).cpu().numpy()


@contextmanager
def blending(layers: Sequence[AdaptiveBatchNorm], blend: Blend) -> Iterator[list[torch.Tensor]]:
    """Let layers normalise with a blend in the passes inside of a ``with`` block; their statistics stay as they were.

    Yields
    ------
    list of torch.Tensor
        What is known of each layer, float32 (2, C), where the layer is.
    """
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    known = parts_of(torch.from_numpy(blend.known), layers)
    source = known if blend.source is None else parts_of(torch.from_numpy(blend.source), layers)
    try:
        for layer, part, other in zip(layers, known, source, strict=True):
            layer.merge = with_share_of(merge_of(part, blend.rate, union=True), other, blend.share)
            # For a layer that is given a single value per channel, which has no variance.
            alone = with_share_of(merge_of(part, 0.0, union=True), other, blend.share)(*part)
            layer.running_mean.copy_(alone[0])
            layer.running_var.copy_(alone[1])
        with normalising(layers, "follow"):
            yield known
    finally:
        for layer, (mean, variance) in zip(layers, before, strict=True):
            layer.merge = None
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
