"""Small models that differ in how they make logits from features, all with one normalisation layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

CLASSES, WIDTH, SIDE = 3, 5, 6
PIXELS = Preprocessing(height=SIDE, width=SIDE, channels=3, mean=(128.0,) * 3, std=(64.0,) * 3)


class Body(nn.Module):
    """A convolution, normalisation and ReLU: (N, 5, 4, 4), whose mean is far from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.norm.running_mean.normal_(0, 0.2)
        self.norm.running_var.uniform_(0.3, 0.8)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = torch.relu(self.norm(self.conv(x)))
        return features


class Overflowing(Body):
    """Features that are not finite for a black image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        black = (x <= -2).flatten(1).all(1).reshape(-1, 1, 1, 1)
        return torch.where(black, torch.inf, super().forward(x))


class Headed(nn.Module):
    """A body, a head, and how the head is used."""

    def __init__(
        self,
        make: Callable[[], nn.Module],
        use: Callable[[nn.Module, torch.Tensor], torch.Tensor],
        body: Callable[[], nn.Module] = Body,
    ) -> None:
        super().__init__()
        self.body = body()
        self.head = make()
        self.use = use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(self.head, self.body(x))


def linear(bias: bool = True) -> nn.Module:
    layer = nn.Linear(WIDTH, CLASSES, bias=bias)
    nn.init.normal_(layer.weight)
    return layer


def convolution() -> nn.Module:
    layer = nn.Conv2d(WIDTH, CLASSES, 1)
    nn.init.normal_(layer.weight)
    return layer


def pooled(head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = head(x.mean((2, 3)))
    return logits


def convolved(head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = head(x.mean((2, 3), keepdim=True)).flatten(1)
    return logits


def then_averaged(head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = head(x).mean((2, 3))
    return logits


def of_places(head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = head(x.flatten(2).transpose(1, 2)).mean(1)
    return logits


# How the rows that work on features are tried: a layer's kind, and its use.
HEADS = {"linear": (linear, pooled), "convolution": (convolution, then_averaged)}


def headed(
    make: Callable[[], nn.Module] = linear,
    use: Callable[[nn.Module, torch.Tensor], torch.Tensor] = pooled,
    body: Callable[[], nn.Module] = Body,
    seed: int = 15,  # predicts every class
) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Headed(make, use, body).eval().requires_grad_(False)
    return Model(name="headed", module=module, preprocessing=PIXELS, classes=CLASSES)


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    tints = rng.integers(0, 200, (count, 1, 1, 3))
    return list((tints + rng.integers(0, 56, (count, SIDE, SIDE, 3))).astype(np.uint8))


def written_features(model: Model, images: list[np.ndarray]) -> np.ndarray:
    """Return the mean features of images, (N, 5), in float64."""
    x = torch.from_numpy((np.stack(images).transpose(0, 3, 1, 2) - 128.0) / 64.0)
    state = {key: value.double() for key, value in model.module.state_dict().items()}
    y = nn.functional.conv2d(x, state["body.conv.weight"], state["body.conv.bias"])
    shape = (1, -1, 1, 1)
    y = (y - state["body.norm.running_mean"].reshape(shape)) / torch.sqrt(
        state["body.norm.running_var"].reshape(shape) + 1e-5
    )
    y = y * state["body.norm.weight"].reshape(shape) + state["body.norm.bias"].reshape(shape)
    return torch.relu(y).mean((2, 3)).numpy()


def written_head(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (3, 5) and bias (3,) in float64."""
    state = model.module.state_dict()
    weight = state["head.weight"].double().flatten(1).numpy()
    bias = state["head.bias"].double().numpy() if "head.bias" in state else np.zeros(CLASSES)
    return weight, bias
