"""The entropy of an opinion against its formula written out in float64 numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cema.adapt.losses import softmax_entropy
from cema.adapt.opinion import opinion_entropy


def written(logits: np.ndarray) -> np.ndarray:
    evidence = np.exp(logits)
    total = evidence.sum(axis=1) + logits.shape[1]
    masses = [*(evidence / total[:, None]).T, logits.shape[1] / total]
    result: np.ndarray = -sum(mass * np.log(mass) for mass in masses)
    return result


def some(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (6, 5))


def test_it_is_the_formula() -> None:
    got = opinion_entropy(torch.from_numpy(some()))
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), written(some()), rtol=1e-12)


def test_the_gradient_is_that_with_the_length_of_the_logits_held() -> None:
    z = some(1)
    logits = torch.from_numpy(z).requires_grad_()
    opinion_entropy(logits).sum().backward()
    assert logits.grad is not None
    got, length = logits.grad.numpy(), np.linalg.norm(z, axis=1, keepdims=True)
    numeric = np.zeros_like(z)
    for index in np.ndindex(*z.shape):
        step = np.zeros_like(z)
        step[index] = 1e-6
        above, below = (
            written(moved / np.linalg.norm(moved, axis=1, keepdims=True) * length)
            for moved in (z + step, z - step)
        )
        numeric[index] = (above - below)[index[0]] / 2e-6
    np.testing.assert_allclose(got, numeric, atol=1e-8)
    # So a small step leaves the length as it is.
    np.testing.assert_allclose((got * z).sum(axis=1), 0.0, atol=1e-12)
    assert np.abs(got).max() > 0.1


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_what_it_is_of_no_little_and_much_evidence(classes: int) -> None:
    nothing = torch.full((1, classes), -50.0)
    assert opinion_entropy(nothing).item() == pytest.approx(0.0, abs=1e-6)
    even = torch.zeros(1, classes)
    assert opinion_entropy(even).item() == pytest.approx(0.5 * math.log(2 * classes) + 0.5 * math.log(2))
    # e^z = C for every class: all of the C + 1 masses are equal.
    largest = opinion_entropy(torch.full((1, classes), math.log(classes))).item()
    assert largest == pytest.approx(math.log(classes + 1))
    much = torch.linspace(50.0, 51.0, classes)[None]
    torch.testing.assert_close(opinion_entropy(much), softmax_entropy(much))


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6),
        elements=st.one_of(
            st.floats(-60, 60, width=32), st.sampled_from([0.0, 1e4, -1e4, 6e4, -6e4, 3e38, -3e38, 1e-44])
        ),
    )
)
def test_values_and_gradients_are_finite_for_any_finite_logits(values: np.ndarray) -> None:
    logits = torch.from_numpy(values).requires_grad_()
    entropy = opinion_entropy(logits)
    entropy.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    limit = math.log(values.shape[1] + 1) * (1 + 1e-5) + 1e-6
    assert ((entropy >= 0) & (entropy <= limit)).all()


def test_half_precision_logits_are_computed_in_float32() -> None:
    half = torch.from_numpy(some()).to(torch.bfloat16)
    assert opinion_entropy(half).dtype == torch.float32
    torch.testing.assert_close(opinion_entropy(half), opinion_entropy(half.float()))
