"""ROID and CMF against the same steps written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from two_layers import CLASSES, SIDE, TwoLayers, normalised, pictures, two_layers

from cema.methods.base import MethodContext, Uplink
from cema.methods.cmf import CMF, CMFConfig
from cema.methods.cotta_views import apply_view, draw_view
from cema.methods.roid import ROID, ROIDConfig, likelihood_ratio, prior_corrected
from cema.models.registry import resolve
from cema.models.spec import Model

Photos = Callable[..., list[np.ndarray]]
BATCH = 12


def scaled(values: list[float]) -> list[float]:
    return [(v - min(values)) / (max(values) - min(values)) for v in values]


class Written:
    """The model in float64, the loss image by image, and both optimisers spelled out."""

    def __init__(self, config: ROIDConfig, seed: int) -> None:
        self.config = config
        self.p = {k: v.detach().double() for k, v in TwoLayers(5, bias=False).named_parameters()}
        self.source = [self.p["norm.weight"], self.p["norm.bias"]]
        self.theta = [p.clone() for p in self.source]
        self.moments = [[torch.zeros_like(p) for p in self.source] for _ in range(2)]
        self.average = [1 / CLASSES] * CLASSES
        self.rng, self.steps, self.left_out = np.random.default_rng(seed), 0, 0
        self.hidden, self.variance = [p.clone() for p in self.source], 0.0

    def logits(self, theta: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(x, self.p["conv.weight"])
        mu = y.mean((0, 2, 3), keepdim=True)
        y = (y - mu) / torch.sqrt(((y - mu) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5)
        y = torch.relu(y * theta[0].reshape(1, -1, 1, 1) + theta[1].reshape(1, -1, 1, 1))
        return y.mean((2, 3)) @ self.p["linear.weight"].T + self.p["linear.bias"]

    def weights(self, logits: torch.Tensor) -> dict[int, float]:
        diversity, certainty, rows = [], [], logits.detach().softmax(1).tolist()
        for p in rows:
            along = sum(a * b for a, b in zip(p, self.average, strict=True))
            lengths = math.hypot(*p) * math.hypot(*self.average)
            diversity.append(1 - along / lengths)
            certainty.append(sum(v * math.log(v) for v in p))
        d, u = scaled(diversity), scaled(certainty)
        a = self.config.average
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        self.average = [a * m + (1 - a) * q for m, q in zip(self.average, means, strict=True)]
        middle = sum(d) / len(d)
        return {i: math.exp(d[i] * u[i] / self.config.temperature) for i in range(len(d)) if d[i] >= middle}

    def step(self, images: list[np.ndarray]) -> tuple[torch.Tensor, list[int]]:
        theta = [p.clone().requires_grad_() for p in self.theta]
        z = self.logits(theta, normalised(images))
        weights = self.weights(z)
        chosen = list(weights)
        self.left_out += len(images) - len(chosen)
        loss = torch.zeros((), dtype=torch.float64)
        for i, w in weights.items():
            p = z[i].softmax(0).clamp(max=0.99)
            loss = loss - w * (p * (p / (1 - p) + 1e-5).log()).sum()
        if self.config.consistency:
            p, q = z[chosen].softmax(1), self.logits(theta, self.view([images[i] for i in chosen])).softmax(1)
            for row, w in enumerate(weights.values()):
                loss = loss - 0.5 * w * (p[row] * q[row].log() + q[row] * p[row].log()).sum()
        self.descend(torch.autograd.grad(loss / BATCH, theta))
        self.anchor()
        z = z.detach()
        if self.config.prior_correction:
            prior = z.softmax(1).mean(0)
            s = max(1 / len(images), 1 / CLASSES) / float(prior.max())
            z = z * (prior + s) / (1 + s * CLASSES)
        return z, chosen

    def view(self, images: list[np.ndarray]) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2) / 255.0).float()
        view = replace(draw_view(self.rng, SIDE, SIDE, self.config.flip), sigma=1e-6)
        seen = apply_view(pixels, view, None, noise=0.0, border="reflect")
        return normalised(255.0 * seen.double().permute(0, 2, 3, 1).numpy())

    def descend(self, gradients: tuple[torch.Tensor, ...]) -> None:
        beta, lr = self.config.momentum, self.config.lr
        self.steps += 1
        for k, g in enumerate(gradients):
            first, second = self.moments[0], self.moments[1]
            if self.config.optimizer == "sgd":
                first[k] = g if self.steps == 1 else beta * first[k] + g
                self.theta[k] = self.theta[k] - lr * (g + beta * first[k])
                continue
            first[k] = beta * first[k] + (1 - beta) * g
            second[k] = 0.999 * second[k] + 0.001 * g * g
            size = torch.sqrt(second[k] / (1 - 0.999**self.steps)) + 1e-8
            self.theta[k] = self.theta[k] - lr * first[k] / (1 - beta**self.steps) / size

    def anchor(self) -> None:
        keep = self.config.ensemble
        anchors = self.filtered(self.config) if isinstance(self.config, CMFConfig) else self.source
        self.theta = [keep * p + (1 - keep) * s for p, s in zip(self.theta, anchors, strict=True)]

    def filtered(self, config: CMFConfig) -> list[torch.Tensor]:
        q = config.noise * sum(p.numel() for p in self.theta) / 38400
        self.variance = config.recall**2 * self.variance + q
        beta = min(max((1 - q) / (self.variance + 1 - q), 0.89), 1.0)
        self.variance *= beta
        for k, (source, p) in enumerate(zip(self.source, self.theta, strict=True)):
            recalled = config.recall * self.hidden[k] + (1 - config.recall) * source
            self.hidden[k] = beta * recalled + (1 - beta) * p
        return self.hidden


ROWS: dict[str, tuple[type[ROID], ROIDConfig]] = {
    "roid, SGD": (ROID, ROIDConfig(lr=0.05, ensemble=0.9)),
    "roid, Adam": (ROID, ROIDConfig(optimizer="adam", lr=0.02, momentum=0.8, temperature=0.5, average=0.6)),
    "roid, no view": (ROID, ROIDConfig(lr=0.05, consistency=False, prior_correction=False)),
    # As much noise as for a model with thousands of times as many parameters.
    "cmf": (CMF, CMFConfig(lr=0.05, ensemble=0.8, recall=0.9, noise=200.0)),
    "cmf, at the bound": (CMF, CMFConfig(lr=0.05, ensemble=0.8, noise=1500.0)),
}


@pytest.mark.parametrize("row", ROWS)
def test_four_steps_are_the_written_out_algorithm(row: str) -> None:
    kind, config = ROWS[row]
    adapter = kind(two_layers(5, bias=False), config, context=MethodContext(batch=BATCH, seed=4))  # type: ignore[arg-type]
    written = Written(config, 4)
    for seed, count in enumerate((BATCH, BATCH, 7, BATCH)):
        images = pictures(count, seed)
        outcome = adapter.step(images)
        expected, chosen = written.step(images)
        np.testing.assert_allclose(outcome.logits, expected.numpy(), rtol=1e-3, atol=1e-4)
        views = len(chosen) * config.consistency
        assert (outcome.uploads, outcome.forwards) == (len(chosen), count + views)
        assert outcome.backwards == len(chosen) + views
        assert outcome.bytes_up == Uplink().count([images[i] for i in chosen])
    assert written.left_out > 4
    for k, name in enumerate(("norm.weight", "norm.bias")):
        got = adapter.model.parameters[name].detach().double()
        torch.testing.assert_close(got, written.theta[k], rtol=1e-4, atol=2e-5)
        assert (got - written.source[k]).abs().max() > 1e-3
    if isinstance(adapter, CMF):
        for k, name in enumerate(("norm.weight", "norm.bias")):
            torch.testing.assert_close(
                adapter._hidden[name].double(), written.hidden[k], rtol=1e-4, atol=2e-5
            )
            assert (written.hidden[k] - written.source[k]).abs().max() > 1e-4


def test_without_noise_cmf_is_roid(edge: Model, photos: Photos) -> None:
    adapters: list[ROID] = [
        ROID(edge, ROIDConfig(lr=0.05), context=MethodContext()),
        CMF(edge, CMFConfig(lr=0.05, noise=0.0), context=MethodContext()),
        CMF(edge, CMFConfig(lr=0.05, noise=100.0), context=MethodContext()),
    ]
    for seed in range(3):
        first, same, other = (adapter.step(photos(8, seed=seed)).logits for adapter in adapters)
        np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_the_filters_momentum_falls_towards_its_fixed_point_and_has_bounds(edge: Model) -> None:
    def momenta(noise: float, steps: int) -> list[float]:
        cmf = CMF(edge, CMFConfig(noise=noise), context=MethodContext())
        return [cmf._filter() for _ in range(steps)]

    parameters = sum(p.numel() for p in CMF(edge, context=MethodContext()).model.parameters.values())
    per_q = 38400 / parameters
    published = momenta(0.005 * per_q, 500)
    assert published[0] == pytest.approx(0.995 / (0.005 + 0.995))
    assert all(a >= b for a, b in pairwise(published))
    v = 0.005  # v = (0.99^2 beta) v + q with beta = r / (v + r)
    for _ in range(10_000):
        v = 0.99**2 * v * 0.995 / (v + 0.995) + 0.005
    assert published[-1] == pytest.approx(0.995 / (v + 0.995))
    assert momenta(0.0, 2) == momenta(1e-6, 2) == [1.0, 1.0]
    assert momenta(5.0 * per_q, 2) == [0.89, 0.89]  # more noise than 1


def test_the_likelihood_ratio_is_bounded_and_has_no_gradient_where_all_is_certain() -> None:
    logits = torch.tensor([[40.0, 0.0, -300.0], [1.0, 0.0, -1.0]], requires_grad=True)
    losses = likelihood_ratio(logits)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert losses[0].item() == pytest.approx(-0.99 * math.log(99), rel=1e-4)
    assert logits.grad[0].abs().max() < 1e-6
    assert logits.grad[1].abs().max() > 0.1
    assert torch.isfinite(losses).all()
    # Unlike entropy, it goes on falling in equal steps.
    steps = [likelihood_ratio(torch.tensor([[z, 0.0]]))[0] for z in (0.0, 1.0, 2.0, 3.0)]
    assert all(a - b > 0.4 for a, b in pairwise(steps))


def test_the_prior_correction_favours_the_classes_of_the_batch() -> None:
    likely = torch.tensor([[4.0, 1.0, 1.0]]).expand(63, -1)
    torn = torch.tensor([[2.0, 2.01, 0.0]])
    corrected = prior_corrected(torch.cat([likely, torn]))
    assert int(corrected[-1].argmax()) == 0
    # Of as many images as classes or fewer, little is known.
    even = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    torch.testing.assert_close(prior_corrected(even), even * 0.5)
    assert prior_corrected(torn).argmax() == torn.argmax()


def test_a_smaller_last_batch_teaches_in_proportion() -> None:
    config = ROIDConfig(lr=0.1, momentum=0.0, ensemble=1.0)
    source = dict(TwoLayers(5, bias=False).named_parameters())
    moved = []
    for batch in (6, BATCH):
        roid = ROID(two_layers(5, bias=False), config, context=MethodContext(batch=batch))
        roid.step(pictures(6))
        moved.append(roid.model.parameters["norm.bias"].detach() - source["norm.bias"].detach())
    torch.testing.assert_close(moved[0], 2 * moved[1], rtol=1e-4, atol=1e-6)


def test_images_that_are_all_alike_are_all_learned_from(edge: Model, photos: Photos) -> None:
    for images in (photos(1), photos(1) * 5):
        roid = ROID(edge, ROIDConfig(lr=0.05), context=MethodContext())
        before = {name: p.detach().clone() for name, p in roid.model.parameters.items()}
        outcome = roid.step(images)
        assert outcome.uploads == len(images)
        assert np.isfinite(outcome.logits).all()
        assert all(bool(torch.isfinite(p).all()) for p in roid.model.parameters.values())
        assert any(not torch.equal(p, before[name]) for name, p in roid.model.parameters.items())


def test_the_model_goes_back_to_the_source_where_nothing_is_learned(edge: Model, photos: Photos) -> None:
    roid = ROID(edge, ROIDConfig(lr=0.0, ensemble=0.5), context=MethodContext())
    with torch.no_grad():
        for parameter in roid.model.parameters.values():
            parameter.add_(1.0)
    roid.step(photos(8))
    for name, parameter in roid.model.parameters.items():
        torch.testing.assert_close(parameter.detach(), roid._source[name] + 0.5)


def test_the_seed_decides_about_views(edge: Model, photos: Photos) -> None:
    runs = [ROID(edge, ROIDConfig(lr=0.05), context=MethodContext(seed=seed)) for seed in (1, 1, 2)]
    for _ in range(2):
        first, same, other = (run.step(photos(8)).logits for run in runs)
        np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_a_grey_model_is_adapted_in_bfloat16_too() -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), dtype=np.uint8))
    for dtype in ("float32", "bfloat16"):
        context = MethodContext(dtype=dtype)  # type: ignore[arg-type]
        roid = ROID(resolve("digits-cnn"), ROIDConfig(lr=0.05, flip=0.0), context=context)
        assert roid.step(images).logits.shape == (8, 10)
        assert any(not torch.equal(p, roid._source[name]) for name, p in roid.model.parameters.items())


@pytest.mark.parametrize(
    "settings",
    [{"lr": -1.0}, {"ensemble": 1.5}, {"average": 1.0}, {"temperature": 0.0}, {"flip": -0.1}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ROIDConfig(**settings)


@pytest.mark.parametrize("settings", [{"recall": 1.5}, {"noise": -1.0}, {"lr": -1.0}])
def test_settings_of_cmf_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        CMFConfig(**settings)
