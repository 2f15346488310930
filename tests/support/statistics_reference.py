"""Networks in float64 NumPy whose BatchNorm blends known statistics with those of its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cema.ondevice.folding import StatisticsLayer

Float64 = npt.NDArray[np.float64]


def convolve(x: Float64, weight: npt.NDArray[Any], *, stride: int = 1, padding: int = 1) -> Float64:
    """Convolve (N, C, H, W) with (O, C, h, w)."""
    sides = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, sides), weight.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], weight.astype(np.float64))


@dataclass
class Blending:
    """The BatchNorm layers of a network.

    Attributes
    ----------
    affine : mapping of str to ndarray
        Weights and biases.
    layers : sequence of StatisticsLayer
        Those that blend.
    known : ndarray (2, K)
    rate : float
    source : ndarray (2, K), optional
    share : float
        Of the source in what a layer normalises with.
    seen : dict of str to ndarray (2, C)
        What each layer was last given.
    """

    affine: Mapping[str, npt.NDArray[Any]]
    layers: Sequence[StatisticsLayer]
    known: npt.NDArray[Any]
    rate: float
    source: npt.NDArray[Any] | None = None
    share: float = 0.0
    seen: dict[str, Float64] = field(default_factory=dict)

    def __call__(self, name: str, x: npt.NDArray[Any]) -> Float64:
        """Normalise the input of a layer, (N, C, ...)."""
        known, eps = self._of_layer(self.known, name)
        values = np.moveaxis(x.astype(np.float64), 1, 0).reshape(x.shape[1], -1)
        count = values.shape[1]
        mean = values.mean(1)
        variance = values.var(1, ddof=1) if count > 1 else np.zeros(len(values))
        rate = self.rate if count > 1 else 0.0
        self.seen[name] = np.stack([mean, variance]) if count > 1 else known
        between = rate * (1 - rate) * (mean - known[0]) ** 2
        blend = known[0] + rate * (mean - known[0]), known[1] + rate * (variance - known[1]) + between
        if self.source is not None:
            source, _ = self._of_layer(self.source, name)
            blend = tuple(
                (1 - self.share) * ours + self.share * theirs
                for ours, theirs in zip(blend, source, strict=True)
            )
        shape = (1, -1, *[1] * (x.ndim - 2))
        weight, bias = (self.affine[f"{name}.{kind}"].astype(np.float64) for kind in ("scale", "shift"))
        scale = weight / np.sqrt(blend[1] + eps)
        return (x - blend[0].reshape(shape)) * scale.reshape(shape) + bias.reshape(shape)

    def observed(self) -> Float64:
        """Return what all layers were last given, (2, K)."""
        return np.concatenate([self.seen[layer.layer] for layer in self.layers], axis=1)

    def _of_layer(self, flat: npt.NDArray[Any], name: str) -> tuple[Float64, float]:
        start = 0
        for layer in self.layers:
            if layer.layer == name:
                return flat[:, start : start + layer.size].astype(np.float64), layer.eps
            start += layer.size
        raise KeyError(name)


def digits(weights: Mapping[str, npt.NDArray[Any]], norm: Blending, x: Float64) -> Float64:
    """Run the network of ``digits-cnn`` on its inputs."""
    for i, stride in enumerate((2, 2, 1, 2)):
        x = convolve(x, weights[f"features.{i}.0.weight"], stride=stride)
        x = np.maximum(norm(f"features.{i}.1", x), 0)
    return x.mean((2, 3)) @ weights["classifier.weight"].T + weights["classifier.bias"]
