"""The linear layer that makes a model's logits from its features: where it is, and what goes into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cema.methods.base import NotApplicable

if TYPE_CHECKING:
    from cema.adapt.adaptable import AdaptableModel

__all__ = ["Head", "find_head"]

# Largest difference between the layer's output and the logits, against the largest logit: TF32 stays below it, and
# what a further layer or a second head makes of logits does not.
_TOLERANCE = 5e-3


@dataclass(frozen=True, eq=False)
class Head:
    """The linear layer whose output is the logits, z = W h + b.

    Attributes
    ----------
    layer : torch.nn.Linear or torch.nn.Conv2d
        The layer, in the model; its input can be read and changed by a hook.
    weight : torch.Tensor
        W, float32, (C, D).
    bias : torch.Tensor
        b, float32, (C,); zeros where the layer has none.
    """

    layer: nn.Linear | nn.Conv2d
    weight: torch.Tensor
    bias: torch.Tensor

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the features h of each image, (N, D), float32.

        Parameters
        ----------
        inputs : torch.Tensor
            What goes into the layer: (N, D) or (N, ..., D) for a linear layer, (N, D, H, W) for a convolution. Features
            of several places are averaged, as their logits are.
        """
        wide = inputs.float()
        if isinstance(self.layer, nn.Conv2d):
            return wide.flatten(2).mean(2)
        return wide.flatten(1, -2).mean(1) if wide.dim() > 2 else wide

    def less(self, inputs: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """Return what goes into the layer with one vector (D,) subtracted from the features at each place."""
        return inputs - (vector.reshape(-1, 1, 1) if isinstance(self.layer, nn.Conv2d) else vector)


@torch.no_grad()
def find_head(model: AdaptableModel, method: str) -> Head:
    """Find the layer that makes a model's logits: the last linear layer, or 1 x 1 convolution, whose output they are.

    The model is run once on two images of noise, and each such layer's output is compared with the logits. So layers
    behind it that change nothing (dropout, a flattening, an average over places) do not matter, and a second head or
    an activation behind it is noticed.

    Parameters
    ----------
    model : AdaptableModel
        Not changed; no pass is counted.
    method : str
        The method's name, for the message.

    Returns
    -------
    Head
        Its tensors are the model's own where these are float32.

    Raises
    ------
    NotApplicable
        When there is no such layer.
    """
    seen: dict[nn.Module, torch.Tensor] = {}

    def keep(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.pop(layer, None)  # the last call of a pass counts, and is the last of all
        if inputs:
            seen[layer] = inputs[0]

    hooks = [
        layer.register_forward_pre_hook(keep)
        for layer in model.module.modules()
        if _fits(layer, model.classes)
    ]
    try:
        # In float32, whatever precision the method runs in: outputs are to be compared.
        logits = model.module(model.inputs(_noise(model)))
    finally:
        for hook in hooks:
            hook.remove()
    for layer, inputs in reversed(seen.items()):
        head = _as_head(layer)
        if _makes(head, inputs, logits):
            return head
    raise NotApplicable(
        f"{method} works on what goes into the linear layer whose output is the logits, and {model.name} has no linear "
        f"layer and no 1 x 1 convolution of {model.classes} outputs that are its logits (something behind it, such as "
        "a second head or an activation, may change them): choose a model that ends in one, or another method"
    )


def _fits(layer: nn.Module, classes: int) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels == classes and layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear) and layer.out_features == classes


def _noise(model: AdaptableModel) -> list[np.ndarray]:
    shape = (2, model.preprocessing.height, model.preprocessing.width, model.preprocessing.channels)
    return list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def _as_head(layer: Any) -> Head:
    weight = layer.weight.detach().float().flatten(1)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
    return Head(layer, weight, bias)


def _makes(head: Head, inputs: torch.Tensor, logits: torch.Tensor) -> bool:
    features = head.features(inputs)
    if features.shape != (len(logits), head.weight.shape[1]):
        return False
    difference = functional.linear(features, head.weight, head.bias) - logits
    return bool(difference.abs().max() <= _TOLERANCE * logits.abs().max())
