"""NEO against its formula written out in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from headed_models import (
    CLASSES,
    HEADS,
    Overflowing,
    headed,
    pictures,
    written_features,
    written_head,
)

from cema.methods.base import MethodContext
from cema.methods.neo import NEO, NEOConfig

BATCHES = (5, 8, 1, 12)


def stream() -> list[list[np.ndarray]]:
    return [pictures(count, seed) for seed, count in enumerate(BATCHES)]


@pytest.mark.parametrize("kind", HEADS)
def test_features_are_less_the_mean_of_all_so_far(kind: str) -> None:
    source = headed(*HEADS[kind])
    neo = NEO(source, context=MethodContext())
    weight, bias = written_head(source)
    seen: list[np.ndarray] = []
    for images in stream():
        outcome = neo.step(images)
        h = written_features(source, images)
        seen.extend(h)
        mean = sum(seen) / len(seen)
        np.testing.assert_allclose(neo.mean.numpy(), mean, atol=1e-5)
        np.testing.assert_allclose(outcome.logits, (h - mean) @ weight.T + bias, atol=1e-4)
        assert outcome.logits.dtype == np.float32
        assert (outcome.uploads, outcome.bytes_up, outcome.forwards, outcome.backwards) == (
            0,
            0,
            len(images),
            0,
        )
    assert np.abs(mean).max() > 0.3  # there was something to take away


def test_the_logits_are_the_usual_ones_shifted_by_one_vector() -> None:
    source = headed()
    neo = NEO(source, context=MethodContext())
    weight, bias = written_head(source)
    usual: list[np.ndarray] = []
    for images in stream():
        z = written_features(source, images) @ weight.T + bias
        usual.extend(z)
        np.testing.assert_allclose(neo.step(images).logits, z - np.mean(usual, axis=0) + bias, atol=1e-4)


def test_the_continual_variant_averages_exponentially_from_zero() -> None:
    source = headed()
    neo = NEO(source, NEOConfig(rate=0.1), context=MethodContext())
    weight, bias = written_head(source)
    mean = np.zeros(weight.shape[1])
    for images in stream():
        h = written_features(source, images)
        mean = 0.9 * mean + 0.1 * h.mean(axis=0)
        np.testing.assert_allclose(neo.step(images).logits, (h - mean) @ weight.T + bias, atol=1e-4)


def test_a_first_image_alone_gets_the_bias_and_the_second_more() -> None:
    source = headed()
    neo = NEO(source, context=MethodContext())
    first, second = (neo.step(pictures(1, seed)).logits for seed in (0, 1))
    np.testing.assert_allclose(first, written_head(source)[1][None], atol=1e-5)
    assert np.abs(second - written_head(source)[1]).max() > 0.01


def test_a_new_adapter_begins_anew_and_nothing_of_the_model_changes() -> None:
    source = headed()
    before = copy.deepcopy(source.module.state_dict())
    neo = NEO(source, context=MethodContext())
    first = neo.step(pictures(8)).logits
    neo.step(pictures(8, seed=1))
    for key, value in before.items():
        assert torch.equal(source.module.state_dict()[key], value)
        if key != "body.norm.num_batches_tracked":  # adaptable layers keep none
            assert torch.equal(neo.model.module.state_dict()[key], value)
    np.testing.assert_array_equal(NEO(source, context=MethodContext()).step(pictures(8)).logits, first)


def test_features_that_are_not_finite_do_not_enter_the_mean() -> None:
    source = headed(body=Overflowing)
    neo, without = (NEO(source, context=MethodContext()) for _ in range(2))
    images = pictures(6)
    black = np.zeros_like(images[0])
    got = neo.step([*images[:3], black, *images[3:]]).logits
    expected = without.step(images).logits
    np.testing.assert_allclose(np.delete(got, 3, axis=0), expected, atol=1e-6)
    assert not np.isfinite(neo.step([black]).logits).all()
    later = pictures(4, seed=1)
    np.testing.assert_allclose(neo.step(later).logits, without.step(later).logits, atol=1e-6)


def test_half_precision_gives_about_the_same() -> None:
    full, half = (NEO(headed(), context=MethodContext(dtype=dtype)) for dtype in ("float32", "bfloat16"))  # type: ignore[arg-type]
    for images in stream():
        np.testing.assert_allclose(half.step(images).logits, full.step(images).logits, atol=0.1)
    assert half.mean.dtype == torch.float32


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate: expected"):
        NEOConfig(rate=rate)


def test_there_are_as_many_logits_as_classes() -> None:
    assert NEO(headed(), context=MethodContext()).step(pictures(2)).logits.shape == (2, CLASSES)
