"""What a demonstration books adds up."""

from __future__ import annotations

import numpy as np
import pytest

from cema.demo.tally import EdgeTally, rolling_mean, summarise


def tally(count: int = 6) -> EdgeTally:
    return EdgeTally(np.arange(count) % 3, [0, count // 2, count])


def test_each_segment_counts_its_own_predictions() -> None:
    edge = tally()
    edge.predicted(0, 10.0, [0, 1], np.array([0, 0]))
    edge.predicted(2, 11.0, [2, 0], np.array([2, 1]))
    edge.predicted(4, 12.0, [0, 0], np.array([1, 2]))
    clean, noise = summarise(["clean", "noise"], [edge])
    assert (clean.samples, clean.adapted_accuracy) == (3, 100.0)
    assert clean.frozen_accuracy == pytest.approx(200 / 3)
    assert noise.adapted_accuracy == pytest.approx(100 / 3)
    assert noise.frozen_accuracy == pytest.approx(200 / 3)


def test_a_late_acknowledgement_is_booked_where_the_sample_was_predicted() -> None:
    edge = tally()
    edge.predicted(0, 10.0, [0, 1, 2], np.zeros(3, np.int64))
    edge.predicted(3, 11.0, [0, 1, 2], np.zeros(3, np.int64))
    edge.sent([10.0, 10.0, 11.0], [100, 50, 7])
    clean, noise = summarise(["clean", "noise"], [edge])
    assert (clean.uploaded, clean.bytes_up, noise.uploaded, noise.bytes_up) == (2, 150, 1, 7)


def test_a_batch_over_two_segments_is_booked_image_by_image() -> None:
    edge = tally()
    edge.predicted(0, 10.0, [0, 1, 2, 0, 1, 2], np.zeros(6, np.int64), selected=[1, 0, 1, 1, 1, 1])
    edge.sent([10.0] * 5, [10, 20, 30, 40, 50])
    clean, noise = summarise(["clean", "noise"], [edge])
    assert (clean.uploaded, clean.bytes_up) == (2, 30)
    assert (noise.uploaded, noise.bytes_up) == (3, 120)


def test_an_image_that_is_sent_again_counts_once_and_its_bytes_each_time() -> None:
    edge = tally()
    edge.predicted(0, 10.0, [0, 1, 2], np.zeros(3, np.int64), selected=[0, 1, 0])
    edge.sent([10.0], [7])
    edge.sent([10.0], [7])
    (row,) = summarise(["clean", "noise"], [edge])
    assert (row.uploaded, row.bytes_up) == (1, 14)


def test_an_update_is_booked_where_the_stream_stood() -> None:
    edge = tally()
    edge.predicted(0, 1.0, [0, 1, 2], np.zeros(3, np.int64))
    edge.swapped(1, 40)
    edge.predicted(3, 2.0, [0, 1, 2], np.zeros(3, np.int64))
    edge.swapped(2, 60)
    clean, noise = summarise(["clean", "noise"], [edge])
    assert (clean.bytes_down, noise.bytes_down, edge.version) == (0, 100, 2)


def test_a_segment_that_nobody_reached_has_no_row() -> None:
    edge = tally()
    edge.predicted(0, 1.0, [0, 1], np.zeros(2, np.int64))
    assert [row.name for row in summarise(["clean", "noise"], [edge])] == ["clean"]


def test_an_acknowledgement_may_come_before_the_line_about_its_prediction() -> None:
    edge = tally()
    edge.sent([10.0], [100])
    assert edge.uploaded.sum() == 0
    edge.predicted(0, 10.0, [0, 1, 2], np.zeros(3, np.int64))
    assert (edge.uploaded[0], edge.bytes_up[0]) == (1, 100)


def test_what_is_fetched_after_the_last_swap_is_booked_at_the_end() -> None:
    edge = tally()
    edge.predicted(0, 1.0, [0, 1, 2, 0, 1, 2], np.zeros(6, np.int64))
    edge.swapped(1, 40)
    edge.finished({"bytes_down": 65})
    assert summarise(["clean", "noise"], [edge])[1].bytes_down == 65


def test_the_sums_run_over_edges() -> None:
    edges = [tally(), tally()]
    for edge in edges:
        edge.predicted(0, 1.0, [0, 1, 2, 0, 1, 2], np.zeros(6, np.int64))
        edge.sent([1.0], [9])
    clean, noise = summarise(["clean", "noise"], edges)
    assert (clean.samples, noise.samples, clean.bytes_up) == (6, 6, 18)


def test_rolling_mean_against_a_loop() -> None:
    correct = np.random.default_rng(0).random(50) < 0.5
    expected = [100 * correct[max(0, i - 6) : i + 1].mean() for i in range(50)]
    np.testing.assert_allclose(rolling_mean(correct, 7), expected)
