"""Models as people bring them: parts that the tests of several folders put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

CLASSES, SIDE = 5, 16
PIXELS = Preprocessing(height=SIDE, width=SIDE, channels=3, mean=(127.5,) * 3, std=(127.5,) * 3)


def net(norm: nn.Module | None = None) -> nn.Sequential:
    """Return a convolution, a normalisation layer and a linear layer, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            norm or nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        ).eval()


def model(module: nn.Module, name: str = "brought") -> Model:
    return Model(name, module, PIXELS, CLASSES)


class Then(nn.Module):
    """A network and what is done with its logits."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.body = net()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.body(x))


class InPlace(nn.Module):
    """Normalises its input in place, or not."""

    def __init__(self, in_place: bool = True, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.body = net(norm).eval()
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.sub_(0.4).div_(0.2) if self.in_place else x.sub(0.4).div(0.2)
        logits: torch.Tensor = self.body(x)
        return logits


class OwnLayerNorm(nn.Module):
    """ConvNeXt's: over the channels of (N, C, H, W)."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        y = centred * (centred.square().mean(1, keepdim=True) + self.eps).rsqrt()
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class GammaBeta(nn.Module):
    """Another one, with other names and shapes."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
        return (x - mean) * (variance + 1e-6).rsqrt() * self.gamma + self.beta


class OwnRms(nn.Module):
    """A language model's: over the last dimension, with a weight that counts from 1."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)


class ResponseNorm(nn.Module):
    """ConvNeXt V2's global response normalisation: it adds its input, so it does not normalise."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.norm(dim=(2, 3), keepdim=True)
        return x + self.gamma * (x * length / (length.mean(1, keepdim=True) + 1e-6)) + self.beta


class WithoutEps(nn.Module):
    """A BatchNorm by torch's function alone."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class Tokens(nn.Module):
    """Patches, a normalisation of their channels, and LayerNorm if it is to be a mixed model."""

    def __init__(self, norm: nn.Module, mixed: bool = False) -> None:
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 8, 8, 8), norm, nn.Linear(8, CLASSES)
        self.last = nn.LayerNorm(8) if mixed else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        logits: torch.Tensor = self.head(self.last(tokens).mean(1))
        return logits


class Alias(nn.Module):
    """One layer under two names, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(8)
        self.bn2 = self.bn1
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


class Tied(nn.Module):
    """Two layers with statistics of their own that share their parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.second = nn.BatchNorm2d(3)
        self.first = nn.BatchNorm2d(3)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias
        self.second.running_mean += 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(self.second(self.first(x).relu()))
        return logits


def old_weight_norm() -> nn.Module:
    """Return a network with a weight that a pass with gradients made."""
    module = net()
    module[-1] = nn.utils.weight_norm(module[-1])  # type: ignore[no-untyped-call]
    module(torch.zeros(2, 3, SIDE, SIDE))
    return module


def keeps_features() -> nn.Module:
    """Return a network that has kept a tensor of a pass with gradients."""
    module = net()
    module[3].register_forward_hook(lambda layer, _, output: setattr(layer, "feature", output))
    module(torch.zeros(2, 3, SIDE, SIDE))
    return module


def mixed() -> Model:
    """Return a model with RMSNorm and LayerNorm, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(Tokens(nn.RMSNorm(8), mixed=True).eval())


def convolutional() -> Model:
    """Return a model with BatchNorm."""
    return model(net())


def probabilities() -> Model:
    """Return a model that ends in softmax."""
    return model(nn.Sequential(*net(), nn.Softmax(1)).eval())


def own_response_norm() -> Model:
    """Return a model with BatchNorm and a layer that is left out."""
    layers = list(net())
    return model(nn.Sequential(*layers[:3], ResponseNorm(), *layers[3:]).eval())
