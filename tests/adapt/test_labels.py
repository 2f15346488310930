"""True labels in a learner: what they change, and that nothing changes without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.adapt.base import TakesLabels
from cema.adapt.config import AdaptConfig, LossWeights
from cema.adapt.labels import UNLABELLED, TrueLabels, corrected
from cema.adapt.learner import CemaLearner
from cema.adapt.losses import distillation_loss, entropy_loss
from cema.adapt.replay import ReplayBuffer
from cema.models.spec import Model
from cema.ondevice.batch import Batch

Photos = Callable[[int], list[np.ndarray]]
QUICK = AdaptConfig(fresh=8, replayed=12, capacity=60, replay_from=16, window=24, chunk=5)
CLASSES = 4


class Cohort:
    """A learner over numbered photographs, the labels that it is given, and what it asks for."""

    def __init__(self, edge: Model, foundation: Model, photos: Photos, **values: object) -> None:
        self.images = photos(200)
        self.truth: dict[int, int] = {}
        self.recalled: list[list[int]] = []
        self.gone: set[int] = set()
        config = msgspec.structs.replace(QUICK, **values)
        self.learner = CemaLearner(edge, foundation, config, recall=self._recall, seed=2)
        self.learner.labels_from(lambda items: [self.truth.get(item) for item in items])

    def _recall(self, items: Sequence[int]) -> list[np.ndarray | None]:
        self.recalled.append(list(items))
        return [None if item in self.gone else self.images[item] for item in items]

    def feed(self, steps: range) -> None:
        for step in steps:
            items = range(8 * step, 8 * step + 8)
            self.learner.learn(items, Batch([self.images[i] for i in items]))

    def sure_of(self, items: Sequence[int]) -> float:
        """Return how probable the edge model takes the true classes to be, on average."""
        logits = torch.from_numpy(self.learner.edge_logits([self.images[i] for i in items]))
        return float(logits.softmax(1)[range(len(items)), [self.truth[i] for i in items]].mean())


@settings(deadline=None)
@given(data=st.data())
def test_a_corrected_teacher_says_the_true_class_and_is_as_sure_as_before(data: st.DataObject) -> None:
    rows, classes = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 6))
    values = st.lists(st.integers(-50, 50), min_size=classes, max_size=classes)
    logits = torch.tensor([data.draw(values) for _ in range(rows)], dtype=torch.float32).reshape(
        rows, classes
    )
    labels = torch.tensor(
        [data.draw(st.integers(UNLABELLED, classes - 1)) for _ in range(rows)], dtype=torch.int64
    )
    found = corrected(logits, labels)
    assert torch.equal(found.sort(dim=1).values, logits.sort(dim=1).values)
    for row, label in enumerate(labels.tolist()):
        if label == UNLABELLED:
            assert torch.equal(found[row], logits[row])
        else:
            assert found[row, label] == logits[row].max()
            others = {label, int(logits[row].argmax())}
            same = [c for c in range(classes) if c not in others]
            assert torch.equal(found[row, same], logits[row, same])


@pytest.mark.parametrize(
    "weights", [AdaptConfig().loss_weights, AdaptConfig(preset="reference").loss_weights]
)
def test_a_labelled_sample_weighs_one_at_least(weights: LossWeights) -> None:
    rng = torch.Generator().manual_seed(0)
    edge, teacher = (3 * torch.randn(6, CLASSES, generator=rng, dtype=torch.float64) for _ in range(2))
    labelled = torch.tensor([True, False, True, False, False, True])
    e_max = 0.4 * math.log(CLASSES)
    terms = distillation_loss(edge, teacher, weights, e_max, labelled=labelled)
    expected, raised = {"kl": 0.0, "ce": 0.0, "entropy": 0.0}, 0
    for g, f, known in zip(edge, teacher, labelled.tolist(), strict=True):
        p, q = g.softmax(0), f.softmax(0)
        entropy = {"edge": float(-(p * p.log()).sum()), "foundation": float(-(q * q.log()).sum())}
        h = {side: max(math.exp(e_max - value), float(known)) for side, value in entropy.items()}
        raised += known and h[weights.teaching_weight] == 1.0
        first, second = (p, q) if weights.divergence == "edge||foundation" else (q, p)
        expected["kl"] += h[weights.teaching_weight] * float((first * (first / second).log()).sum()) / 6
        expected["ce"] -= h[weights.teaching_weight] * float(p[f.argmax()].log()) / 6
        expected["entropy"] += h[weights.entropy_weight] * entropy["edge"] / 6
    assert raised, "some sample would have weighed less"
    assert float(terms.kl) == pytest.approx(weights.kl * expected["kl"], rel=1e-9)
    assert float(terms.ce) == pytest.approx(weights.ce * expected["ce"], rel=1e-9)
    assert float(terms.entropy) == pytest.approx(weights.entropy * expected["entropy"], rel=1e-9)


def test_the_foundation_model_learns_a_label_by_cross_entropy() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, e_max = torch.randn(3, CLASSES, generator=rng, dtype=torch.float64), 0.5
    p = logits.softmax(1)
    entropy = -(p * p.log()).sum(1)
    expected = (-p[0, 2].log() + (torch.exp(e_max - entropy) * entropy)[1:].sum()) / 3
    labels = torch.tensor([2, UNLABELLED, UNLABELLED])
    assert float(entropy_loss(logits, e_max, labels)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("values", [{}, {"passes": 3, "average": 0.9}, {"replay_scope": "since_change"}])
def test_without_labels_all_is_the_same_to_the_bit(
    edge: Model, foundation: Model, photos: Photos, values: dict[str, object]
) -> None:
    asked, plain = (Cohort(edge, foundation, photos, **values) for _ in range(2))
    plain.learner._truth.source = None
    asked.truth = {1000: 1}  # of a sample that nobody has seen
    for cohort in (asked, plain):
        cohort.feed(range(5))
        cohort.learner.replay()
        cohort.feed(range(5, 7))
    assert asked.learner.dumps() == plain.learner.dumps()
    assert asked.recalled == plain.recalled
    assert isinstance(asked.learner, TakesLabels)


def test_labelled_samples_are_replayed_again_and_again_and_half_of_what_is_replayed_at_most(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    cohort = Cohort(edge, foundation, photos)
    cohort.feed(range(5))
    cohort.truth = dict.fromkeys((3, 4, 5), 1)
    for _ in range(3):
        cohort.recalled.clear()
        cohort.learner.replay()
        drawn = cohort.recalled[-1]
        assert {3, 4, 5} <= set(drawn)
        assert len(drawn) == len(set(drawn)) == 20
    cohort.truth = dict.fromkeys(range(40), 1)
    cohort.recalled.clear()
    cohort.learner.replay()
    labelled, drawn = cohort.recalled
    assert len(labelled) == 6
    assert set(labelled) <= set(drawn)


def test_labelled_samples_are_replayed_before_there_are_many(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    cohort = Cohort(edge, foundation, photos)
    cohort.feed(range(1))
    assert cohort.learner.replay().step == 0
    cohort.truth = {1: 2, 6: 3}
    report = cohort.learner.replay()
    assert (report.step, report.replayed) == (2, 2)


def test_a_labelled_sample_whose_image_is_gone_is_left_out(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    cohort = Cohort(edge, foundation, photos)
    cohort.feed(range(3))
    cohort.truth, cohort.gone = {1: 2, 6: 3}, {1}
    drawn = cohort.learner._draw_labelled()
    assert (drawn.items, drawn.labels.tolist(), len(drawn.images)) == ([6], [3], 1)
    assert cohort.learner.replay().step > 0


@pytest.mark.parametrize("values", [{}, {"foundation_lr": 0.0}, {"passes": 2}, {"statistics": "step"}])
def test_the_edge_model_learns_what_a_person_says_against_the_foundation_model(
    edge: Model, foundation: Model, photos: Photos, values: dict[str, object]
) -> None:
    labelled, plain = (Cohort(edge, foundation, photos, edge_lr=0.01, **values) for _ in range(2))
    answers = plain.learner.foundation_logits(plain.images[:16]).argmax(1)
    truth = {i: int((answer + 1) % CLASSES) for i, answer in enumerate(answers)}
    for cohort in (labelled, plain):
        cohort.truth = truth if cohort is labelled else {}
        cohort.feed(range(2))
        for _ in range(20):
            cohort.learner.replay()
    plain.truth = truth
    items = list(truth)
    assert labelled.sure_of(items) > plain.sure_of(items) + 0.2


def test_the_foundation_model_learns_labels_of_earlier_samples_too(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    cohort = Cohort(edge, foundation, photos, foundation_lr=0.2)
    cohort.feed(range(3))
    images = cohort.images[:6]
    answers = cohort.learner.foundation_logits(images).argmax(1)
    cohort.truth = {i: int((answer + 1) % CLASSES) for i, answer in enumerate(answers)}

    def sure() -> float:
        logits = torch.from_numpy(cohort.learner.foundation_logits(images))
        return float(logits.softmax(1)[range(6), list(cohort.truth.values())].mean())

    before = sure()
    for _ in range(30):
        cohort.learner.replay()
    assert sure() > before + 0.1


def test_what_a_learner_reports_stays_the_foundation_models_label(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    labelled, plain = (Cohort(edge, foundation, photos) for _ in range(2))
    labelled.truth = dict.fromkeys(range(8), 0)
    items = range(8)
    reports = [c.learner.learn(items, Batch(c.images[:8])) for c in (labelled, plain)]
    assert reports[0].labels is not None
    np.testing.assert_array_equal(reports[0].labels, reports[1].labels)


def test_what_is_no_class_of_the_models_is_no_label(edge: Model, foundation: Model, photos: Photos) -> None:
    asked, plain = (Cohort(edge, foundation, photos) for _ in range(2))
    asked.truth = {i: (-1, CLASSES, 700)[i % 3] for i in range(40)}
    for cohort in (asked, plain):
        cohort.feed(range(4))
        cohort.learner.replay()
    assert asked.learner.dumps() == plain.learner.dumps()
    asked.truth[3] = 1
    labels = asked.learner._truth.of([2, 3, 4])
    assert labels is not None
    assert labels.tolist() == [UNLABELLED, 1, UNLABELLED]


def test_no_chance_is_used_where_all_labelled_samples_fit() -> None:
    buffer = ReplayBuffer[int](10)
    buffer.add(range(10))
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(10)]
    labels = TrueLabels(buffer, 10, lambda items: [images[item] for item in items])
    labels.source = lambda items: [item if item % 2 else None for item in items]
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    assert labels.draw(5, rng, newest=None).items == [1, 3, 5, 7, 9]
    assert labels.draw(5, rng, newest=3).items == [7, 9]
    assert labels.draw(0, rng, newest=None).items == []
    assert rng.bit_generator.state == state
    assert len(labels.draw(2, rng, newest=None).items) == 2
    assert rng.bit_generator.state != state
