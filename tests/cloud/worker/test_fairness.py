"""A fair draw across devices, and what tells a device apart from the others."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.cloud.store.base import Waiting
from cema.cloud.worker.fairness import KNOWN, MOST_DEVICES, WATCHED, DeviceRecord, Ledger, draw

FEATURES = 8
NAMES = st.sampled_from(["a", "b", "c", "d", "flood"])


def ledger(**learned: float) -> Ledger:
    """A ledger of devices that are known and alike."""
    record = {"seen": 100, "mean": [0.0] * FEATURES, "square": [1.0] * FEATURES, "agreed": 0.9}
    return Ledger(devices={name: DeviceRecord(learned=n, **record) for name, n in learned.items()})  # type: ignore[arg-type]


def waiting(*devices: str) -> list[Waiting]:
    return [Waiting(i, device) for i, device in enumerate(devices, 1)]


def rows(count: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (count, FEATURES)).astype(np.float32)


def observe(ledger: Ledger, name: str, count: int, *, shift: float = 0.0, agrees: bool = True) -> None:
    ledger.observe([name] * count, rows(count, shift, len(name)), np.full(count, agrees))


@given(devices=st.lists(NAMES, min_size=1, max_size=80), size=st.integers(1, 32), behind=st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_sample_is_chosen_replayed_left_out_or_still_waits(
    devices: list[str], size: int, behind: bool
) -> None:
    queue = waiting(*devices)
    drawn = draw(queue, size, ledger(a=10, b=20, flood=300), behind=behind)
    done = [w.seq for w in queue if w.seq <= drawn.cursor]
    assert sorted([*drawn.chosen, *drawn.held, *drawn.replay, *drawn.left_out]) == done
    assert len(drawn.chosen) <= size
    assert len(drawn.held) <= (0 if behind else size)
    assert set(drawn.watched) <= set(drawn.left_out)
    assert drawn.chosen == sorted(drawn.chosen)
    if behind:
        assert drawn.cursor == queue[-1].seq


@given(count=st.integers(1, 80), size=st.integers(1, 32), learned=st.floats(0, 1000))
def test_a_device_alone_is_served_in_order(count: int, size: int, learned: float) -> None:
    drawn = draw(waiting(*["a"] * count), size, ledger(a=learned), behind=False)
    assert drawn.chosen == list(range(1, min(size, count) + 1))
    assert drawn.replay == drawn.left_out == []


def test_those_that_are_behind_learn_from_the_newest_and_replay_the_rest() -> None:
    drawn = draw(waiting(*["a"] * 50), 16, ledger(a=9), behind=True)
    assert drawn.chosen == list(range(35, 51))
    assert drawn.replay == list(range(1, 35))


def test_in_the_long_run_a_flood_gets_hardly_more_than_the_others() -> None:
    book = ledger(a=80, b=80, c=80)
    chosen: Counter[str] = Counter()
    rng = np.random.default_rng(0)
    for _ in range(200):
        queue = waiting(*rng.permutation(["flood"] * 100 + ["a"] * 8 + ["b"] * 8 + ["c"] * 8).tolist())
        drawn = draw(queue, 32, book, behind=True)
        devices = [queue[seq - 1].device for seq in drawn.chosen]
        book.learned(devices)
        book.observe(devices, rows(len(devices)), np.full(len(devices), True))
        chosen.update(devices)
        replayed = Counter(queue[seq - 1].device for seq in drawn.replay)
        assert replayed["flood"] <= 8
    assert chosen["flood"] < 0.4 * chosen.total()
    assert min(chosen[name] for name in "abc") > 0.15 * chosen.total()


def test_an_upload_of_many_samples_at_once_is_no_flood() -> None:
    drawn = draw(waiting(*["a"] * 16, *["b"] * 16), 32, ledger(a=100, b=100, c=100), behind=False)
    assert len(drawn.chosen) == 32


def test_what_half_a_batch_cannot_take_of_an_upload_waits_for_the_next() -> None:
    drawn = draw(waiting(*["a"] * 32, *["b"] * 32), 32, ledger(a=100, b=100), behind=False)
    assert drawn.chosen == [*range(1, 17), *range(33, 49)]
    assert drawn.held == list(range(17, 33))
    assert drawn.replay == drawn.left_out == []
    assert drawn.cursor == 48
    assert drawn.after([90, 91]).held == drawn.held


def test_a_device_that_is_too_far_ahead_has_nothing_held() -> None:
    drawn = draw(waiting(*["a"] * 32, *["b"] * 32), 32, ledger(a=1000, b=100, c=100), behind=False)
    assert drawn.chosen == list(range(33, 49))
    assert drawn.held == list(range(49, 65))  # of b, and none of a
    drawn = draw(waiting(*["a"] * 64, *["b"] * 4), 8, ledger(a=155, b=100, c=100), behind=False)
    assert (
        len(drawn.chosen) + len(drawn.held) <= 2 + 4 + 8
    )  # a: 1.25 times the mean of the others, and one upload


def test_a_new_device_is_looked_at_before_anything_is_learned_from_it() -> None:
    book = ledger(a=50, b=50)
    drawn = draw(waiting(*["new"] * 60, *["a"] * 4), 32, book, behind=False)
    assert drawn.chosen == [61, 62, 63, 64]
    assert len(drawn.watched) == WATCHED
    observe(book, "new", KNOWN)
    assert book.allowance("new", 32, alone=False) > 0
    assert not book.watched("new")


def test_the_first_devices_of_a_cohort_are_learned_from_at_once() -> None:
    drawn = draw(waiting("a", "b", "c", "a"), 4, Ledger(), behind=False)
    assert drawn.chosen == [1, 2, 3, 4]


def test_where_most_devices_are_new_all_are_learned_from() -> None:
    book = ledger(a=50, b=50)
    for i in range(6):
        book.devices[f"new-{i}"] = DeviceRecord(seen=2)
    assert not book.watched("new-0")
    assert not book.watched("new-9")


def test_a_device_with_other_images_is_quarantined_and_comes_back() -> None:
    book = Ledger()
    for name in ("a", "bb", "ccc"):
        observe(book, name, 40)
    observe(book, "strange", 40, shift=5.0)
    assert book.quarantined() == ["strange"]
    drawn = draw(waiting("strange", "a", "strange", "strange"), 8, book, behind=False)
    assert (drawn.chosen, drawn.left_out) == ([2], [1, 3, 4])
    assert drawn.watched == [1, 3, 4]
    observe(book, "strange", 400)
    assert book.quarantined() == []


def test_a_device_that_the_model_disagrees_with_is_quarantined() -> None:
    book = Ledger()
    for name in ("a", "bb", "ccc"):
        observe(book, name, 40)
    observe(book, "liar", 40, agrees=False)
    assert book.quarantined() == ["liar"]


def test_where_every_device_sees_something_else_nobody_is_quarantined() -> None:
    book = Ledger()
    for shift, name in enumerate(("a", "bb", "ccc", "dddd", "eeeee")):
        observe(book, name, 40, shift=6.0 * shift)
    assert book.quarantined() == []


def test_of_two_devices_neither_is_told_apart() -> None:
    book = Ledger()
    observe(book, "a", 40)
    observe(book, "bb", 40, shift=9.0, agrees=False)
    assert book.quarantined() == []


def test_a_ledger_is_kept_and_stays_small() -> None:
    book = Ledger()
    for i in range(MOST_DEVICES + 50):
        book.learned([f"device-{i}"])
    assert len(book.devices) == MOST_DEVICES
    assert "device-0" not in book.devices
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(book), type=Ledger) == book


def test_statistics_that_are_not_finite_say_nothing() -> None:
    book = Ledger()
    book.observe(["a"], np.full((1, FEATURES), np.nan, np.float32), np.array([True]))
    assert book.devices["a"].mean == []
