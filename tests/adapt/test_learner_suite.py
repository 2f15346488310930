"""CEMA's learner passes the suite that a stranger runs on his own."""

from __future__ import annotations

from cema.adapt.config import AdaptConfig
from cema.testing.learners import FRESH, LearnerSuite


class TestCema(LearnerSuite):
    __test__ = True


class TestCemaWithABank(LearnerSuite):
    __test__ = True
    config = AdaptConfig(fresh=FRESH, replayed=12, replay_from=16, capacity=40, bank=4)
