"""What the cloud's worker relies on in every learner."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cema.adapt.algorithms import make_learner
from cema.adapt.base import Forgets, HasStatistics, Learner, PutsBack, StepReport, TakesLabels
from cema.adapt.config import AdaptConfig
from cema.errors import FormatError
from cema.models.spec import Model
from cema.ondevice.batch import Batch
from cema.ondevice.folding import check_statistics, fold, unfold
from cema.testing.networks import CLASSES, overflowing_gradients, random_images, small_model

__all__ = ["LearnerSuite"]

FRESH = 8


class LearnerSuite:
    """The suite. A stranger runs it on his own class.

    ::

        class TestMine(LearnerSuite):
            __test__ = True
            config = AdaptConfig(algorithm="package.module:Mine", fresh=8, replayed=12, replay_from=16, capacity=40)

    Attributes
    ----------
    config : AdaptConfig
        With ``fresh = 8`` and replay after 16 samples.
    """

    __test__ = False
    config: ClassVar[AdaptConfig] = AdaptConfig(fresh=FRESH, replayed=12, replay_from=16, capacity=40)

    def make(self, edge: Model | None = None, *, gone: frozenset[int] = frozenset()) -> Learner[int]:
        """Return a learner at the source models, to which numbers stand for images; those in `gone` have none."""

        def recall(items: Sequence[int]) -> list[npt.NDArray[np.uint8] | None]:
            return [None if item in gone else _image(item) for item in items]

        foundation = small_model(2, width=12, name="small-foundation")
        return make_learner(edge or small_model(), foundation, self.config, recall=recall, seed=3)

    def test_steps_are_numbered_and_counted(self) -> None:
        learner = self.make()
        reports = [self.feed(learner, step) for step in range(4)]
        assert [report.step for report in reports] == [1, 2, 3, 4]
        assert [report.fresh for report in reports] == [FRESH] * 4
        assert learner.steps == 4
        assert 0 < learner.replayable <= 4 * FRESH
        assert all(np.isfinite(list(report.losses.values())).all() for report in reports)

    def test_source_models_are_left_alone(self) -> None:
        edge = small_model()
        before = copy.deepcopy(edge.module.state_dict())
        self.feed(self.make(edge), 0)
        assert all(torch.equal(value, before[key]) for key, value in edge.module.state_dict().items())

    def test_a_restored_learner_continues_exactly(self) -> None:
        straight, resumed = self.make(), self.make()
        for step in range(3):
            self.feed(straight, step)
        data = straight.dumps()
        resumed.loads(data)
        assert resumed.dumps() == data
        assert (resumed.steps, resumed.replayable, resumed.since_change) == (
            straight.steps,
            straight.replayable,
            straight.since_change,
        )
        for learner in (straight, resumed):
            learner.replay()
            self.feed(learner, 3)
        assert straight.dumps() == resumed.dumps()

    def test_a_checkpoint_that_cannot_be_read_changes_nothing(self) -> None:
        learner = self.make()
        self.feed(learner, 0)
        before = learner.dumps()
        for data in (b"", b"not a checkpoint", before[:-7]):
            with pytest.raises(FormatError):
                learner.loads(data)
        assert learner.dumps() == before

    def test_replay_waits_for_samples_and_leaves_out_those_without_an_image(self) -> None:
        learner = self.make(gone=frozenset(range(0, 100, 3)))
        assert learner.replay() == StepReport()
        dropped = sum(self.feed(learner, step).dropped for step in range(3))
        steps = learner.steps
        report = learner.replay()
        assert report.step == learner.steps == steps + 1
        assert report.replayed > 0
        assert report.fresh == 0
        assert dropped + report.dropped > 0

    def test_skipped_samples_may_be_replayed(self) -> None:
        learner = self.make()
        learner.skip(range(20))
        assert learner.steps == 0
        assert learner.replayable == 20
        assert learner.replay().step == 1

    def test_a_redrawn_replay_is_another_one(self) -> None:
        drawn: list[tuple[int, ...]] = []

        def recall(items: Sequence[int]) -> list[npt.NDArray[np.uint8] | None]:
            drawn.append(tuple(items))
            return [_image(item) for item in items]

        for redraw in (False, True):
            foundation = small_model(2, width=12, name="small-foundation")
            learner = make_learner(small_model(), foundation, self.config, recall=recall, seed=3)
            learner.skip(range(40))
            if redraw:
                learner.redraw()
            learner.replay()
        assert drawn[0] != drawn[1]

    def test_after_a_restart_the_source_model_predicts_and_samples_stay(self) -> None:
        learner, images = self.make(), random_images(5, seed=50)
        source = learner.edge_logits(images)
        for step in range(3):
            self.feed(learner, step)
        kept = learner.replayable
        learner.restart()
        np.testing.assert_array_equal(learner.edge_logits(images), source)
        assert (learner.steps, learner.replayable) == (0, kept)

    def test_what_it_forgets_is_not_replayed_and_not_in_its_state(self) -> None:
        learner, other = self.make(), self.make()
        if not isinstance(learner, Forgets):
            pytest.skip("it cannot forget: the worker begins anew where samples were deleted")
        for step in range(4):
            self.feed(learner, step)
        kept = learner.replayable
        learner.forget(frozenset({0, 1, 2, 10_000}))
        assert learner.replayable == kept - 3
        other.loads(learner.dumps())
        assert other.replayable == kept - 3
        learner.forget(range(4 * FRESH))
        assert learner.replayable == 0
        assert learner.replay().step == 0
        self.feed(learner, 4)
        assert learner.replayable == FRESH
        assert np.isfinite(learner.edge_logits(random_images(4))).all()

    def test_labels_that_nobody_has_given_change_nothing(self) -> None:
        asked, plain = self.make(), self.make()
        if not isinstance(asked, TakesLabels):
            pytest.skip("it learns no labels: they count where models are compared, and nowhere else")
        asked.labels_from(lambda items: [None] * len(items))
        for step in range(4):
            for learner in (asked, plain):
                self.feed(learner, step)
                learner.replay()
        assert asked.dumps() == plain.dumps()
        asked.labels_from(lambda items: [item % CLASSES for item in items])
        for learner in (asked, plain):
            self.feed(learner, 4)
            learner.replay()
        assert asked.dumps() != plain.dumps()

    def test_predictions_and_norm_state_have_their_shapes(self) -> None:
        learner = self.make()
        self.feed(learner, 0)
        for logits in (learner.edge_logits(random_images(3)), learner.foundation_logits(random_images(3))):
            assert logits.shape == (3, CLASSES)
            assert logits.dtype == np.float32
        norm_state = learner.norm_state()
        assert {key.rpartition(".")[2] for key in norm_state} == {"scale", "shift"}
        assert all(np.isfinite(value).all() and value.dtype == np.float32 for value in norm_state.values())

    def test_statistics_that_it_tells_are_those_in_its_norm_state(self) -> None:
        learner = self.make()
        self.feed(learner, 0)
        if not isinstance(learner, HasStatistics):
            pytest.skip("it tells none: its updates have statistics folded into them")
        layers, norm_state = learner.statistics_layers(), learner.norm_state()
        assert len({layer.layer for layer in layers}) == len(layers)
        statistics = check_statistics(learner.statistics(), layers)
        again = fold(unfold(norm_state, statistics, layers), statistics, layers)
        assert again.keys() == norm_state.keys()
        for key, value in norm_state.items():
            np.testing.assert_allclose(again[key], value, rtol=1e-4, atol=1e-5)

    def test_a_batch_may_be_prepared_before_it_is_learned_from(self) -> None:
        plain, prepared = self.make(), self.make()
        if not isinstance(prepared, PutsBack):
            pytest.skip("it puts nothing back")
        for step in range(4):
            self.feed(plain, step)
            items = range(FRESH * step, FRESH * step + FRESH)
            batch = Batch([_image(item) for item in items])
            prepared.prepare(batch)
            prepared.learn(items, batch)
        assert plain.dumps() == prepared.dumps()

    def test_gradients_that_are_not_finite_spoil_nothing(self) -> None:
        learner = self.make()
        with overflowing_gradients():
            assert self.feed(learner, 0).skipped > 0
        self.feed(learner, 1)
        assert np.isfinite(learner.edge_logits(random_images(4))).all()
        learner.norm_state()

    @staticmethod
    def feed(learner: Learner[int], step: int) -> StepReport:
        """Let a learner learn from the `step`-th full batch."""
        items = range(FRESH * step, FRESH * step + FRESH)
        return learner.learn(items, Batch([_image(item) for item in items]))


def _image(item: int) -> npt.NDArray[np.uint8]:
    return random_images(1, seed=item)[0]
