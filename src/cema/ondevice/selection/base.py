"""The protocol of a selection rule: which of the samples that a device predicts are worth sending."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = ["NotesChanges", "Selector", "SelectorFactory", "TellsWhy"]


class Selector(Protocol):
    """One device's selection. The agent and the benchmark call the same object, one call at a time."""

    def select(
        self, logits: npt.NDArray[np.float32], entropy: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """Decide about one call's samples, in the order of the stream.

        Parameters
        ----------
        logits : ndarray of float32 (N, C)
            The device's predictions; finite. N may be 0.
        entropy : ndarray of float64 (N,)
            Their softmax entropy in nats, which the agent has computed anyway.

        Returns
        -------
        ndarray of bool (N,)
            Which samples to upload.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that `load_state` needs to go on, as JSON holds it."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where another selector with the same settings was.

        Raises
        ------
        FormatError
            When `state` is not one of its own, or of other settings; nothing is changed then.
        """
        ...

    def describe(self) -> dict[str, float]:
        """Return the numbers that decide now, by name, for status and metrics."""
        ...


@runtime_checkable
class NotesChanges(Protocol):
    """What a rule may have beside `Selector`: it is told when the device enters another domain.

    A rule without this method works as well.
    """

    def changed(self) -> None:
        """Take note that the next call's samples are the first of another domain.

        The agent calls it where its guard begins to let the source model predict
        (`cema.ondevice.drift.DriftMonitor`): the inputs are no longer those that the update was made for. It calls it
        too where inputs are no longer like the first ones of their domain (`cema.ondevice.own_domain.OwnDomain`), which
        it watches for statistics and centred logits of its own.
        """
        ...


@runtime_checkable
class TellsWhy(Protocol):
    """What a rule may have beside `Selector`: it tells why samples are left out, for those who watch a device.

    A rule without this method works as well.
    """

    def left_out(self) -> Mapping[str, int]:
        """Return how many of the last call's samples were not selected, by reason.

        A reason is of ``a-z`` and ``_``. The built-in rules say ``below`` and ``above`` (a threshold on the entropy),
        ``redundant`` (like the average prediction) and ``budget`` (others were more useful). Clouds of this version
        keep these and ``other``.
        """
        ...


class SelectorFactory(Protocol):
    """The constructor that every rule has; ``[selection.options]`` are its keyword arguments."""

    def __call__(self, classes: int, **options: Any) -> Selector:
        """Make a selector for a model of so many classes."""
        ...
