"""The plain loop that a step of the service is compared with: float32, eager, nothing reused.

Foundation model forward and backward on 32 images, forward on 128, edge model forward and backward on 128, with batch
renormalisation written out as in its paper, and images that are tensors already.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from cema.models.spec import Model

__all__ = ["Textbook"]

FRESH, REPLAYED = 32, 96


class Renormalised(nn.Module):
    """A BatchNorm layer with batch renormalisation in training, and running statistics otherwise."""

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        self.layer: Any = layer
        self.learning = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, ...)."""
        layer = self.layer
        if not self.learning:
            return functional.batch_norm(
                x,
                layer.running_mean,
                layer.running_var,
                layer.weight,
                layer.bias,
                eps=layer.eps,
            )
        over = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean = x.mean(over, keepdim=True)
        sigma = torch.sqrt(x.var(over, unbiased=False, keepdim=True) + layer.eps)
        known = torch.sqrt(layer.running_var + layer.eps).reshape(shape)
        r = (sigma / known).detach()
        d = ((mean - layer.running_mean.reshape(shape)) / known).detach()
        y = (x - mean) / sigma * r + d
        result: torch.Tensor = y * layer.weight.reshape(shape) + layer.bias.reshape(shape)
        return result


class Textbook:
    """The loop on one pair of models.

    Parameters
    ----------
    edge, foundation : Model
        Copied.
    seed : int
        Of the images, which are noise: what is in them changes no timing.
    """

    def __init__(self, edge: Model, foundation: Model, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.edge, self.foundation = _learner(edge), _learner(foundation)
        self.weight_limit = 0.4 * math.log(edge.classes)
        shapes = [
            (m.preprocessing.channels, m.preprocessing.height, m.preprocessing.width)
            for m in (edge, foundation)
        ]
        self.images = [torch.randn(FRESH + REPLAYED, *shape) for shape in shapes]
        self.optimizers = [
            torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
            for m in (self.edge, self.foundation)
        ]

    def step(self) -> None:
        """Make one step."""
        edge_images, images = self.images
        self._descend(1, self._weighted(self._train(self.foundation, images[:FRESH])))
        with torch.no_grad():
            taught = self.foundation(images).log_softmax(1)
        log_p = self._train(self.edge, edge_images).log_softmax(1)
        p = log_p.exp()
        entropy = -(taught.exp() * taught).sum(1)
        terms = 3 * (p * (log_p - taught)).sum(1) - 3 * log_p.gather(1, taught.argmax(1, keepdim=True))[:, 0]
        self._descend(0, (torch.exp(self.weight_limit - entropy) * (terms - (p * log_p).sum(1))).mean())

    def _weighted(self, logits: torch.Tensor) -> torch.Tensor:
        log_p = logits.log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1)
        return (torch.exp(self.weight_limit - entropy.detach()) * entropy).mean()

    def _train(self, module: nn.Module, images: torch.Tensor) -> torch.Tensor:
        layers = [layer for layer in module.modules() if isinstance(layer, Renormalised)]
        for layer in layers:
            layer.learning = True
        logits: torch.Tensor = module(images)
        for layer in layers:
            layer.learning = False
        return logits

    def _descend(self, which: int, loss: torch.Tensor) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers[which].step()


def _learner(model: Model) -> nn.Module:
    """Return a copy in which only the affine parameters of normalisation layers learn."""
    module = copy.deepcopy(model.module).eval().requires_grad_(False)
    _replace(module)
    for layer in module.modules():
        if isinstance(layer, Renormalised | nn.LayerNorm):
            layer.requires_grad_(True)
    return module


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, Renormalised(child))
        else:
            _replace(child)
