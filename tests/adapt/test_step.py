"""One whole distillation step on a two-layer model against the same step written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from two_layers import CLASSES, WIDTH, normalised, pictures, two_layers

from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner


class Written:
    """The same model in float64 with every formula spelled out; only gamma and beta can learn."""

    def __init__(self, module: nn.Module) -> None:
        p = {k: v.double() for k, v in module.state_dict().items() if v.is_floating_point()}
        self.p = p
        self.gamma = p["norm.weight"].clone().requires_grad_()
        self.beta = p["norm.bias"].clone().requires_grad_()
        self.mean, self.var = p["norm.running_mean"], p["norm.running_var"]
        self.momentum: list[torch.Tensor] = []

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.p["conv.weight"], self.p["conv.bias"])

    def follow(self, x: torch.Tensor) -> None:
        values = self.convolve(x).transpose(0, 1).reshape(WIDTH, -1)
        self.mean, self.var = values.mean(1), values.var(1)

    def logits(self, x: torch.Tensor, through_batch: bool) -> torch.Tensor:
        y, shape = self.convolve(x), (1, -1, 1, 1)
        sigma = torch.sqrt(self.var + 1e-5).reshape(shape)
        if through_batch:
            mu = y.mean((0, 2, 3), keepdim=True)
            s = torch.sqrt(((y - mu) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5)
            r, d = (s / sigma).detach(), ((mu - self.mean.reshape(shape)) / sigma).detach()
            y = (y - mu) / s * r + d
        else:
            y = (y - self.mean.reshape(shape)) / sigma
        y = torch.relu(y * self.gamma.reshape(shape) + self.beta.reshape(shape)).mean((2, 3))
        return y @ self.p["linear.weight"].T + self.p["linear.bias"]

    def descend(self, loss: torch.Tensor, rate: float) -> None:
        gradients = torch.autograd.grad(loss, [self.gamma, self.beta])
        self.momentum = [0.9 * m + g for m, g in zip(self.momentum or [0.0, 0.0], gradients, strict=True)]
        with torch.no_grad():
            for parameter, v in zip((self.gamma, self.beta), self.momentum, strict=True):
                parameter.sub_(rate * v)


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.log()).sum(1)


def distillation(g: torch.Tensor, f: torch.Tensor, preset: str) -> torch.Tensor:
    e_max = 0.4 * math.log(CLASSES)
    p, q = g.softmax(1), f.softmax(1)
    h_edge, h_foundation = (torch.exp(e_max - entropy(x)).detach() for x in (p, q))
    ce = -p.log()[torch.arange(len(p)), f.argmax(1)]
    if preset == "poster":
        return (h_foundation * (3 * (p * (p / q).log()).sum(1) + 3 * ce + entropy(p))).mean()
    return (h_foundation * (3 * (q * (q / p).log()).sum(1) + ce) + 3 * h_edge * entropy(p)).mean()


@pytest.mark.parametrize("preset", ["poster", "reference"])
def test_two_steps_are_the_written_out_algorithm(preset: str) -> None:
    config = AdaptConfig(
        preset=preset,  # type: ignore[arg-type]
        edge_lr=0.05,
        foundation_lr=0.02,
        fresh=6,
        capacity=0,
        statistics="fresh",
        statistics_momentum=1.0,
        start="first_batch",
    )
    adapter: CemaLearner[np.ndarray] = CemaLearner(two_layers(1), two_layers(2), config)
    g, f = Written(two_layers(1).module), Written(two_layers(2).module)
    e_max = 0.4 * math.log(CLASSES)
    for seed in (0, 1):
        images = pictures(6, seed)
        report = adapter.learn(images)
        x = normalised(images)
        f.follow(x)
        g.follow(x)
        answers = f.logits(x, through_batch=True)  # in value what running statistics give
        e = entropy(answers.softmax(1))
        foundation_loss = (torch.exp(e_max - e).detach() * e).mean()
        f.descend(foundation_loss, 0.02)
        loss = distillation(g.logits(x, through_batch=True), answers.detach(), preset)
        g.descend(loss, 0.05)
        assert report.losses["foundation_loss"] == pytest.approx(foundation_loss.item(), rel=1e-4)
        assert report.losses["distillation_loss"] == pytest.approx(loss.item(), rel=1e-4)
    for written, adapted in ((g, adapter.edge), (f, adapter.foundation)):
        for key, expected in (("norm.weight", written.gamma), ("norm.bias", written.beta)):
            got = adapted.parameters[key].detach().double()
            torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-5)
