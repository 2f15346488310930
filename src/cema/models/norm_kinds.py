"""What counts as a normalisation layer, and by which names it holds its affine parameters.

Layers of torch are known by their classes. People also write their own: a LayerNorm over the channels of (N, C, H, W),
an RMSNorm. Such a layer is tried by itself: if its output does not change when its input is scaled, and is an affine
function of its parameters, it is one.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["affine_names", "is_norm", "is_own_norm", "leave_as_it_is", "vector_parameters"]

_NORM_CLASSES = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm)
_STATISTICS = ("running_mean", "running_var")
# The names that people give to scale and shift.
_NAMES = (
    ("weight", "bias"),
    ("gamma", "beta"),
    ("g", "b"),
    ("scale", "shift"),
    ("scale", "bias"),
    ("a_2", "b_2"),
)
_LEFT = "_cema_left_as_it_is"
# Trying a layer takes some ten small passes, and norm layers are looked for at every update.
_TRIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def is_norm(layer: nn.Module) -> bool:
    """Tell whether a layer is a normalisation layer that has a place in the norm state.

    Parameters
    ----------
    layer : torch.nn.Module
        Any layer.

    Returns
    -------
    bool
        True for BatchNorm, InstanceNorm, LayerNorm and GroupNorm with their subclasses, for what looks like a BatchNorm
        with statistics, and for `is_own_norm`, unless `leave_as_it_is` was called.
    """
    if isinstance(layer, _NORM_CLASSES) or _looks_like_batch_norm(layer):
        return True
    return is_own_norm(layer) and not getattr(layer, _LEFT, False)


def is_own_norm(layer: nn.Module) -> bool:
    """Tell whether a layer is an RMSNorm, or of a class of one's own that normalises each image by itself.

    Bundles and checkpoints from before have no values for such a layer.

    Parameters
    ----------
    layer : torch.nn.Module
        Any layer.

    Returns
    -------
    bool
        For a class of one's own, what trying the layer has shown.

    Examples
    --------
    >>> is_own_norm(nn.RMSNorm(4)), is_own_norm(nn.PReLU(4)), is_own_norm(nn.LayerNorm(4))
    (True, False, False)
    """
    if isinstance(layer, _NORM_CLASSES) or _looks_like_batch_norm(layer):
        return False
    if isinstance(layer, nn.RMSNorm):
        return True
    if not _own_names(layer):
        return False
    if layer not in _TRIED:
        try:
            probe = copy.deepcopy(layer)
        except Exception:  # it holds what cannot be copied now
            return False
        _TRIED[layer] = _normalises(probe)
    return _TRIED[layer]


def leave_as_it_is(layer: nn.Module) -> None:
    """Mark a layer, and its copies, as one that `is_norm` does not count, if it is one of `is_own_norm`."""
    setattr(layer, _LEFT, True)


def affine_names(layer: nn.Module) -> dict[str, str]:
    """Return by which attributes a normalisation layer holds its scale and its shift.

    Parameters
    ----------
    layer : torch.nn.Module
        One that `is_norm` counts.

    Returns
    -------
    dict of str to str
        ``"scale"``, and ``"shift"`` unless there is none, which is so for RMSNorm.

    Examples
    --------
    >>> affine_names(nn.LayerNorm(4)), affine_names(nn.RMSNorm(4))
    ({'scale': 'weight', 'shift': 'bias'}, {'scale': 'weight'})
    """
    if isinstance(layer, nn.RMSNorm):
        has_bias = isinstance(getattr(layer, "bias", None), nn.Parameter)
        return {"scale": "weight", "shift": "bias"} if has_bias else {"scale": "weight"}
    return _own_names(layer) or {"scale": "weight", "shift": "bias"}


def vector_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return a layer's own parameters by name if all are vectors of one shape, such as (C,) or (C, 1, 1)."""
    own = dict(layer.named_parameters(recurse=False))
    if any(is_lazy(value) for value in own.values()):
        return {}
    alike = len({value.shape for value in own.values()}) == 1
    return own if alike and all(v.dim() and v.numel() == max(v.shape) for v in own.values()) else {}


def _looks_like_batch_norm(layer: nn.Module) -> bool:
    vectors = [getattr(layer, name, None) for name in ("weight", "bias", *_STATISTICS)]
    shapes = {
        tuple(value.shape) if isinstance(value, torch.Tensor) and not is_lazy(value) else None
        for value in vectors
    }
    return (
        None not in shapes
        and len(shapes) == 1
        and len(next(iter(shapes)) or ()) == 1
        and hasattr(layer, "eps")
    )


def _own_names(layer: nn.Module) -> dict[str, str]:
    """Return where a layer of an unknown class could hold scale and shift; empty if nowhere."""
    if isinstance(layer, _NORM_CLASSES):
        return {}
    own = vector_parameters(layer)
    inside = sum(1 for _ in layer.parameters())
    # Statistics of its own would have to be folded, which takes its class's formula.
    if not own or inside != len(own) or any("running" in name for name, _ in layer.named_buffers()):
        return {}
    for scale, shift in _NAMES:
        if set(own) == {scale, shift}:
            return {"scale": scale, "shift": shift}
        if set(own) == {scale}:
            return {"scale": scale}
    return {}


def _normalises(probe: nn.Module) -> bool:
    """Try a copy of a layer on inputs of several layouts."""
    own = vector_parameters(probe)
    first = next(iter(own.values()))
    channels, side = first.numel(), 5 if first.numel() == 3 else 3
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(first.device)

    low, high = ({name: draw(*value.shape) for name, value in own.items()} for _ in range(2))
    for shape in ((channels, side, side), (side, side, channels), (side, channels), (channels,)):
        try:
            with torch.no_grad():
                if _is_affine_norm(probe, 10.0 * draw(2, *shape), low, high):
                    return True
        except Exception:  # noqa: S112 - foreign code says in its own way that it wants another layout
            continue
    return False


def _is_affine_norm(
    probe: nn.Module, x: torch.Tensor, low: Mapping[str, torch.Tensor], high: Mapping[str, torch.Tensor]
) -> bool:
    """Tell whether a layer is affine in its parameters, ignores its input's scale, and treats images one by one."""

    def run(x: torch.Tensor, share: float = 0.0) -> torch.Tensor:
        for name, value in vector_parameters(probe).items():
            value.copy_(torch.lerp(low[name], high[name], share))
        result: torch.Tensor = probe.forward(x.clone())  # not its hooks
        return result

    ends = run(x), run(x, 0.5), run(x, 1.0)
    size = float(torch.stack(ends).abs().max())

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        return float((a - b).abs().max()) <= 1e-3 * size

    return (
        ends[0].shape == x.shape
        and bool(torch.isfinite(ends[0]).all())
        and not any(same(a, b) for a, b in pairwise(ends))
        and same(ends[1], (ends[0] + ends[2]) / 2)
        and same(ends[0], run(16.0 * x))
        and same(ends[0][:1], run(x[:1]))
    )
