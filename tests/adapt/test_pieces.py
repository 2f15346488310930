"""Training passes in pieces, and running statistics that follow in the pass that learns."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.adapt.norm import prepare
from cema.adapt.pieces import activation_bytes, even_slices
from cema.adapt.statistics import RunningStatistics
from cema.adapt.trainable import TrainableModel
from cema.models.spec import Model
from cema.ondevice.batch import Batch

Photos = Callable[[int], list[np.ndarray]]
CONFIG = AdaptConfig(fresh=12, window=36)


def trainable(model: Model, config: AdaptConfig = CONFIG) -> TrainableModel:
    return TrainableModel(model, config, 0.1, device="cpu", dtype="float32")


def squares(logits: torch.Tensor, rows: slice) -> torch.Tensor:
    return logits.square().sum() / 12


@given(st.integers(0, 300), st.integers(1, 40))
def test_slices_cover_a_range_evenly(count: int, most: int) -> None:
    slices = even_slices(count, most)
    assert [i for rows in slices for i in range(rows.start, rows.stop)] == list(range(count))
    lengths = {rows.stop - rows.start for rows in slices}
    assert all(0 < length <= most for length in lengths)
    assert max(lengths, default=0) - min(lengths, default=0) <= 1


def test_what_an_image_leaves_in_memory_is_what_autograd_saves() -> None:
    # A convolution saves its input and its weight, the activation its result; the weight is there in any case.
    module = nn.Sequential(nn.Conv2d(2, 5, 1, bias=False), nn.ReLU()).requires_grad_(True)
    inputs = torch.ones(3, 2, 7, 7)
    assert activation_bytes(module, module, inputs) == 4 * 7 * 7 * (2 + 5)


@pytest.mark.parametrize("pieces", [5, 12])
def test_pieces_hold_no_more_images_than_fit(
    pieces: int, edge: Model, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trainable(edge)
    taken = activation_bytes(model.module, model.network, model.inputs(photos(2)))
    monkeypatch.setattr(model, "_config", CONFIG.__class__(activations_mb=1))
    passed: list[int] = []
    model.module.register_forward_hook(lambda module, inputs, output: passed.append(len(output)))
    many = Batch(photos(2**20 // taken + 1))
    model.learn([many, Batch(photos(pieces))], lambda logits, rows: logits.sum() / 100)
    assert passed == [2, (len(many)) // 2, len(many) - len(many) // 2, pieces]  # two images to find out


@pytest.mark.parametrize("most", [1000, 5])
def test_following_in_the_pass_that_learns_is_following_before_it(
    most: int, edge: Model, photos: Photos
) -> None:
    """Each layer uses its new statistics: afterwards the model as devices run it gives the very logits."""
    model, images = trainable(edge), [Batch(photos(36)[i : i + 12]) for i in (0, 12, 24)]
    model._piece = most
    model.optimizer.param_groups[0]["lr"] = 0.0
    for batch in images:
        lesson = model.learn([batch, Batch(photos(7))], squares, follow=True)
        torch.testing.assert_close(lesson.logits[:12], model.logits(batch), rtol=1e-4, atol=1e-5)
    # Each layer's statistics are those of what all three batches were in front of it when they were passed.
    assert [count for count, _ in model.statistics._entries] == [12, 12, 12]
    union = torch.stack([flat for _, flat in model.statistics._entries]).double()
    mean = union[:, 0].mean(0)
    variance = (union[:, 1] + (union[:, 0] - mean) ** 2).mean(0)
    expected = torch.stack([mean, variance])
    torch.testing.assert_close(model.statistics.running().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", ["first_batch", "source"])
@pytest.mark.parametrize("window", [None, 20])
def test_the_first_layer_follows_as_it_would_by_itself(start: str, window: int | None) -> None:
    """In front of the first layer nothing depends on the way of following: both ways must agree to the digit."""
    torch.manual_seed(0)
    layers = [prepare(nn.Sequential(nn.BatchNorm2d(3)))[1]["0"] for _ in range(2)]
    together, apart = (
        RunningStatistics([layer], start=start, window=window, momentum=0.1, batch=8)  # type: ignore[arg-type]
        for layer in layers
    )
    for step in range(4):
        batch = torch.randn(6 + step, 3, 4, 4) * (1 + step) + step
        with together.following(len(batch), reset=step == 2):
            layers[0](batch)
        assert together.observe(len(batch), reset=step == 2, followed=True)
        layers[1].mode = "batch"
        layers[1](batch)
        assert apart.observe(len(batch), reset=step == 2)
        torch.testing.assert_close(together.running(), apart.running(), rtol=1e-5, atol=1e-6)


def test_a_batch_without_statistics_moves_nothing_and_is_still_learned_from(
    photos: Photos, edge: Model
) -> None:
    model = trainable(edge)
    # One value per channel in a layer: no variance.
    model.module.head = nn.Sequential(nn.BatchNorm1d(8), model.module.head)  # type: ignore[assignment]
    edge_with = Model(
        name="flat", module=model.module, preprocessing=edge.preprocessing, classes=edge.classes
    )
    model = trainable(edge_with)
    before, parameter = model.statistics.running(), copy.deepcopy(model.parameters)
    lesson = model.learn([Batch(photos(1))], squares, follow=True)
    assert lesson.moved
    torch.testing.assert_close(model.statistics.running(), before, rtol=0, atol=0)
    assert any(not torch.equal(parameter[name], p) for name, p in model.parameters.items())


def test_pieces_of_a_model_without_batch_statistics_give_the_whole_gradient(
    photos: Photos, edge: Model
) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 4)
    )
    model = Model(name="groups", module=module.eval(), preprocessing=edge.preprocessing, classes=4)
    states = []
    for most in (1000, 5):
        learned = trainable(model)
        learned._piece = most
        learned.learn([Batch(photos(12)), Batch(photos(9))], squares, follow=True)
        states.append({name: p.detach().clone() for name, p in learned.parameters.items()})
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-5, atol=1e-6)


def test_a_step_passes_each_image_as_seldom_as_it_can(edge: Model, foundation: Model, photos: Photos) -> None:
    config = AdaptConfig(fresh=8, replayed=12, replay_from=16, refreshed=4)
    learner: CemaLearner[np.ndarray] = CemaLearner(edge, foundation, config)
    pictures = photos(64)
    steps = [learner.learn(pictures[i : i + 8]) for i in range(0, 64, 8)]
    # Each model once on the 8 new ones; the edge model on 12 replayed ones; the foundation model on 4 of these.
    assert [s.forwards for s in steps] == [16, 16, *[16 + 12 + 4] * 6]
    assert [s.backwards for s in steps] == [16, 16, *[16 + 12] * 6]
    # On replayed ones only: the edge model on 20, the foundation model on 4.
    assert (learner.replay().forwards, learner.replay().backwards) == (24, 20)


def test_statistics_that_follow_everything_still_start_at_the_new_uploads(
    edge: Model, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trainable(edge, AdaptConfig(fresh=12, statistics="step"))
    started: list[int] = []
    observe = model.observe
    monkeypatch.setattr(
        model, "observe", lambda images, **how: [started.append(len(images)), observe(images, **how)][1]
    )
    for _ in range(2):
        lesson = model.learn([Batch(photos(12)), Batch(photos(7))], squares, follow=True)
        assert len(lesson.logits) == 19
    assert started == [12]
