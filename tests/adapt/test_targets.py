"""What the foundation model answered before, and how it is used again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.adapt.replay import ReplayBuffer
from cema.adapt.targets import Targets
from cema.adapt.taught import TaughtReplay
from cema.errors import FormatError
from cema.models.spec import Model
from cema.ondevice.batch import Batch

Photos = Callable[[int], list[np.ndarray]]


def item_of(number: int) -> str:
    return f"item {number}"


ITEMS = [item_of(i) for i in range(200)]


def image(item: str) -> np.ndarray:
    return np.full((2, 2, 3), ITEMS.index(item), np.uint8)


class Teacher:
    """Answers with the number of the image, and counts."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, images: Batch) -> torch.Tensor:
        numbers = [int(picture[0, 0, 0]) for picture in images]
        self.asked += numbers
        return torch.tensor([[float(n), -float(n)] for n in numbers])


def taught(*, refreshed: int, capacity: int = 200) -> TaughtReplay[str]:
    buffer = ReplayBuffer[str](capacity)
    return TaughtReplay(buffer, 2, lambda items: [image(item) for item in items], refreshed)


def answers(numbers: range | list[int]) -> torch.Tensor:
    return torch.tensor([[float(n), -float(n)] for n in numbers]).reshape(len(numbers), 2)


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "forget"]), st.lists(st.integers(0, 30), unique=True)), max_size=20
    )
)
def test_they_are_a_bounded_queue_of_what_was_made_last(
    operations: list[tuple[str, list[int]]],
) -> None:
    targets, model = Targets(2, most_bytes=5 * 4), dict[int, float]()
    for round_, (what, numbers) in enumerate(operations):
        items = [ITEMS[n] for n in numbers]
        if what == "put":
            targets.put(items, torch.full((len(items), 2), float(round_)))
            for n in numbers:
                model.pop(n, None)
                model[n] = float(round_)
            model = dict(list(model.items())[-5:])
        else:
            targets.forget(items)
            for n in numbers:
                model.pop(n, None)
        assert [n for n in range(31) if ITEMS[n] in targets] == sorted(model)
        known = list(model)
        assert targets.get([ITEMS[n] for n in known])[:, 0].tolist() == list(model.values())


def test_values_past_float16_are_cut_and_those_that_are_none_are_not_kept() -> None:
    targets = Targets(2)
    targets.put(ITEMS[:3], torch.tensor([[1e6, -1e6], [float("inf"), 0.0], [float("nan"), 0.0]]))
    assert [item in targets for item in ITEMS[:3]] == [True, True, False]
    assert targets.get(ITEMS[:2]).tolist() == [[65504.0, -65504.0], [65504.0, 0.0]]


def test_new_samples_bring_their_answers_and_few_are_asked_again() -> None:
    replay, teacher, rng = taught(refreshed=3), Teacher(), np.random.default_rng(0)
    replay.add(ITEMS[:60], answers(range(60)))
    for _ in range(5):
        teacher.asked.clear()
        drawn = replay.draw(20, rng, newest=None, teacher=teacher)
        assert len(teacher.asked) == 3
        numbers = [int(picture[0, 0, 0]) for picture in drawn.images]
        assert len(set(numbers)) == 20
        assert torch.equal(drawn.targets, answers(numbers)), "each image with its own answer"


def test_samples_without_an_answer_come_in_with_those_that_are_asked() -> None:
    replay, teacher, rng = taught(refreshed=4), Teacher(), np.random.default_rng(1)
    replay.add(ITEMS[:100])
    replay.add(ITEMS[100:130], answers(range(100, 130)))
    seen: set[int] = set()
    for _ in range(40):
        teacher.asked.clear()
        drawn = replay.draw(20, rng, newest=None, teacher=teacher)
        assert len(drawn.images) == 20
        assert len(teacher.asked) == 4, "the rest are samples that are known"
        seen |= set(teacher.asked)
    assert len(seen - set(range(100, 130))) > 60


def test_without_any_answer_all_that_are_drawn_are_asked() -> None:
    replay, teacher, rng = taught(refreshed=2), Teacher(), np.random.default_rng(0)
    replay.add(ITEMS[:40])
    assert len(replay.draw(10, rng, newest=None, teacher=teacher).images) == 10
    assert len(teacher.asked) == 10
    # And only among the newest where it is so said.
    drawn = replay.draw(10, rng, newest=10, teacher=teacher)
    assert {int(picture[0, 0, 0]) for picture in drawn.images} == set(range(30, 40))


def test_samples_that_left_and_samples_without_an_image_leave_no_answer() -> None:
    buffer = ReplayBuffer[str](10)
    replay = TaughtReplay(
        buffer, 2, lambda items: [None if item == ITEMS[12] else image(item) for item in items], 0
    )
    replay.add(ITEMS[:15], answers(range(15)))
    assert len(replay.targets) == 10
    drawn = replay.draw(10, np.random.default_rng(0), newest=None, teacher=Teacher())
    assert (len(drawn.images), drawn.dropped, len(replay.targets)) == (9, 1, 9)


def test_answers_are_part_of_the_state() -> None:
    replay, again = taught(refreshed=1), taught(refreshed=1)
    replay.add(ITEMS[:9], answers(range(9)))
    replay.add(ITEMS[9:12])
    items, tensors = replay.state()
    again.load(items, tensors)  # type: ignore[arg-type]
    one, other = (
        r.draw(8, np.random.default_rng(3), newest=None, teacher=Teacher()) for r in (replay, again)
    )
    assert torch.equal(one.targets, other.targets)
    assert again.state()[1].keys() == tensors.keys() == {"places", "logits"}
    assert taught(refreshed=1).state()[1] == {}


def test_a_learner_forgets_them_at_a_restart_and_refuses_others(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    pictures = dict(enumerate(photos(32)))
    config = AdaptConfig(fresh=8, replayed=8, replay_from=8, refreshed=2)
    learner: CemaLearner[int] = CemaLearner(
        edge, foundation, config, recall=lambda items: [pictures[i] for i in items]
    )
    for i in range(0, 32, 8):
        learner.learn(range(i, i + 8))
    state = learner.state_dict()
    assert state.tensors["targets.logits"].shape == (32, edge.classes)
    assert state.values["replay"] == {"runs": [[0, 32]]}
    before = learner.dumps()
    for name, value in (
        ("logits", torch.zeros(32, 3, dtype=torch.float16)),
        ("logits", torch.full((32, edge.classes), torch.nan, dtype=torch.float16)),
        ("places", torch.zeros(5, dtype=torch.int32)),
        ("places", torch.zeros(32, 2, dtype=torch.int32)),
        ("more", torch.zeros(1)),
    ):
        with pytest.raises(FormatError):
            learner.load_state_dict(state._replace(tensors=state.tensors | {f"targets.{name}": value}))
    assert learner.dumps() == before
    learner.restart()
    assert "targets.logits" not in learner.state_dict().tensors
    assert learner.replay().forwards == 16 + 16, "all that were drawn are asked"


@given(st.lists(st.integers(0, 40), unique=True), st.integers(0, 12))
def test_whole_numbers_are_kept_as_runs(numbers: list[int], capacity: int) -> None:
    buffer, again = ReplayBuffer[int](100), ReplayBuffer[int](100)
    buffer.add(numbers)
    again.load(buffer.state())  # type: ignore[arg-type]
    assert again.items() == buffer.items()
    again.load(numbers)  # as earlier versions wrote them
    assert again.items() == buffer.items()
    smaller = ReplayBuffer[int](capacity)
    smaller.load(buffer.state())  # type: ignore[arg-type]
    assert smaller.items() == (tuple(numbers[-capacity:]) if capacity else ())
