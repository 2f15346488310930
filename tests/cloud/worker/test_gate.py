"""Test-then-train evidence against sums written out by hand, and its window as a property."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.worker.gate import AgreementWindow, BatchAgreement, agreements


def batch(count: int, adapted: int, running: int, source: int, before_update: bool = True) -> BatchAgreement:
    return BatchAgreement(
        count=count, adapted=adapted, running=running, source=source, before_update=before_update
    )


def test_shares_are_over_samples_not_over_batches() -> None:
    window = AgreementWindow()
    window.add(batch(10, 1, 2, 3), 100)
    window.add(batch(30, 29, 20, 10), 100)
    agreement = window.of_candidate()
    assert agreement.count == 40
    assert (agreement.adapted, agreement.running, agreement.source) == pytest.approx(
        (30 / 40, 22 / 40, 13 / 40)
    )


def test_a_change_of_the_environment_begins_anew_and_says_nothing_of_the_adapted_model() -> None:
    window = AgreementWindow()
    window.add(batch(32, 32, 0, 0), 128)
    window.add(batch(32, 0, 8, 16, before_update=False), 128)
    assert window.of_candidate().count == 0
    assert window.of_running().source == 0.5
    window.add(batch(32, 24, 8, 16), 128)
    assert window.of_candidate().adapted == 0.75
    assert window.of_running().count == 64


def test_what_was_seen_of_a_lost_adaptation_no_longer_counts() -> None:
    window = AgreementWindow()
    window.add(batch(32, 1, 30, 30), 128)
    window.forget_adapted()
    assert window.of_candidate().count == 0
    assert window.of_running().running == 30 / 32


def test_after_a_publication_what_was_seen_of_the_model_is_what_devices_run() -> None:
    window = AgreementWindow()
    window.add(batch(32, 0, 8, 16, before_update=False), 128)
    window.add(batch(32, 24, 8, 16), 128)
    window.running_is("adapted")
    assert (window.of_running().count, window.of_running().running) == (32, 0.75)
    window.running_is("source")
    assert window.of_running().running == window.of_running().source == 0.5


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 200))
def test_the_window_keeps_the_fewest_newest_batches_that_fill_it(counts: list[int], size: int) -> None:
    window = AgreementWindow()
    for count in counts:
        window.add(batch(count, 0, 0, 0), size)
    kept = [b.count for b in window.batches]
    assert kept == counts[len(counts) - len(kept) :]
    assert sum(kept) >= min(size, sum(counts))
    assert sum(kept[1:]) < size


def test_it_survives_being_stored() -> None:
    window = AgreementWindow(batches=[batch(3, 1, 2, 3), batch(4, 1, 2, 3, before_update=False)])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(window), type=AgreementWindow) == window


def test_agreements_are_counted_by_sample() -> None:
    labels = np.array([0, 1, 2, 3])
    assert agreements(labels, np.array([0, 1, 0, 0]), np.array([3, 2, 1, 0])) == [2, 0]


def test_after_a_state_was_put_back_nothing_counts_for_it_that_another_did() -> None:
    window = AgreementWindow()
    window.add(batch(32, 32, 8, 16), 128)
    window.put_back(changed=False)
    window.add(batch(32, 24, 8, 16), 128)
    assert (window.of_candidate().count, window.of_candidate().adapted) == (32, 0.75)
    assert window.of_running().count == 64
    window.put_back(changed=True)
    window.add(batch(32, 16, 8, 16), 128)
    assert (window.of_candidate().count, window.of_candidate().adapted) == (32, 0.5)
    assert window.of_running().count == 32
