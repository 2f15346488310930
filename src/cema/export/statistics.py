"""The part of a bundle that lets devices observe statistics: made, and compared with torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from cema.adapt.norm import prepare
from cema.adapt.reading import blending
from cema.errors import ExportError, LogitsError
from cema.export.onnx_graph import INPUT_NAME, OUTPUT_NAME
from cema.export.session import open_session
from cema.export.statistics_graph import (
    KNOWN_NAME,
    NORM_NAME,
    OBSERVED_NAME,
    RATE_NAME,
    SHARE_NAME,
    SOURCE_NAME,
    statistics_graph,
)
from cema.formats.bundle import BundleStatistics, check_golden
from cema.formats.bundle_files import MODEL_FILE
from cema.formats.bundle_manifest import pack_norm
from cema.models.norm_state import has_running_statistics, load_folded, norm_layers
from cema.ondevice.folding import StatisticsLayer, check_statistics, unfold
from cema.ondevice.window import Blend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cema.adapt.norm import AdaptiveBatchNorm
    from cema.formats.bundle_manifest import NormTensor

__all__ = ["make_statistics", "source_statistics"]

# The share of the batch, and that of the source model.
_SHARES = ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.5, 0.25))
_BATCHES = (1, 3)


def source_statistics(module: nn.Module) -> dict[str, np.ndarray]:
    """Return mean and variance, float32 (2, C), of every norm layer that keeps running ones, by its name."""
    layers: dict[str, Any] = dict(norm_layers(module))
    return {
        name: torch.stack([layer.running_mean, layer.running_var]).to(torch.float32).numpy()
        for name, layer in layers.items()
        if has_running_statistics(layer)
    }


def make_statistics(
    module: nn.Module,
    graph: bytes,
    *,
    layout: Sequence[NormTensor],
    norm_state: Mapping[str, np.ndarray],
    source: Mapping[str, np.ndarray],
    inputs: np.ndarray,
    logits: np.ndarray,
    tolerance: float,
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
) -> BundleStatistics:
    """Make the graph that observes statistics, and compare it with torch.

    Parameters
    ----------
    module : torch.nn.Module
        The exported model, in any norm state; not changed.
    graph : bytes
        ``model.onnx``.
    layout, norm_state
        Of the bundle.
    source : mapping of str to ndarray of float32 (2, C)
        As `source_statistics` returns it.
    inputs : ndarray of float32 (N, C, H, W)
        At least 3.
    logits : ndarray of float32 (N, classes)
        What the source model answers to them.
    tolerance : float
        As for the other checks of an export.
    change : callable
        Returns another norm state of the same shapes, for the check.

    Returns
    -------
    BundleStatistics

    Raises
    ------
    ExportError
        When there are no layers to observe, or the graph computes something else than torch.
    """
    adaptable = copy.deepcopy(module)
    _, layers = prepare(adaptable)
    used = _used(adaptable, layers, inputs)
    if not used:
        raise ExportError("the model has no BatchNorm with running statistics that can be adapted")
    observing, found = statistics_graph(
        graph, layout, {name: float(layer.eps) for name, layer in used.items()}
    )
    values = check_statistics(np.concatenate([source[layer.layer] for layer in found], axis=1), found)
    affine = unfold(norm_state, values, found)
    statistics = BundleStatistics(found, observing, values)
    check = _Check(adaptable, layers, found, layout, graph, statistics)
    for state, known in ((affine, values), (change(affine), _changed(values))):
        check.run(state, known, inputs, tolerance)
    check.source(affine, values, inputs, logits, tolerance)
    return statistics


def _used(
    module: nn.Module, layers: Mapping[str, AdaptiveBatchNorm], inputs: np.ndarray
) -> dict[str, AdaptiveBatchNorm]:
    """Return the layers that the model calls, rather than computing with their tensors itself."""
    called: set[int] = set()
    handles = [layer.register_forward_hook(lambda it, *_: called.add(id(it))) for layer in layers.values()]
    with torch.no_grad():
        module(torch.from_numpy(inputs[:1].copy()))
    for handle in handles:
        handle.remove()
    return {name: layer for name, layer in layers.items() if id(layer) in called}


def _changed(statistics: np.ndarray) -> np.ndarray:
    """Return other statistics that are known: shifted by half a standard deviation, and twice as wide."""
    mean, variance = statistics
    return np.stack([mean + 0.5 * np.sqrt(variance), 2.0 * variance]).astype(np.float32)


@dataclass
class _Check:
    """Runs the graph and torch with the same parameters, statistics and inputs."""

    module: nn.Module
    layers: Mapping[str, AdaptiveBatchNorm]
    found: Sequence[StatisticsLayer]
    layout: Sequence[NormTensor]
    model: bytes
    statistics: BundleStatistics

    def run(
        self, affine: Mapping[str, np.ndarray], known: np.ndarray, inputs: np.ndarray, tolerance: float
    ) -> None:
        """Raise ExportError unless logits and statistics are torch's."""
        session = self._session()
        # Also the layers that are not observed: what the norm state has for them is right as it is.
        load_folded(self.module, affine)
        for rate, share in _SHARES:
            blend = Blend(known, rate, self.statistics.source, share)
            for batch in (inputs[:count] for count in _BATCHES):
                logits, observed = session.run(
                    [OUTPUT_NAME, OBSERVED_NAME], self._feeds(affine, batch, blend)
                )
                expected, seen = self._torch(batch, blend)
                try:
                    check_golden(logits, expected, tolerance)
                    self._compare(observed, seen, tolerance)
                except LogitsError as error:
                    raise ExportError(
                        f"the graph that observes statistics differs from torch at a rate of {rate:g} and a share of "
                        f"{share:g} for {len(batch)} images: {error}"
                    ) from error

    def source(
        self,
        affine: Mapping[str, np.ndarray],
        known: np.ndarray,
        inputs: np.ndarray,
        logits: np.ndarray,
        tolerance: float,
    ) -> None:
        """Raise ExportError unless the graph is the source model with its parameters and statistics."""
        (got,) = self._session().run([OUTPUT_NAME], self._feeds(affine, inputs, Blend(known, 0.0)))
        try:
            check_golden(got, logits, tolerance)
        except LogitsError as error:
            raise ExportError(
                f"the graph that observes statistics differs from the source model at a rate of 0: {error}"
            ) from error

    def _session(self) -> Any:
        return open_session(self.statistics.graph, {MODEL_FILE: self.model})

    def _feeds(
        self, affine: Mapping[str, np.ndarray], batch: np.ndarray, blend: Blend
    ) -> dict[str, np.ndarray]:
        norm = np.frombuffer(pack_norm(self.layout, affine), "<f4").astype(np.float32)
        source = blend.known if blend.source is None else blend.source
        statistics = {KNOWN_NAME: blend.known, SOURCE_NAME: source}
        shares = {RATE_NAME: np.array(blend.rate, np.float32), SHARE_NAME: np.array(blend.share, np.float32)}
        return {INPUT_NAME: batch, NORM_NAME: norm, **statistics, **shares}

    def _torch(self, batch: np.ndarray, blend: Blend) -> tuple[np.ndarray, np.ndarray]:
        layers = [self.layers[layer.layer] for layer in self.found]
        with torch.no_grad(), blending(layers, blend) as known:
            logits = self.module(torch.from_numpy(batch.copy())).numpy()
        observed = [
            (part if layer.observed is None else torch.stack(layer.observed)).numpy()
            for layer, part in zip(layers, known, strict=True)
        ]
        return logits, np.concatenate(observed, axis=1)

    def _split(self, statistics: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum([layer.size for layer in self.found])[:-1]
        return np.split(statistics, ends, axis=1)

    def _compare(self, got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
        """Compare statistics layer by layer, each relative to the size of the layer's input."""
        for layer, ours, theirs in zip(self.found, self._split(got), self._split(expected), strict=True):
            power = float((theirs[0].astype(np.float64) ** 2 + theirs[1]).max())
            size = np.array([[np.sqrt(power)], [power]]) + np.finfo(np.float32).tiny
            difference = float((np.abs(ours.astype(np.float64) - theirs) / size).max())
            if not difference <= tolerance:
                raise LogitsError(
                    f"{layer.layer}: its statistics differ by {difference:.3g} (relative), at most {tolerance:.3g} "
                    "is allowed"
                )
