"""The norm state of a torch model: reading it folded, and putting it back.

A device never sees running statistics. A BatchNorm with running statistics is one affine map per channel,

    y = scale * x + shift,  scale = weight / sqrt(running_var + eps),  shift = bias - running_mean * scale,

so these two vectors are all that an update carries for it. LayerNorm and GroupNorm compute their statistics
from each input and travel as their weight and bias, RMSNorm as its weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cema._util.names import missing_and_unknown
from cema.errors import FormatError
from cema.models.norm_kinds import affine_names, is_norm, is_own_norm, leave_as_it_is
from cema.ondevice.folding import check_statistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cema.ondevice.folding import StatisticsLayer

__all__ = [
    "ensure_affine",
    "folded_norm_state",
    "has_running_statistics",
    "load_affine",
    "load_folded",
    "norm_layers",
    "restrict_to",
    "without_statistics",
]


def has_running_statistics(layer: nn.Module) -> bool:
    """Tell whether a layer normalises with stored statistics, so that it folds to one affine map.

    Parameters
    ----------
    layer : torch.nn.Module
        Any layer.

    Returns
    -------
    bool
        True when both ``running_mean`` and ``running_var`` are tensors.
    """
    return all(
        isinstance(getattr(layer, name, None), torch.Tensor) for name in ("running_mean", "running_var")
    )


def without_statistics(layers: Mapping[str, nn.Module]) -> str | None:
    """Return the name of a BatchNorm that keeps no running statistics, which a device needs; None if all do.

    Parameters
    ----------
    layers : mapping of str to torch.nn.Module
        As `norm_layers` returns them. An InstanceNorm needs none.
    """
    for name, layer in layers.items():
        if isinstance(layer, _BatchNorm) and not has_running_statistics(layer):
            return name
    return None


def norm_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Find every normalisation layer that has a place in the norm state.

    These are BatchNorm (1d, 2d, 3d), InstanceNorm, LayerNorm, GroupNorm and RMSNorm with their subclasses, any
    layer that looks like a BatchNorm (``weight``, ``bias``, ``running_mean``, ``running_var`` of one shape
    (C,), and ``eps``), and layers of one's own class that normalise each image by itself
    (`cema.models.norm_kinds.is_own_norm`). Layers without affine parameters count too; see `ensure_affine`.

    Parameters
    ----------
    module : torch.nn.Module
        The model.

    Returns
    -------
    dict of str to torch.nn.Module
        By module name, in the order in which torch lists modules. A layer with two names is listed once.
    """
    return {name: layer for name, layer in module.named_modules() if is_norm(layer)}


def restrict_to(module: nn.Module, keys: Iterable[str]) -> None:
    """Leave layers as they are that a bundle from before they were known has no values for.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place: `norm_layers` then lists no RMSNorm, and no layer of one's own class, that is not in `keys`.
    keys : iterable of str
        Of a norm state, ``"{layer}.scale"`` and ``"{layer}.shift"``.
    """
    known = {key.rpartition(".")[0] for key in keys}
    for name, layer in norm_layers(module).items():
        if name not in known and is_own_norm(layer):
            leave_as_it_is(layer)


def ensure_affine(module: nn.Module) -> list[str]:
    """Give every norm layer affine parameters of its own: where there are none, weight 1 and bias 0.

    No output changes. Two layers that share a parameter each get their own, for their folded values differ.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place.

    Returns
    -------
    list of str
        The names of the layers that were given a parameter.
    """
    changed = []
    taken: set[int] = set()
    for name, layer in norm_layers(module).items():
        names = affine_names(layer)
        missing = {kind: key for kind, key in names.items() if getattr(layer, key, None) is None}
        for kind, key in missing.items():
            fill = torch.ones if kind == "scale" else torch.zeros
            setattr(layer, key, nn.Parameter(fill(_affine_shape(layer), device=_device(module))))
        for flag in ("affine", "elementwise_affine"):
            if missing and hasattr(layer, flag):
                setattr(layer, flag, True)
        shared = [key for key in names.values() if id(getattr(layer, key)) in taken]
        for key in shared:
            setattr(layer, key, nn.Parameter(getattr(layer, key).detach().clone()))
        taken |= {id(getattr(layer, key)) for key in names.values()}
        if missing or shared:
            changed.append(name)
    return changed


def folded_norm_state(
    module: nn.Module, layers: Mapping[str, nn.Module] | None = None
) -> dict[str, np.ndarray]:
    """Read the norm state of a model, folded.

    Parameters
    ----------
    module : torch.nn.Module
        The model; not changed.
    layers : mapping of str to torch.nn.Module, optional
        Its `norm_layers`, where they are known already: finding them takes as long as a pass of a small network.

    Returns
    -------
    dict of str to ndarray
        ``"{layer}.scale"`` and, but for RMSNorm, ``"{layer}.shift"`` for every norm layer, float32 and
        one-dimensional, folded in float64. A LayerNorm over several dimensions is flattened in C order.

    Raises
    ------
    FormatError
        When a folded value is not finite, naming the layer.
    """
    state: dict[str, np.ndarray] = {}
    for name, layer in (norm_layers(module) if layers is None else layers).items():
        values = _affine(layer)
        if has_running_statistics(layer):
            mean, variance = _float64(layer.running_mean), _float64(layer.running_var)
            scale = values["scale"] / np.sqrt(variance + float(layer.eps))  # type: ignore[arg-type]
            values = {"scale": scale, "shift": values["shift"] - mean * scale}
        for kind, value in values.items():
            key = f"{name}.{kind}"
            with np.errstate(over="ignore"):  # the check below says which layer it was
                state[key] = value.astype(np.float32).ravel()
            if not np.isfinite(state[key]).all():
                raise FormatError(
                    f"{key}: expected finite float32 values, got NaN or infinity; check the layer's weight, "
                    "bias and running statistics (a variance below -eps or diverged training does this)"
                )
    return state


def load_folded(
    module: nn.Module, norm_state: Mapping[str, np.ndarray], layers: Mapping[str, nn.Module] | None = None
) -> None:
    """Put a folded norm state into a model, so that in evaluation mode it computes what a device computes.

    A layer with running statistics gets weight = scale, bias = shift, running mean 0 and running variance
    1 - eps; the others get weight = scale and bias = shift. Layers without affine parameters are given them.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place, and only when the whole norm state fits.
    norm_state : mapping of str to ndarray
        As `folded_norm_state` returns it.
    layers : mapping of str to torch.nn.Module, optional
        Its `norm_layers`, where they are known already and have their affine parameters (`ensure_affine`).

    Raises
    ------
    FormatError
        When keys are missing or unknown, sizes differ, or a value is not finite.
    """
    found = norm_layers(module) if layers is None else layers
    _check(found, norm_state)
    if layers is None:
        ensure_affine(module)
    with torch.no_grad():
        for name, layer in found.items():
            for kind, key in affine_names(layer).items():
                value = torch.from_numpy(np.array(norm_state[f"{name}.{kind}"], dtype=np.float32))
                target = getattr(layer, key)
                target.copy_(value.reshape(target.shape))
            if has_running_statistics(layer):
                layer.running_mean.zero_()  # type: ignore[operator]
                layer.running_var.fill_(1.0 - float(layer.eps))  # type: ignore[operator, arg-type]


def load_affine(
    module: nn.Module,
    affine: Mapping[str, np.ndarray],
    statistics: np.ndarray,
    statistics_layers: Sequence[StatisticsLayer],
    layers: Mapping[str, nn.Module] | None = None,
) -> None:
    """Put affine parameters and statistics into a model as they are, so that it computes what it does with both folded.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place, and only when everything fits.
    affine : mapping of str to ndarray
        A norm state in which the parameters of `statistics_layers` are weight and bias (`cema.ondevice.folding`).
    statistics : ndarray of float32 (2, K)
        Means and variances of these layers, in their order.
    statistics_layers : sequence of StatisticsLayer
        Layers with running statistics; others that have some are loaded as `load_folded` does.
    layers : mapping of str to torch.nn.Module, optional
        As for `load_folded`.

    Raises
    ------
    FormatError
        When keys are missing or unknown, sizes differ, or a value is not finite.
    """
    checked = check_statistics(statistics, statistics_layers)
    found = norm_layers(module) if layers is None else layers
    load_folded(module, affine, layers)
    start = 0
    with torch.no_grad():
        for known in statistics_layers:
            mean, variance = checked[:, start : start + known.size]
            start += known.size
            found[known.layer].running_mean.copy_(torch.from_numpy(mean))  # type: ignore[operator]
            found[known.layer].running_var.copy_(torch.from_numpy(variance))  # type: ignore[operator]


def _affine_shape(layer: nn.Module) -> tuple[int, ...]:
    for key in affine_names(layer).values():
        value = getattr(layer, key, None)
        if isinstance(value, torch.Tensor):
            return tuple(value.shape)
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return tuple(layer.normalized_shape)
    if isinstance(layer, nn.GroupNorm):
        return (layer.num_channels,)
    return (int(layer.num_features),)  # type: ignore[arg-type]


def _affine(layer: nn.Module) -> dict[str, np.ndarray]:
    shape, found = _affine_shape(layer), {}
    for kind, key in affine_names(layer).items():
        value = getattr(layer, key, None)
        fill = np.ones if kind == "scale" else np.zeros
        found[kind] = fill(shape) if value is None else _float64(value)
    return found


def _float64(value: object) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"expected a tensor, got {type(value).__name__}")
    array: np.ndarray = value.detach().to("cpu", torch.float64).numpy()
    return array


def _device(module: nn.Module) -> torch.device:
    tensor = next(module.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _check(layers: Mapping[str, nn.Module], norm_state: Mapping[str, np.ndarray]) -> None:
    sizes = {
        f"{name}.{key}": int(np.prod(_affine_shape(layer), dtype=np.int64))
        for name, layer in layers.items()
        for key in affine_names(layer)
    }
    difference = missing_and_unknown(sizes, norm_state)
    if difference:
        raise FormatError(
            f"the norm state is of another model: {difference}; use the one folded from this architecture"
        )
    for key, size in sizes.items():
        value = np.asarray(norm_state[key])
        if value.shape != (size,):
            raise FormatError(
                f"{key}: expected {size} values in one dimension, got shape {value.shape}; "
                "use the norm state folded from this architecture"
            )
        if not np.isfinite(value).all():
            raise FormatError(f"{key}: expected finite values, got NaN or infinity; discard this norm state")
