"""What a learner keeps of single samples, and forgets when it is told to."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from cema.adapt.changes import ChangeDetector
from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.models.spec import Model
from cema.ondevice.batch import Batch

Photos = Callable[[int], list[np.ndarray]]
QUICK = AdaptConfig(fresh=8, replayed=12, capacity=40, replay_from=16, window=24, chunk=5)


def learner_of(edge: Model, foundation: Model, photos: Photos, **values: object) -> CemaLearner[int]:
    images = photos(200)
    config = msgspec.structs.replace(QUICK, **values)
    return CemaLearner(edge, foundation, config, recall=lambda items: [images[i] for i in items])


def feed(learner: CemaLearner[int], photos: Photos, steps: range) -> None:
    images = photos(200)
    for step in steps:
        items = range(8 * step, 8 * step + 8)
        learner.learn(items, Batch([images[i] for i in items]))


def test_nothing_of_a_forgotten_sample_is_in_the_state(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    learner = learner_of(edge, foundation, photos)
    feed(learner, photos, range(4))
    gone, left = list(range(20, 30)), [30, 31]
    rows = {i: Batch([photos(200)[i]]).statistics(edge.preprocessing).tobytes() for i in (*gone, *left)}
    answers = {
        i: learner._taught.targets.get([item]).half().numpy().tobytes()
        for i, item in zip(
            (*gone, *left), [item for item in learner.replay_buffer.items() if item >= 20], strict=True
        )
    }
    before = learner.dumps()
    assert all(rows[i] in before and answers[i] in before for i in (*gone, *left))
    # Numbers as they come from elsewhere: equal to those in the buffer, and other objects.
    learner.forget([int(str(i)) for i in gone])
    after = learner.dumps()
    assert not any(rows[i] in after or answers[i] in after for i in gone)
    assert all(rows[i] in after and answers[i] in after for i in left)
    assert set(learner.replay_buffer.items()) == set(range(32)) - set(gone)


def test_what_was_forgotten_stays_so_after_a_restart(edge: Model, foundation: Model, photos: Photos) -> None:
    learner, again = (learner_of(edge, foundation, photos) for _ in range(2))
    feed(learner, photos, range(4))
    again.loads(learner.dumps())
    for one in (learner, again):
        one.forget(range(28))
        feed(one, photos, range(4, 6))
    assert learner.dumps() == again.dumps()
    assert learner.since_change == 48 - 28


def test_rows_whose_samples_are_not_known_go_with_the_first_that_are_forgotten() -> None:
    detector = ChangeDetector(window=24, limit=0.0, batch=8)
    for i in range(3):
        detector.observe(np.full((8, 2), i, np.float32))
        if i:
            detector.name_latest(range(8 * i, 8 * i + 8))
    arrays, values = detector.state()
    older = ChangeDetector(window=24, limit=0.0, batch=8)
    older.load(arrays, {key: value for key, value in values.items() if key != "items"})
    detector.forget({8, 9, 10})
    rows = detector.rows()
    assert rows is not None
    assert rows[:, 0].tolist() == [1.0] * 5 + [2.0] * 8
    older.forget({1000})
    assert older.rows() is None


def test_a_bank_is_forgotten_as_a_whole(edge: Model, foundation: Model, photos: Photos) -> None:
    learner = learner_of(edge, foundation, photos, bank=2)
    feed(learner, photos, range(4))
    learner.bank.leave(learner.changes.rows())
    assert len(learner.bank.entries) == 1
    learner.forget([0])
    assert learner.bank.entries == []
    assert learner.dumps()
