"""CEMA's learner passes the suite that a stranger runs on his own."""

from __future__ import annotations

from cema.testing.learners import LearnerSuite


class TestCema(LearnerSuite):
    __test__ = True
