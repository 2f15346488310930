"""Folding statistics into affine parameters, against float64 and torch's own definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.errors import FormatError
from cema.ondevice.folding import StatisticsLayer, check_statistics, fold, statistics_shape, unfold

LAYERS = (
    StatisticsLayer(layer="stem.bn", size=3, eps=1e-5),
    StatisticsLayer(layer="head.bn", size=2, eps=1e-3),
)


def _affine(rng: np.random.Generator) -> dict[str, np.ndarray]:
    state = {
        f"{layer.layer}.{kind}": rng.normal(size=layer.size).astype(np.float32)
        for layer in LAYERS
        for kind in ("scale", "shift")
    }
    return state | {"norm.scale": np.ones(4, np.float32), "norm.shift": np.zeros(4, np.float32)}


def _statistics(rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.normal(size=5), rng.uniform(0.1, 4.0, 5)]).astype(np.float32)


def test_the_folded_map_is_the_normalisation() -> None:
    rng = np.random.default_rng(0)
    affine, statistics = _affine(rng), _statistics(rng)
    folded = fold(affine, statistics, LAYERS)
    start = 0
    for layer in LAYERS:
        x = rng.normal(size=(7, layer.size))
        mean, variance = statistics[:, start : start + layer.size].astype(np.float64)
        start += layer.size
        weight, bias = affine[f"{layer.layer}.scale"], affine[f"{layer.layer}.shift"]
        expected = weight * (x - mean) / np.sqrt(variance + layer.eps) + bias
        got = x * folded[f"{layer.layer}.scale"] + folded[f"{layer.layer}.shift"]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_layers_without_statistics_stay() -> None:
    rng = np.random.default_rng(1)
    affine = _affine(rng)
    folded = fold(affine, _statistics(rng), LAYERS)
    assert folded.keys() == affine.keys()
    assert folded["norm.scale"].tolist() == [1.0] * 4
    assert all(value.dtype == np.float32 for value in folded.values())


@given(st.integers(0, 2**32 - 1))
def test_unfolding_undoes_folding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    affine, statistics = _affine(rng), _statistics(rng)
    again = unfold(fold(affine, statistics, LAYERS), statistics, LAYERS)
    for key, value in affine.items():
        np.testing.assert_allclose(again[key], value, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    rng = np.random.default_rng(2)
    affine, statistics = _affine(rng), _statistics(rng)
    with pytest.raises(FormatError, match=r"stem\.bn\.scale.*another model"):
        fold({key: value for key, value in affine.items() if key != "stem.bn.scale"}, statistics, LAYERS)
    with pytest.raises(FormatError, match="expected 3 values"):
        unfold(affine | {"stem.bn.shift": np.zeros(2, np.float32)}, statistics, LAYERS)
    with pytest.raises(FormatError, match="after folding"):
        fold(affine | {"head.bn.scale": np.full(2, 3e38, np.float32)}, statistics * 0, LAYERS)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 4), np.float32), np.full((2, 5), np.nan), -np.ones((2, 5)), np.zeros((2, 5), np.int64)],
)
def test_wrong_statistics_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(FormatError, match="statistics"):
        check_statistics(wrong, LAYERS)


def test_shape() -> None:
    assert statistics_shape(LAYERS) == (2, 5)
    assert statistics_shape(()) == (2, 0)


@pytest.mark.parametrize(("size", "eps"), [(0, 1e-5), (1, 0.0), (1, float("nan"))])
def test_a_layer_has_channels_and_an_eps(size: int, eps: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        StatisticsLayer(layer="bn", size=size, eps=eps)
