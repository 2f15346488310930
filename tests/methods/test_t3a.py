"""T3A against its formula written out in float64, support by support."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from headed_models import (
    CLASSES,
    HEADS,
    WIDTH,
    Overflowing,
    headed,
    pictures,
    written_features,
    written_head,
)
from torch import nn

from cema.methods.base import MethodContext
from cema.methods.registry import find_method
from cema.methods.t3a import T3A, T3AConfig, surest

BATCHES = (6, 9, 1, 14)


class Written:
    """The supports of each class in a list, sorted by entropy after every batch."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, most: int) -> None:
        self.weight, self.bias, self.most = weight, bias, most
        self.supports: list[list[tuple[float, np.ndarray]]] = [[] for _ in range(CLASSES)]
        self.add(weight)

    def add(self, features: np.ndarray) -> None:
        for h in features:
            z = self.weight @ h + self.bias
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            self.supports[int(z.argmax())].append((float(-(p * np.log(p)).sum()), h))
        for supports in self.supports:
            supports.sort(key=lambda support: support[0])
            if self.most != -1:
                del supports[self.most :]

    def logits(self, features: np.ndarray) -> np.ndarray:
        self.add(features)
        columns = []
        for supports in self.supports:
            total = np.zeros(WIDTH)
            for _, h in supports:
                total += h / np.linalg.norm(h)
            columns.append(features @ total / max(float(np.linalg.norm(total)), 1e-12))
        return np.stack(columns, axis=1)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("most", "drops"), [(1, True), (3, True), (20, False), (-1, False)])
def test_four_batches_are_the_written_out_method(kind: str, most: int, drops: bool) -> None:
    source = headed(*HEADS[kind])
    t3a = T3A(source, T3AConfig(filter_k=most), context=MethodContext())
    written = Written(*written_head(source), most)
    for seed, count in enumerate(BATCHES):
        images = pictures(count, seed)
        outcome = t3a.step(images)
        expected = written.logits(written_features(source, images))
        np.testing.assert_allclose(outcome.logits, expected, rtol=1e-4, atol=1e-4)
        assert outcome.logits.dtype == np.float32
        assert (outcome.uploads, outcome.bytes_up, outcome.forwards, outcome.backwards) == (0, 0, count, 0)
        kept = [len(supports) for supports in written.supports]
        assert torch.bincount(t3a.labels, minlength=CLASSES).tolist() == kept
    assert (sum(kept) < CLASSES + sum(BATCHES)) == drops


def test_the_first_supports_are_the_rows_of_the_head() -> None:
    source = headed()
    t3a = T3A(source, context=MethodContext())
    weight, bias = written_head(source)
    assert sorted(t3a.labels.tolist()) == sorted((weight @ weight.T + bias).argmax(axis=1).tolist())
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    got = t3a.supports.numpy()
    for row in unit:
        assert np.abs(got - row).max(axis=1).min() < 1e-6


def rows(*weights: tuple[float, ...]) -> Callable[[], nn.Module]:
    """Return what makes a head with these rows and no bias."""

    def make() -> nn.Module:
        layer = nn.Linear(WIDTH, CLASSES, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weights))
        return layer

    return make


def test_images_less_sure_than_the_rows_of_the_head_displace_none() -> None:
    source = headed(rows((9, 0, 0, 0, 0), (0, 9, 0, 0, 0), (0, 0, 9, 0, 0)))
    for parameter in (source.module.body.norm.weight, source.module.body.norm.bias):  # type: ignore[union-attr]
        parameter.mul_(0.01)  # type: ignore[operator]
    t3a = T3A(source, T3AConfig(filter_k=1), context=MethodContext())
    images = pictures(10)
    outcome = t3a.step(images)
    torch.testing.assert_close(t3a.supports, torch.eye(CLASSES, WIDTH))
    np.testing.assert_allclose(outcome.logits, written_features(source, images)[:, :CLASSES], atol=1e-6)


def test_a_class_without_supports_has_the_logit_zero() -> None:
    # Whatever looks like class 2 looks more like class 0.
    t3a = T3A(headed(rows((1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0.5, 0, 0, 0, 0))), context=MethodContext())
    logits = t3a.step(pictures(9)).logits
    assert set(t3a.labels.tolist()) == {0, 1}
    np.testing.assert_array_equal(logits[:, 2], 0.0)


def test_what_is_kept_is_bounded() -> None:
    t3a = T3A(headed(), T3AConfig(filter_k=2), context=MethodContext())
    for seed in range(6):
        t3a.step(pictures(12, seed))
    assert len(t3a.supports) == len(t3a.labels) == len(t3a.entropies) <= 2 * CLASSES


def test_every_class_has_supports_of_images_in_these_tests() -> None:
    t3a = T3A(headed(), T3AConfig(filter_k=-1), context=MethodContext())
    for seed, count in enumerate(BATCHES):
        t3a.step(pictures(count, seed))
    assert torch.bincount(t3a.labels[CLASSES:], minlength=CLASSES).min() > 3


def test_a_new_adapter_begins_anew_and_nothing_of_the_model_changes() -> None:
    source = headed()
    before = copy.deepcopy(source.module.state_dict())
    t3a = T3A(source, context=MethodContext())
    first = t3a.step(pictures(8)).logits
    t3a.step(pictures(8, seed=1))
    for key, value in before.items():
        assert torch.equal(source.module.state_dict()[key], value)
        if key != "body.norm.num_batches_tracked":  # adaptable layers keep none
            assert torch.equal(t3a.model.module.state_dict()[key], value)
    np.testing.assert_array_equal(T3A(source, context=MethodContext()).step(pictures(8)).logits, first)


def test_features_that_are_not_finite_become_no_supports() -> None:
    source = headed(body=Overflowing)
    t3a, without = (T3A(source, T3AConfig(filter_k=-1), context=MethodContext()) for _ in range(2))
    images = pictures(6)
    got = t3a.step([*images[:3], np.zeros_like(images[0]), *images[3:]]).logits
    np.testing.assert_allclose(np.delete(got, 3, axis=0), without.step(images).logits, atol=1e-6)
    assert len(t3a.supports) == CLASSES + 6


def test_the_surest_of_each_class_are_kept_and_of_equal_ones_the_first() -> None:
    labels = torch.tensor([1, 0, 1, 1, 0, 2, 1])
    entropies = torch.tensor([0.5, 0.3, 0.5, 0.1, 0.2, 0.9, 0.7])
    assert surest(labels, entropies, 2).tolist() == [4, 1, 3, 0, 5]
    assert surest(labels, entropies, 1).tolist() == [4, 3, 5]
    assert surest(labels, entropies, 9).tolist() == [4, 1, 3, 0, 2, 6, 5]
    assert surest(labels[:0], entropies[:0], 2).tolist() == []


@pytest.mark.parametrize("filter_k", [0, -2])
def test_settings_out_of_range_are_refused(filter_k: int) -> None:
    with pytest.raises(ValueError, match="filter_k: expected"):
        T3AConfig(filter_k=filter_k)


def test_published_comparisons_take_another_number_by_data() -> None:
    rates = find_method("t3a").rates
    assert [rates(family, "batchnorm") for family in ("imagenet", "cifar", "cifar100")] == [
        {},
        {"filter_k": 100},
        {},
    ]
