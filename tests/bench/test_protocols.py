"""Schedules: exact, complete and seeded."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.bench.protocols import (
    PROTOCOLS,
    VISITS,
    Condition,
    Schedule,
    is_correlated,
    make_schedule,
    sequence,
    streams,
)

LABELS = np.arange(40) % 4


def schedule(protocol: str, stream: int = 0, visits: int = 3, **changes: object) -> Schedule:
    segments = streams(protocol, ["fog", "snow"], [2, 3], visits=visits)[stream]
    return make_schedule(protocol, segments, LABELS, **{"batch": 16, "seed": 0} | changes)  # type: ignore[arg-type]


def test_which_streams_there_are() -> None:
    fog2, snow2, fog3, snow3 = (Condition(name, s) for s in (2, 3) for name in ("fog", "snow"))
    corruptions = ["fog", "snow"]
    assert streams("reset", corruptions, [2, 3]) == [(fog2,), (snow2,), (fog3,), (snow3,)]
    assert streams("correlated", corruptions, [2, 3]) == streams("reset", corruptions, [2, 3])
    assert streams("continual", corruptions, [2, 3]) == [(fog2, snow2), (fog3, snow3)]
    for same in ("mixed", "mixed-correlated", "continual-correlated"):
        assert streams(same, corruptions, [2, 3]) == streams("continual", corruptions, [2, 3])
    for recurring in ("recurring", "recurring-correlated"):
        twice = [(fog2, snow2) * 2, (fog3, snow3) * 2]
        assert streams(recurring, corruptions, [2, 3], visits=2) == twice
        assert len(streams(recurring, corruptions, [2])[0]) == 2 * VISITS == 20
    (ramp,) = streams("gradual", corruptions, [2, 3])
    assert [(c.corruption, c.severity) for c in ramp[:5]] == [("fog", s) for s in (1, 2, 3, 2, 1)]
    assert {c.corruption for c in ramp[5:]} == {"snow"}
    assert streams("continual", ["clean"], [0]) == [(Condition("clean", 0),)]
    assert streams("gradual", ["clean"], [0]) == [(Condition("clean", 0),)]


def test_a_schedule_is_exactly_this() -> None:
    made = make_schedule("continual", streams("continual", ["fog", "snow"], [5])[0], [0] * 5, batch=2, seed=7)
    assert made.conditions == (Condition("fog", 5), Condition("snow", 5))
    assert made.condition.tolist() == [0] * 5 + [1] * 5
    assert made.bounds.tolist() == [0, 2, 4, 5, 7, 9, 10]
    # Recorded once: the same seed must give these orders on every machine and in every version.
    assert made.sample.tolist() == EXPECTED


EXPECTED = [2, 4, 3, 1, 0, 2, 0, 1, 4, 3]


def test_a_schedule_that_returns_is_exactly_this() -> None:
    segments = streams("recurring", ["fog", "snow"], [5], visits=2)[0]
    made = make_schedule("recurring", segments, [0] * 5, batch=3, seed=7)
    assert made.conditions == (Condition("fog", 5), Condition("snow", 5))
    assert made.condition.tolist() == [0] * 5 + [1] * 5 + [0] * 5 + [1] * 5
    assert made.visit.tolist() == [0] * 10 + [1] * 10
    assert made.bounds.tolist() == [0, 3, 5, 8, 10, 13, 15, 18, 20]
    # The first time as continual does, and then in other orders.
    assert made.sample.tolist() == [*EXPECTED, 1, 3, 0, 2, 4, 1, 3, 4, 2, 0]


# Recorded once, those of continual, correlated, gradual, mixed and reset before there were visits.
DIGESTS = {
    "continual": "d42aa3466e70a526",
    "continual-correlated": "8a6c0e8fe8949bb5",
    "correlated": "b13477378f0fb500",
    "gradual": "7357c3414ad24a15",
    "mixed": "cf4389ca21606fc0",
    "mixed-correlated": "ef022a2c0af29335",
    "recurring": "f4558f2dc8639065",
    "recurring-correlated": "8018c25bfdb02ae7",
    "reset": "4d36016c45c73bb3",
}


def test_schedules_are_the_same_in_every_version() -> None:
    assert DIGESTS.keys() == set(PROTOCOLS)
    for protocol, expected in DIGESTS.items():
        made = schedule(protocol, visits=VISITS)
        parts = (made.condition, made.sample, made.bounds)
        found = hashlib.sha256(b"".join(part.astype("<i8").tobytes() for part in parts)).hexdigest()
        assert found[:16] == expected, protocol


def test_a_name_says_the_sequence_and_the_order_of_labels() -> None:
    sequences = {protocol: sequence(protocol) for protocol in PROTOCOLS}
    assert set(sequences.values()) == {"continual", "gradual", "mixed", "recurring", "reset"}
    assert sequences["correlated"] == "reset"
    assert {p for p in PROTOCOLS if is_correlated(p)} == {p for p in PROTOCOLS if "correlated" in p}


@pytest.mark.parametrize("protocol", ["recurring", "recurring-correlated"])
def test_every_visit_shows_all_images_each_time_in_another_order(protocol: str) -> None:
    made = schedule(protocol)
    once = schedule(protocol.replace("recurring", "continual"))
    length = len(once)
    assert len(made) == 3 * length
    assert made.visit.tolist() == [0] * length + [1] * length + [2] * length
    assert (made.sample[:length] == once.sample).all()
    orders = {tuple(made.sample[(made.condition == c) & (made.visit == v)]) for c in (0, 1) for v in range(3)}
    assert len(orders) == 6
    assert all(sorted(order) == list(range(40)) for order in orders)


def test_a_longer_stream_begins_as_a_shorter_one() -> None:
    short, long = schedule("recurring", visits=2), schedule("recurring", visits=5)
    assert (long.sample[: len(short)] == short.sample).all()
    assert (schedule("recurring", visits=1).sample == schedule("continual").sample).all()


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if sequence(p) != "recurring"])
def test_every_image_is_seen_once_per_corruption(protocol: str) -> None:
    made = schedule(protocol)
    for name in {condition.corruption for condition in made.conditions}:
        mine = [i for i, condition in enumerate(made.conditions) if condition.corruption == name]
        assert sorted(made.sample[np.isin(made.condition, mine)]) == list(range(40))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_seed_decides_everything(protocol: str) -> None:
    one, same, other = schedule(protocol), schedule(protocol), schedule(protocol, seed=1)
    assert (one.sample == same.sample).all()
    assert (one.condition == same.condition).all()
    assert (one.sample != other.sample).any()


def test_reset_and_continual_show_a_corruption_in_the_same_order() -> None:
    continual = schedule("continual")
    snow = continual.sample[continual.condition == 1]
    assert (snow == schedule("reset", stream=1).sample).all()


def test_labels_in_order_are_so_in_whichever_sequence() -> None:
    alone = schedule("correlated", stream=1).sample
    continual = schedule("continual-correlated")
    assert (continual.sample[continual.condition == 1] == alone).all()


@pytest.mark.parametrize(
    "protocol", ["continual", "continual-correlated", "gradual", "recurring", "recurring-correlated"]
)
def test_no_batch_holds_two_segments(protocol: str) -> None:
    made = schedule(protocol)
    where = made.condition * 10 + made.visit
    assert all(len(set(where[made.places(b)].tolist())) == 1 for b in range(made.batches))


def test_mixed_mixes() -> None:
    made = schedule("mixed")
    assert all(len(set(made.condition[made.places(b)].tolist())) == 2 for b in range(made.batches))
    assert made.bounds.tolist() == [0, 16, 32, 48, 64, 80]
    assert not made.visit.any()


def test_mixed_with_labels_in_order_mixes_corruptions_and_not_labels() -> None:
    labels = np.arange(2000) % 10
    segments = [Condition(name, 3) for name in ("fog", "snow", "frost")]
    made = make_schedule("mixed-correlated", segments, labels, batch=64, seed=0, concentration=0.01)
    found = labels[made.sample]
    assert (found[1:] == found[:-1]).mean() > 0.98
    # Where a label stays, all corruptions come by.
    batches = [set(made.condition[made.places(b)].tolist()) for b in range(made.batches)]
    assert np.mean([len(batch) == 3 for batch in batches]) > 0.95
    shuffled = labels[make_schedule("mixed", segments, labels, batch=64, seed=0).sample]
    assert (shuffled[1:] == shuffled[:-1]).mean() < 0.15


def test_gradual_spreads_the_images_over_the_ramp() -> None:
    made = schedule("gradual")
    assert made.conditions[:3] == tuple(Condition("fog", s) for s in (1, 2, 3))
    # 40 images in five segments of eight; severities 1 and 2 are visited twice.
    assert np.bincount(made.condition).tolist() == [16, 16, 8, 16, 16, 8]
    assert made.condition[:40].tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [1] * 8 + [0] * 8
    assert made.visit[:40].tolist() == [0] * 24 + [1] * 16
    assert sorted(made.sample[:40]) == list(range(40))


def repeats(order: np.ndarray) -> float:
    """Return how often a label is that of the sample before."""
    labels = (np.arange(2000) % 10)[order]
    return float((labels[1:] == labels[:-1]).mean())


def test_correlated_labels_come_in_pieces_and_the_concentration_says_how_long() -> None:
    segments = [Condition("fog", 3)]

    def made(concentration: float) -> float:
        labels = np.arange(2000) % 10
        return repeats(
            make_schedule(
                "correlated", segments, labels, batch=64, seed=0, concentration=concentration
            ).sample
        )

    shuffled = repeats(make_schedule("reset", segments, np.arange(2000) % 10, batch=64, seed=0).sample)
    assert shuffled < 0.15
    # Ten classes in ten slots are at most a hundred pieces.
    assert made(100.0) > 0.9
    assert made(0.01) > made(100.0)
    assert made(0.01) > 0.98


def test_ten_classes_are_spread_over_ten_slots() -> None:
    made = make_schedule("correlated", [Condition("fog", 3)], np.arange(20) % 10, batch=16, seed=7)
    # Recorded when slots were as many as classes, however many.
    assert made.sample.tolist() == TEN_CLASSES


TEN_CLASSES = [7, 3, 13, 9, 14, 1, 10, 0, 4, 6, 16, 18, 15, 5, 19, 8, 11, 2, 12, 17]


def labels_in_a_batch(protocol: str, labels: np.ndarray) -> float:
    """Return how many different labels a batch of 64 holds on average."""
    made = make_schedule(protocol, [Condition("fog", 3)], labels, batch=64, seed=0, concentration=0.1)
    return float(
        np.mean([len(set(labels[made.sample[made.places(b)]].tolist())) for b in range(made.batches)])
    )


def test_a_thousand_classes_are_correlated_too() -> None:
    labels = np.arange(50_000) % 1000
    # The sampler of Yuan et al. makes 25.8.
    assert 20 < labels_in_a_batch("correlated", labels) < 35
    assert labels_in_a_batch("reset", labels) > 60


def test_edges_are_dealt_round_robin() -> None:
    assert schedule("reset", edges=2, batch=10).edge.tolist() == [0, 1, 0, 1]


@given(
    st.integers(1, 50), st.integers(1, 20), st.integers(1, 4), st.sampled_from(PROTOCOLS), st.integers(0, 3)
)
def test_batches_cover_the_stream(count: int, batch: int, edges: int, protocol: str, seed: int) -> None:
    labels = np.arange(count) % 3
    for segments in streams(protocol, ["fog", "snow"], [3], visits=2):
        made = make_schedule(protocol, segments, labels, batch=batch, seed=seed, edges=edges)
        sizes = np.diff(made.bounds)
        assert made.bounds[0] == 0
        assert made.bounds[-1] == len(made)
        assert (sizes >= 1).all()
        assert (sizes <= batch).all()
        assert len(made.edge) == made.batches
        assert made.edge.max() < edges


@pytest.mark.parametrize(
    "changes", [{"batch": 0}, {"edges": 0}, {"concentration": 0.0}, {"protocol": "none"}, {"labels": []}]
)
def test_what_makes_no_schedule_is_refused(changes: dict[str, object]) -> None:
    arguments = {"protocol": "reset", "labels": [0, 1], "batch": 1, "seed": 0} | changes
    with pytest.raises(ValueError, match=r"expected one of|must be|needs"):
        make_schedule(segments=[Condition("fog", 3)], **arguments)  # type: ignore[arg-type]


def test_an_unknown_protocol_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="mixed-correlated, recurring, recurring-correlated, reset"):
        streams("none", ["fog"], [3])


def test_a_stream_without_visits_is_refused() -> None:
    with pytest.raises(ValueError, match="visits must be at least 1, got 0"):
        streams("recurring", ["fog"], [3], visits=0)
