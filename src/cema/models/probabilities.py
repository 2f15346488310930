"""Whether a model returns probabilities where logits are expected.

Softmax of probabilities is nearly uniform: entropies would all be close to their largest value, and the order of the
images by entropy, which everything here rests on, would be lost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["returns_probabilities"]

_TOLERANCE = 1e-3
_LARGER = 1e6


def returns_probabilities(module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor) -> bool:
    """Tell whether outputs are probabilities, or a multiple of them.

    They are if they are never negative and each row has the same sum, as after softmax, or if all are in 0..1, as after
    sigmoid. Logits of an untrained model can look so by chance. Therefore the last layer's output is made 10^6 times
    larger, and moved far up and down: logits move with it, probabilities stay in their range.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    inputs : torch.Tensor
        Several images that differ, (N, C, H, W).
    outputs : torch.Tensor
        What the module returned for them, (N, classes).
    """
    if not _looks_so(outputs):
        return False
    last = _last_layer(module, inputs)
    if last is None:
        return True
    far = _LARGER * 2 * max(1.0, float(outputs.max()))
    moved = [_run_scaled(module, last, inputs, shift) for shift in (far, -far)]
    if all(torch.equal(other, outputs) for other in moved):
        return bool(((outputs.sum(1) - 1).abs() <= _TOLERANCE).all())
    return all(_looks_so(other) for other in moved)


def _looks_so(rows: torch.Tensor) -> bool:
    # Enlarged, a softmax that people wrote themselves overflows; logits would not.
    wide = rows[torch.isfinite(rows).all(1)].double()
    if not len(wide):
        return True
    if wide.min() < 0:
        return False
    sums = wide.sum(1)
    total = sums.mean()
    return bool((sums - total).abs().max() <= _TOLERANCE * total) if total > 0 and wide.max() > 1 else True


def _last_layer(module: nn.Module, inputs: torch.Tensor) -> nn.Module | None:
    """Return the layer with parameters and without children that ran last, if it is not the model itself."""
    ran: list[nn.Module] = []
    layers = [
        layer
        for name, layer in module.named_modules()
        if name and not list(layer.children()) and list(layer.parameters())
    ]
    hooks = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in layers]
    try:
        module(inputs.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None


def _run_scaled(module: nn.Module, layer: nn.Module, inputs: torch.Tensor, shift: float) -> torch.Tensor:
    def scaled(_: nn.Module, __: Any, output: Any) -> Any:
        return output * _LARGER + shift if isinstance(output, torch.Tensor) else output

    hook = layer.register_forward_hook(scaled)
    try:
        outputs: torch.Tensor = module(inputs.clone())
    finally:
        hook.remove()
    return outputs
