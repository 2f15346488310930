"""The classifier of two layers in float64: batch normalisation, the entropies and SGD spelled out."""

from __future__ import annotations

import torch
from torch import nn
from two_layers import TwoLayers

__all__ = ["WrittenTwoLayers", "opinion", "softmax_entropies"]


class WrittenTwoLayers:
    """What `two_layers(seed)` computes with batch statistics; only the affine parameters of its layer can learn."""

    def __init__(self, seed: int) -> None:
        self.p = {k: v.double() for k, v in TwoLayers(seed).state_dict().items() if v.is_floating_point()}
        self.source = [self.p["norm.weight"].clone(), self.p["norm.bias"].clone()]
        self.begin_again()

    def begin_again(self) -> None:
        self.theta = [t.clone().requires_grad_() for t in self.source]
        self.velocity = [torch.zeros_like(t) for t in self.source]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(x, self.p["conv.weight"], self.p["conv.bias"])
        mu = y.mean((0, 2, 3), keepdim=True)
        y = (y - mu) / torch.sqrt(((y - mu) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5)
        gamma, beta = (t.reshape(1, -1, 1, 1) for t in self.theta)
        pooled = torch.relu(y * gamma + beta).mean((2, 3))
        return pooled @ self.p["linear.weight"].T + self.p["linear.bias"]

    def descend(self, loss: torch.Tensor, rate: float) -> None:
        gradients = torch.autograd.grad(loss, self.theta)
        self.velocity = [0.9 * v + g for v, g in zip(self.velocity, gradients, strict=True)]
        with torch.no_grad():
            for parameter, v in zip(self.theta, self.velocity, strict=True):
                parameter.sub_(rate * v)

    def check(self, parameters: dict[str, torch.nn.Parameter], *, moved: bool = True) -> None:
        """Compare with what a method has learned."""
        for name, expected, start in zip(("norm.weight", "norm.bias"), self.theta, self.source, strict=True):
            assert not moved or (expected - start).abs().max() > 1e-3, "a step too small to tell anything"
            got = parameters[name].detach().double()
            torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-5)


def softmax_entropies(logits: torch.Tensor) -> torch.Tensor:
    p = logits.softmax(1)
    return -(p * p.log()).sum(1)


def opinion(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return beliefs (N, C) and uncertainties (N,), with gradients that leave the length of the logits alone."""
    length = (logits**2).sum(1, keepdim=True).sqrt()
    evidence = torch.exp(logits / length * length.detach())
    total = evidence.sum(1) + logits.shape[1]
    return evidence / total[:, None], logits.shape[1] / total
