"""Test-then-train evidence against sums written out by hand, and its window as a property."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.evidence import Batch, Evidence, agreements


def batch(count: int, adapted: int, running: int, source: int, fair: bool = True) -> Batch:
    return Batch(count=count, adapted=adapted, running=running, source=source, fair=fair)


def test_shares_are_over_samples_not_over_batches() -> None:
    evidence = Evidence()
    evidence.add(batch(10, 1, 2, 3), 100)
    evidence.add(batch(30, 29, 20, 10), 100)
    standing = evidence.of_candidate()
    assert standing.count == 40
    assert (standing.adapted, standing.running, standing.source) == pytest.approx((30 / 40, 22 / 40, 13 / 40))


def test_a_change_of_the_environment_begins_anew_and_says_nothing_of_the_adapted_model() -> None:
    evidence = Evidence()
    evidence.add(batch(32, 32, 0, 0), 128)
    evidence.add(batch(32, 0, 8, 16, fair=False), 128)
    assert evidence.of_candidate().count == 0
    assert evidence.of_running().source == 0.5
    evidence.add(batch(32, 24, 8, 16), 128)
    assert evidence.of_candidate().adapted == 0.75
    assert evidence.of_running().count == 64


def test_what_was_seen_of_a_lost_adaptation_no_longer_counts() -> None:
    evidence = Evidence()
    evidence.add(batch(32, 1, 30, 30), 128)
    evidence.forget_adapted()
    assert evidence.of_candidate().count == 0
    assert evidence.of_running().running == 30 / 32


def test_after_a_publication_what_was_seen_of_the_model_is_what_devices_run() -> None:
    evidence = Evidence()
    evidence.add(batch(32, 0, 8, 16, fair=False), 128)
    evidence.add(batch(32, 24, 8, 16), 128)
    evidence.running_is("adapted")
    assert (evidence.of_running().count, evidence.of_running().running) == (32, 0.75)
    evidence.running_is("source")
    assert evidence.of_running().running == evidence.of_running().source == 0.5


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 200))
def test_the_window_keeps_the_fewest_newest_batches_that_fill_it(counts: list[int], window: int) -> None:
    evidence = Evidence()
    for count in counts:
        evidence.add(batch(count, 0, 0, 0), window)
    kept = [b.count for b in evidence.batches]
    assert kept == counts[len(counts) - len(kept) :]
    assert sum(kept) >= min(window, sum(counts))
    assert sum(kept[1:]) < window


def test_it_survives_being_stored() -> None:
    evidence = Evidence(batches=[batch(3, 1, 2, 3), batch(4, 1, 2, 3, fair=False)])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(evidence), type=Evidence) == evidence


def test_agreements_are_counted_by_sample() -> None:
    labels = np.array([0, 1, 2, 3])
    assert agreements(labels, np.array([0, 1, 0, 0]), np.array([3, 2, 1, 0])) == [2, 0]
