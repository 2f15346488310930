"""A learner of one's own, in one file: CEMA with several distillation steps for every batch of uploads.

In cloud.toml:

    [cohort.adapt]
    algorithm = "examples/own_learner.py:ManySteps"
    options = { replays = 3 }

In the benchmark, beside CEMA, on the embedded digits:

    cema bench --data digits --methods cema --corruptions fog --samples 512 \
        --set cema.adapt.algorithm=examples/own_learner.py:ManySteps --set 'cema.adapt.options={"replays": 3}'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from cema import Model
from cema.adapt.base import StepReport
from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.ondevice.batch import Batch

T = TypeVar("T")


class ManySteps(CemaLearner[T]):
    """Learn from a batch as CEMA does, then replay a few times. Everything else is inherited."""

    def __init__(self, edge: Model, foundation: Model, config: AdaptConfig, **placement: Any) -> None:
        super().__init__(edge, foundation, config, **placement)
        self._replays = int(config.options.get("replays", 3))

    def learn(self, items: Sequence[T], batch: Batch | None = None) -> StepReport:
        """Make one step on new samples, and some on replayed ones; report all as one."""
        first = super().learn(items, batch)
        again = [self.replay() for _ in range(self._replays)]
        done = [report for report in again if report.step]
        return replace(
            first,
            step=self.steps,
            replayed=first.replayed + sum(report.replayed for report in done),
            dropped=first.dropped + sum(report.dropped for report in again),
            skipped=first.skipped + sum(report.skipped for report in done),
            forwards=first.forwards + sum(report.forwards for report in done),
            backwards=first.backwards + sum(report.backwards for report in done),
        )
