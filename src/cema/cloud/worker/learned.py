"""What a learner has learned, in the form in which the cohort's devices are to get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cema.adapt.base import HasStatistics
from cema.errors import ConfigError
from cema.formats.payload import NormState, round_norm_state
from cema.ondevice.folding import StatisticsLayer, fold, unfold

if TYPE_CHECKING:
    import numpy.typing as npt

    from cema.adapt.base import Learner

__all__ = ["Carried", "Learned", "read_learned"]


class Learned(NamedTuple):
    """A learner's present state.

    Attributes
    ----------
    norm_state : mapping of str to ndarray of float32 (size,)
        Folded where there are no `statistics`; else weights and biases for the layers that the bundle lists.
    statistics : ndarray of float32 (2, K) or None
        The statistics it was learned with, in the order of these layers. None where devices have none of their own, or
        the learner does not tell: its updates are folded.
    """

    norm_state: Mapping[str, npt.NDArray[np.float32]]
    statistics: npt.NDArray[np.float32] | None = None


class Carried(NamedTuple):
    """A norm state as an update carries it.

    Attributes
    ----------
    norm_state : dict of str to ndarray of float32 (size,)
        As in `Learned`.
    unfolded : bool
        Whether statistics are to be folded into it.
    """

    norm_state: NormState
    unfolded: bool

    @classmethod
    def of(cls, learned: Learned, tolerance: float) -> Carried:
        """Round what was learned as an update does."""
        return cls(round_norm_state(learned.norm_state, tolerance), learned.statistics is not None)

    def folded(self, statistics: npt.NDArray[np.float32], layers: Sequence[StatisticsLayer]) -> NormState:
        """Return what a device with these statistics runs; a state that is folded stays as it is.

        Raises
        ------
        FormatError
            When a parameter is not finite then.
        """
        return fold(self.norm_state, statistics, layers) if self.unfolded else self.norm_state


def read_learned(learner: Learner[Any], layers: Sequence[StatisticsLayer]) -> Learned:
    """Return what a learner has learned.

    Parameters
    ----------
    learner : Learner
        Its layers with statistics may be in another order, and more: the others' are folded.
    layers : sequence of StatisticsLayer
        Those that the bundle lists.

    Raises
    ------
    ConfigError
        When the learner tells statistics, and lacks a layer of the bundle or has it otherwise.
    FormatError
        When a parameter or a statistic is not finite.
    """
    norm_state = learner.norm_state()
    if not layers or not isinstance(learner, HasStatistics):
        return Learned(norm_state)
    places = _places(learner.statistics_layers(), layers)
    statistics = np.asarray(learner.statistics(), np.float32)[:, places]
    return Learned(unfold(norm_state, statistics, layers), statistics)


def _places(known: Sequence[StatisticsLayer], wanted: Sequence[StatisticsLayer]) -> npt.NDArray[np.intp]:
    """Return at which of the known layers' channels those of the wanted layers are."""
    starts = np.cumsum([0, *(layer.size for layer in known)])
    found = {layer.layer: (layer, int(start)) for layer, start in zip(known, starts[:-1], strict=True)}
    parts = []
    for layer in wanted:
        theirs, start = found.get(layer.layer, (None, 0))
        if (
            theirs is None
            or theirs.size != layer.size
            or not np.isclose(theirs.eps, layer.eps, rtol=1e-6, atol=0)
        ):
            got = "none" if theirs is None else f"one of {theirs.size} channels and eps {theirs.eps:g}"
            raise ConfigError(
                f"the bundle lists statistics of the layer {layer.layer!r} with {layer.size} channels and eps "
                f"{layer.eps:g}, the algorithm has {got}: name the model that the bundle was exported from, or export "
                "the bundle again and provision the devices with it"
            )
        parts.append(np.arange(start, start + layer.size))
    return np.concatenate(parts)
