"""A learner that tells no statistics, as one written before they were asked for."""

from __future__ import annotations

from typing import Any, TypeVar

from cema.adapt.learner import CemaLearner
from cema.ondevice.folding import StatisticsLayer

T = TypeVar("T")


class Folding(CemaLearner[T]):
    """CEMA, whose updates have statistics folded into them."""

    statistics: Any = None
    statistics_layers: Any = None


class Narrow(CemaLearner[T]):
    """CEMA that tells the statistics of its last layer only."""

    def statistics_layers(self) -> tuple[StatisticsLayer, ...]:
        """Return one layer of two."""
        return super().statistics_layers()[-1:]

    def statistics(self) -> Any:
        """Return its statistics."""
        return super().statistics()[:, -self.statistics_layers()[0].size :]
