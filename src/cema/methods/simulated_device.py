"""One device of a benchmark: everything that an edge agent decides about a prediction, by the same objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from cema._util.checks import require_rate
from cema.adapt.adaptable import AdaptableModel
from cema.adapt.optimizers import as_array
from cema.adapt.reading import read_statistics, statistics_layers, statistics_of
from cema.models.norm_state import folded_norm_state, load_affine, norm_layers
from cema.ondevice.adaptation import AdaptationConfig, DeviceAdaptation
from cema.ondevice.drift import Domain, DriftMonitor, input_statistics
from cema.ondevice.folding import unfold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cema.models.spec import Model

__all__ = ["Arrived", "DeviceConfig", "DeviceNetwork", "Predicted", "SimulatedDevice"]


class DeviceConfig(AdaptationConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device does beside running the newest update: by itself (`AdaptationConfig`), and this.

    Attributes
    ----------
    guard : float
        How far inputs must be from those that an update was made from for the source model's parameters to predict
        them (`cema.ondevice.drift.DriftMonitor`); 0 for never.
    """

    guard: float = 36.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        super().__post_init__()
        require_rate("guard", self.guard)


@dataclass(frozen=True, eq=False)
class Arrived:
    """A norm state that a device runs.

    Attributes
    ----------
    affine : mapping of str to ndarray of float32
        Norm parameters, with weight and bias where a layer has statistics.
    statistics : ndarray of float32 (2, K)
        Those it was learned with.
    domain : Domain or None
        What the inputs looked like that it was made from.
    folded : bool
        Whether statistics are folded into the parameters, and cannot be told apart: it runs as it came.
    """

    affine: Mapping[str, np.ndarray]
    statistics: np.ndarray
    domain: Domain | None = None
    folded: bool = False


class Predicted(NamedTuple):
    """What a device made of a batch.

    Attributes
    ----------
    logits : ndarray of float32 (N, classes)
        Its answers.
    forwards : int
        Inputs passed through the network.
    """

    logits: np.ndarray
    forwards: int


class DeviceNetwork:
    """The network that all devices of a simulation share: each puts its own norm state in before it runs.

    Parameters
    ----------
    edge : cema.models.spec.Model
        The source; copied.
    device, dtype : str
        See `AdaptableModel`.
    clean : sequence of ndarray of uint8 (H, W, C)
        Clean images, for the source's mean logits, which are not known without any.
    """

    def __init__(self, edge: Model, *, device: str, dtype: str, clean: Sequence[np.ndarray] = ()) -> None:
        self.model = AdaptableModel(edge, device=device, dtype=dtype)
        self.layers = statistics_layers(self.model.layers)
        self._norm_layers = norm_layers(self.model.module)
        statistics = statistics_of(self.model.layers)
        folded = folded_norm_state(self.model.module, self._norm_layers)
        self.source = Arrived(unfold(folded, statistics, self.layers), statistics)
        self.mean_logits = self._mean_logits(clean)
        self._loaded: tuple[object, object] = (None, None)

    @torch.no_grad()
    def _mean_logits(self, clean: Sequence[np.ndarray]) -> np.ndarray | None:
        if not len(clean):
            return None
        parts = [as_array(self.model.forward(clean[i : i + 64])) for i in range(0, len(clean), 64)]
        mean: np.ndarray = np.concatenate(parts).astype(np.float64).mean(axis=0)
        return mean

    def load(self, affine: Mapping[str, np.ndarray], statistics: np.ndarray) -> None:
        """Put affine parameters and statistics in, unless they are there."""
        if self._loaded[0] is not affine or self._loaded[1] is not statistics:
            load_affine(self.model.module, affine, statistics, self.layers, self._norm_layers)
            self._loaded = (affine, statistics)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Return logits (N, classes) of inputs (N, C, H, W) with what was loaded."""
        # Laid out in memory as the model wants it.
        return as_array(self.model.run(self.model.as_inputs(pixels)))


class SimulatedDevice:
    """What a device keeps: its update, its own statistics, its centre of logits, and its watch over the domain.

    Parameters
    ----------
    network : DeviceNetwork
        Shared with other devices.
    config : DeviceConfig
        Its settings.
    """

    def __init__(self, network: DeviceNetwork, config: DeviceConfig) -> None:
        self.config = config
        self._network = network
        self._arrived = network.source
        self._watch = DriftMonitor(config.guard)
        self._adaptation = DeviceAdaptation(
            config,
            statistics=network.source.statistics,
            mean_logits=network.mean_logits,
            classes=network.model.classes,
        )
        self._statistics = network.source.statistics
        self._drifts = 0

    @property
    def drifted(self) -> bool:
        """Whether the source model's parameters predict until inputs are like the update's again."""
        return self._watch.drifted

    @property
    def changes(self) -> int:
        """How often the domain changed, by the device's own watch or by that over its update."""
        return self._adaptation.changes + self._drifts

    def install(self, arrived: Arrived) -> None:
        """Run a new update from now on."""
        self._arrived = arrived
        self._watch.enter(arrived.domain)

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray]) -> Predicted:
        """Predict a batch of uint8 (H, W, C) images."""
        inputs = self._network.model.inputs(images).cpu().numpy()
        before = self._network.model.forwards
        logits = self._adaptation.after(inputs, self._forward(inputs), self._network.run)
        return Predicted(logits, self._network.model.forwards - before)

    def _forward(self, inputs: np.ndarray) -> np.ndarray:
        rows = None
        if self.config.guard:
            before = self._watch.drifted
            rows = input_statistics(inputs)
            self._watch.observe(rows)
            self._drifts += self._watch.drifted and not before
        network, serving = self._network, self._network.source if self._watch.drifted else self._arrived
        own = self._adaptation.own_statistics and not serving.folded
        reading = self._adaptation.before(inputs, serving.affine, serving.statistics, rows)
        network.load(serving.affine, self._statistics if own else serving.statistics)
        if not own or reading is None:
            return network.run(inputs)
        logits, observed = read_statistics(network.model, network.model.as_inputs(inputs), reading.blend)
        if self._adaptation.read(reading, observed, len(inputs)):
            self._statistics = self._adaptation.statistics()
            network.load(serving.affine, self._statistics)
        return as_array(logits)
