"""The losses against formulas written out in float64 numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cema.adapt.config import PRESETS, LossWeights
from cema.adapt.losses import distillation_loss, entropy_loss, sample_weights, softmax_entropy

E_MAX = 0.4 * math.log(5)


def probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def entropies(p: np.ndarray) -> np.ndarray:
    return np.array([-sum(v * math.log(v) for v in row if v > 0) for row in p])


def pair(seed: int = 0, n: int = 7, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (n, classes)), rng.normal(0, 3, (n, classes))


def reference_terms(g: np.ndarray, f: np.ndarray, preset: str) -> tuple[float, float, float]:
    p, q = probabilities(g), probabilities(f)
    h_edge, h_foundation = np.exp(E_MAX - entropies(p)), np.exp(E_MAX - entropies(q))
    labels = f.argmax(axis=1)
    ce = -np.log(p[np.arange(len(p)), labels])
    if preset == "poster":
        kl = (p * np.log(p / q)).sum(axis=1)
        return (
            3 * (h_foundation * kl).mean(),
            3 * (h_foundation * ce).mean(),
            (h_foundation * entropies(p)).mean(),
        )
    kl = (q * np.log(q / p)).sum(axis=1)
    return 3 * (h_foundation * kl).mean(), (h_foundation * ce).mean(), 3 * (h_edge * entropies(p)).mean()


@pytest.mark.parametrize("preset", ["poster", "reference"])
def test_every_term_is_the_formula(preset: str) -> None:
    g, f = pair()
    terms = distillation_loss(torch.from_numpy(g), torch.from_numpy(f), PRESETS[preset], E_MAX)
    kl, ce, entropy = reference_terms(g, f, preset)
    assert terms.kl.item() == pytest.approx(kl, rel=1e-12)
    assert terms.ce.item() == pytest.approx(ce, rel=1e-12)
    assert terms.entropy.item() == pytest.approx(entropy, rel=1e-12)
    assert terms.total.item() == pytest.approx(kl + ce + entropy, rel=1e-12)


@pytest.mark.parametrize("preset", ["poster", "reference"])
def test_gradients_reach_the_edge_only_and_not_the_weight(preset: str) -> None:
    g, f = pair(1)
    edge = torch.from_numpy(g).requires_grad_()
    foundation = torch.from_numpy(f).requires_grad_()
    distillation_loss(edge, foundation, PRESETS[preset], E_MAX).total.backward()
    assert foundation.grad is None
    # Central differences of the loss with H(x) held at its value.
    p, q = probabilities(g), probabilities(f)
    h = np.exp(E_MAX - entropies(q))
    h_entropy = h if preset == "poster" else np.exp(E_MAX - entropies(p))

    def loss(logits: np.ndarray) -> float:
        s = probabilities(logits)
        ce = -np.log(s[np.arange(len(s)), f.argmax(axis=1)])
        if preset == "poster":
            each = h * (3 * (s * np.log(s / q)).sum(axis=1) + 3 * ce) + h_entropy * entropies(s)
        else:
            each = h * (3 * (q * np.log(q / s)).sum(axis=1) + ce) + 3 * h_entropy * entropies(s)
        return float(each.mean())

    numeric = np.zeros_like(g)
    for index in np.ndindex(*g.shape):
        step = np.zeros_like(g)
        step[index] = 1e-6
        numeric[index] = (loss(g + step) - loss(g - step)) / 2e-6
    assert edge.grad is not None
    np.testing.assert_allclose(edge.grad.numpy(), numeric, atol=1e-8)


def test_entropy_loss_and_weights_are_the_formula() -> None:
    g, _ = pair(2)
    e = entropies(probabilities(g))
    logits = torch.from_numpy(g).requires_grad_()
    assert sample_weights(softmax_entropy(logits), E_MAX).requires_grad is False
    np.testing.assert_allclose(
        sample_weights(softmax_entropy(logits), E_MAX).numpy(), np.exp(E_MAX - e), rtol=1e-12
    )
    loss = entropy_loss(logits, E_MAX)
    assert loss.item() == pytest.approx((np.exp(E_MAX - e) * e).mean(), rel=1e-12)
    loss.backward()
    # dE/dz_c = -p_c (log p_c + E), with the weight a constant.
    p = probabilities(g)
    expected = np.exp(E_MAX - e)[:, None] * -p * (np.log(p) + e[:, None]) / len(g)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-12)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6).map(lambda s: (2, *s)),
        elements=st.one_of(
            st.floats(-60, 60, width=32), st.sampled_from([0.0, 1e4, -1e4, 6e4, -6e4, 3e38, -3e38])
        ),
    ),
    st.sampled_from(sorted(PRESETS)),
)
def test_losses_and_gradients_are_finite_for_any_finite_logits(both: np.ndarray, preset: str) -> None:
    edge, foundation = torch.from_numpy(both[0]).requires_grad_(), torch.from_numpy(both[1])
    e_max = 0.4 * math.log(both.shape[2])
    terms = distillation_loss(edge, foundation, PRESETS[preset], e_max)
    (terms.total + entropy_loss(edge, e_max)).backward()
    assert torch.isfinite(terms.total)
    assert edge.grad is not None
    assert torch.isfinite(edge.grad).all()
    entropy = softmax_entropy(edge.detach())
    assert ((entropy >= 0) & (entropy <= math.log(both.shape[2]) * (1 + 1e-5) + 1e-6)).all()


def test_half_precision_logits_are_computed_in_float32() -> None:
    g, f = pair(3)
    half = torch.from_numpy(g).to(torch.bfloat16)
    terms = distillation_loss(half, torch.from_numpy(f).to(torch.bfloat16), PRESETS["poster"], E_MAX)
    assert terms.total.dtype == torch.float32
    assert softmax_entropy(half).dtype == torch.float32


def test_a_weight_of_zero_removes_its_term() -> None:
    g, f = pair(4)
    weights = LossWeights(
        kl=0.0,
        ce=0.0,
        entropy=2.0,
        divergence="foundation||edge",
        teaching_weight="edge",
        entropy_weight="edge",
    )
    terms = distillation_loss(torch.from_numpy(g), torch.from_numpy(f), weights, E_MAX)
    assert terms.kl.item() == terms.ce.item() == 0.0
    e = entropies(probabilities(g))
    assert terms.total.item() == pytest.approx(2 * (np.exp(E_MAX - e) * e).mean(), rel=1e-12)
