"""Every baseline on a two-layer model against the same steps written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cema.methods.base import Adapter, MethodContext, StepResult
from cema.methods.eata import fisher_information
from cema.methods.online import OnlineModel
from cema.methods.registry import make_adapter
from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

CLASSES, WIDTH, SIDE, GROUPS = 3, 6, 4, 2
PIXELS = Preprocessing(height=SIDE, width=SIDE, channels=3, mean=(128.0,) * 3, std=(64.0,) * 3)
NORMS = ["batch", "group", "layer"]


class TwoLayers(nn.Module):
    def __init__(self, norm: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, WIDTH, 3)
            self.norm: nn.Module = {
                "batch": lambda: nn.BatchNorm2d(WIDTH),
                "group": lambda: nn.GroupNorm(GROUPS, WIDTH),
                "layer": lambda: nn.LayerNorm([WIDTH, SIDE - 2, SIDE - 2]),
            }[norm]()
            self.linear = nn.Linear(WIDTH, CLASSES)
            nn.init.uniform_(self.norm.weight, 0.5, 2.0)
            nn.init.normal_(self.norm.bias)
            nn.init.normal_(self.linear.weight)
            if norm == "batch":
                self.norm.running_mean.normal_(0.0, 0.3)
                self.norm.running_var.uniform_(0.3, 0.8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return logits


def two_layers(norm: str, seed: int = 1) -> Model:
    return Model(
        name=f"two-{norm}", module=TwoLayers(norm, seed).eval(), preprocessing=PIXELS, classes=CLASSES
    )


def photos(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    # Of different contrast, so that entropies differ too.
    spread = rng.uniform(10, 120, (count, 1, 1, 1))
    pixels = 128 + spread * rng.standard_normal((count, SIDE, SIDE, 3))
    return list(pixels.clip(0, 255).astype(np.uint8))


def as_inputs(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy((np.stack(images).transpose(0, 3, 1, 2) - 128.0) / 64.0)


class Written:
    """The model in float64 with every formula spelled out; only gamma and beta can learn."""

    def __init__(self, model: Model, norm: str) -> None:
        self.p = {k: v.double() for k, v in model.module.state_dict().items() if v.is_floating_point()}
        self.norm = norm
        self.source = [self.p["norm.weight"].clone(), self.p["norm.bias"].clone()]
        self.affine = [p.clone().requires_grad_() for p in self.source]
        self.velocity = [torch.zeros_like(p) for p in self.source]
        self.squares = [torch.zeros_like(p) for p in self.source]
        self.time = 0

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.p["conv.weight"], self.p["conv.bias"])

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        gamma, beta = self.affine
        if self.norm != "layer":
            gamma, beta = gamma.reshape(1, -1, 1, 1), beta.reshape(1, -1, 1, 1)
        pooled = torch.relu(y * gamma + beta).mean((2, 3))
        return pooled @ self.p["linear.weight"].T + self.p["linear.bias"]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convolve(x)
        if self.norm == "batch":
            mu, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
            return self.finish((y - mu) / torch.sqrt(var + 1e-5))
        groups = y.reshape(len(y), GROUPS if self.norm == "group" else 1, -1)
        mu, var = groups.mean(2, keepdim=True), groups.var(2, correction=0, keepdim=True)
        return self.finish(((groups - mu) / torch.sqrt(var + 1e-5)).reshape(y.shape))

    def with_statistics(self, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        return self.finish((self.convolve(x) - mean.reshape(shape)) / torch.sqrt(var.reshape(shape) + 1e-5))

    def adam(self, loss: torch.Tensor, rate: float, beta: float) -> None:
        gradients = torch.autograd.grad(loss, self.affine)
        self.velocity = [beta * v + (1 - beta) * g for v, g in zip(self.velocity, gradients, strict=True)]
        self.squares = [0.999 * s + 0.001 * g**2 for s, g in zip(self.squares, gradients, strict=True)]
        self.time += 1
        with torch.no_grad():
            for parameter, v, s in zip(self.affine, self.velocity, self.squares, strict=True):
                scale = torch.sqrt(s / (1 - 0.999**self.time)) + 1e-8
                parameter.sub_(rate * v / (1 - beta**self.time) / scale)

    def descend(self, loss: torch.Tensor, rate: float) -> None:
        gradients = torch.autograd.grad(loss, self.affine)
        self.velocity = [0.9 * v + g for v, g in zip(self.velocity, gradients, strict=True)]
        with torch.no_grad():
            for parameter, v in zip(self.affine, self.velocity, strict=True):
                parameter.sub_(rate * v)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    p = logits.softmax(1)
    return -(p * p.log()).sum(1)


class ETASteps:
    """What ETA selects and descends, sample by sample."""

    def __init__(self, e_margin: float, d_margin: float) -> None:
        self.e_0, self.d_margin = e_margin * math.log(CLASSES), d_margin
        self.average: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor | None, int]:
        terms, chosen = [], []
        for row, e in zip(logits, entropy(logits), strict=True):
            p = row.detach().softmax(0)
            m = self.average
            alike = 0.0 if m is None else float(m @ p / (m.norm() * p.norm()))
            if e < self.e_0 and alike < self.d_margin:
                terms.append(math.exp(self.e_0 - float(e.detach())) * e)
                chosen.append(p)
        if not terms:
            return None, 0
        mean = sum(chosen) / len(chosen)
        self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean
        return sum(terms) / len(terms), len(terms)


def tent_steps(logits: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    return entropy(logits).mean(), len(logits)


def pl_steps(logits: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    best = logits.softmax(1).amax(1)
    kept = best[best >= 0.6]
    return (-kept.log().mean(), len(kept)) if len(kept) else (None, 0)


def same_predictions(adapter: Adapter, written: Written, seed: int) -> tuple[StepResult, torch.Tensor]:
    """Let both predict a batch, in which the adapter learns; return what it reports and the logits to learn from."""
    images = photos(12, seed)
    outcome = adapter.step(images)
    logits = written.logits(as_inputs(images))
    np.testing.assert_allclose(outcome.logits, logits.detach().numpy(), rtol=1e-4, atol=1e-4)
    return outcome, logits


METHODS: dict[str, tuple[dict[str, object], Callable[[], Callable[..., tuple[torch.Tensor | None, int]]]]] = {
    "tent": ({}, lambda: tent_steps),
    "pl": ({"threshold": 0.6}, lambda: pl_steps),
    "eta": ({"e_margin": 0.9, "d_margin": 0.98}, lambda: ETASteps(0.9, 0.98)),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_three_steps_are_the_written_out_method(method: str, norm: str) -> None:
    settings, make = METHODS[method]
    model = two_layers(norm)
    adapter = make_adapter(method, model, {**settings, "lr": 0.05}, MethodContext())
    written, steps = Written(model, norm), make()
    counts = []
    for seed in (0, 1, 2):
        outcome, logits = same_predictions(adapter, written, seed)
        loss, count = steps(logits)
        assert outcome.backwards == count
        counts.append(count)
        if loss is not None:
            written.descend(loss, 0.05)
    assert method == "tent" or 0 < min(counts) < 12, "the filter must have decided something"
    check_parameters(adapter, written)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["tent", "pl"])
def test_three_steps_of_adam_are_the_written_out_ones(method: str, norm: str) -> None:
    settings, make = METHODS[method]
    model = two_layers(norm)
    asked = {**settings, "optimizer": "adam", "lr": 0.01, "momentum": 0.8}
    adapter = make_adapter(method, model, asked, MethodContext())
    written, steps = Written(model, norm), make()
    for seed in (0, 1, 2):
        _, logits = same_predictions(adapter, written, seed)
        loss, _ = steps(logits)
        assert loss is not None
        written.adam(loss, 0.01, 0.8)
    check_parameters(adapter, written)


@pytest.mark.parametrize("norm", NORMS)
def test_eata_adds_the_fisher_penalty(norm: str) -> None:
    model, source = two_layers(norm), photos(10, 9)
    settings = {"e_margin": 0.9, "d_margin": 0.98, "lr": 0.05, "fisher_alpha": 3.0, "fisher_batch": 10}
    adapter = make_adapter("eata", model, settings, MethodContext(source_images=source))
    written, steps = Written(model, norm), ETASteps(0.9, 0.98)
    logits = written.logits(as_inputs(source))
    label_loss = -logits.softmax(1).amax(1).log().mean()
    fisher = [g**2 for g in torch.autograd.grad(label_loss, written.affine)]
    for seed in (0, 1, 2):
        images = photos(12, seed)
        adapter.step(images)
        loss, _ = steps(written.logits(as_inputs(images)))
        assert loss is not None
        for f, parameter, start in zip(fisher, written.affine, written.source, strict=True):
            loss = loss + 3.0 * (f * (parameter - start) ** 2).sum()
        written.descend(loss, 0.05)
    check_parameters(adapter, written)


def test_fisher_information_averages_the_squares_of_batch_gradients() -> None:
    model, images = two_layers("batch"), photos(10, 9)
    got = fisher_information(OnlineModel(model, MethodContext(), lr=0.0, momentum=0.0), images, 4)
    written = Written(model, "batch")
    squares = []
    for batch in (images[:4], images[4:8], images[8:]):
        best = written.logits(as_inputs(batch)).softmax(1).amax(1)
        squares.append([g**2 for g in torch.autograd.grad(-best.log().mean(), written.affine)])
    for key, parts in zip(("norm.weight", "norm.bias"), zip(*squares, strict=True), strict=True):
        torch.testing.assert_close(got[key].double(), sum(parts) / 3, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prior", [0.0, 5.0])
def test_bn_mixes_source_and_batch_statistics(prior: float) -> None:
    model = two_layers("batch")
    adapter = make_adapter("bn", model, {"prior": prior})
    written = Written(model, "batch")
    for seed in (0, 1):
        images = photos(11, seed)
        y = written.convolve(as_inputs(images)).transpose(0, 1).reshape(WIDTH, -1)
        share = prior / (prior + 11)
        mean = share * written.p["norm.running_mean"] + (1 - share) * y.mean(1)
        # torch trains with the population variance; with a prior it is the unbiased one, as published.
        var = share * written.p["norm.running_var"] + (1 - share) * y.var(1, correction=1 if prior else 0)
        expected = written.with_statistics(as_inputs(images), mean, var).detach()
        np.testing.assert_allclose(adapter.step(images).logits, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batches", [(18,), (6, 6, 6), (1,) * 18, (5, 13)])
def test_onda_follows_the_stream_however_it_is_cut(batches: tuple[int, ...]) -> None:
    model, images = two_layers("batch"), photos(18, 3)
    adapter = make_adapter("onda", model, {"momentum": 0.3, "every": 4})
    got, start = [], 0
    for count in batches:
        got.append(adapter.step(images[start : start + count]).logits)
        start += count
    written = Written(model, "batch")
    mean, var = written.p["norm.running_mean"], written.p["norm.running_var"]
    expected = []
    for i in range(0, 18, 4):
        x = as_inputs(images[i : i + 4])
        expected.append(written.with_statistics(x, mean, var).detach().numpy())
        y = written.convolve(x).transpose(0, 1).reshape(WIDTH, -1)
        mean, var = 0.7 * mean + 0.3 * y.mean(1), 0.7 * var + 0.3 * y.var(1)
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(expected), rtol=1e-4, atol=1e-4)


def check_parameters(adapter: object, written: Written) -> None:
    for key, expected, start in zip(
        ("norm.weight", "norm.bias"), written.affine, written.source, strict=True
    ):
        got = adapter.model.parameters[key].detach().double()  # type: ignore[attr-defined]
        assert (expected - start).abs().max() > 1e-3, "a step too small to tell anything"
        torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-5)
