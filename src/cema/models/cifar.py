"""ResNets for 32 x 32 photographs, as in section 4.2 of the ResNet paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn import functional as F

from cema.models.loading import finish
from cema.ondevice.preprocess import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from cema.models.spec import Model

__all__ = ["CIFAR10_LABELS", "CifarResNet", "cifar_resnet"]

CIFAR10_LABELS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_DEPTHS = {"cifar-resnet20": 20, "cifar-resnet56": 56}


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters (option A of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.extra:  # every other pixel, and zero channels on both sides
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """A ResNet of 6n + 2 layers: three stages of n blocks with 16, 32 and 64 channels.

    Parameters
    ----------
    depth : int
        6n + 2 with n >= 1, such as 20 or 56.
    classes : int, default 10
        The number of logits.

    Raises
    ------
    ValueError
        When the depth is not of that form.

    References
    ----------
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(
                f"expected a depth of 6n + 2 with n >= 1, got {depth}; use 20, 32, 44, 56 or 110"
            )
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, 3, 32, 32) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def cifar_resnet(name: str, *, weights: Path, classes: int | None = None) -> Model:
    """Load a CIFAR ResNet.

    Parameters
    ----------
    name : {"cifar-resnet20", "cifar-resnet56"}
        Which depth.
    weights : Path
        A safetensors file with the keys conv1, bn1, layer1.0.conv1, …, linear; trained on images normalised
        with ImageNet's mean and standard deviation.
    classes : int, optional
        10 when left out.

    Returns
    -------
    Model
        With CIFAR-10's labels when there are 10 classes.

    Raises
    ------
    ModelError
        When the file does not fit.
    """
    count = 10 if classes is None else classes
    preprocessing = Preprocessing(
        height=32,
        width=32,
        channels=3,
        mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
        std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
    )
    labels = CIFAR10_LABELS if count == 10 else None
    module = CifarResNet(_DEPTHS[name], count)
    return finish(name, module, preprocessing, classes=count, labels=labels, weights=weights)


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = _Block(inputs, outputs, stride)
    return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))
