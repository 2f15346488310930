"""Which normalisation of a model does not adapt, so that nobody believes that it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from cema.models.norm_kinds import is_norm, vector_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

__all__ = ["found_no_norm_layer", "left_out_layers", "left_out_text"]

_FUNCTIONS = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"})


def left_out_layers(module: nn.Module, inputs: torch.Tensor | None = None) -> dict[str, str]:
    """List normalisation that has no place in the norm state.

    Parameters
    ----------
    module : torch.nn.Module
        The model.
    inputs : torch.Tensor, optional
        Images (N, C, H, W) to run a copy of through the model, in evaluation mode: this also finds calls of torch's
        functions, such as ``torch.nn.functional.batch_norm``, in modules that are no normalisation layers.

    Returns
    -------
    dict of str to str
        The name of the class or function by module name.

    Examples
    --------
    >>> left_out_layers(torch.nn.Sequential(torch.nn.LayerNorm(4)))
    {}
    """
    norms = {id(inner) for layer in module.modules() if is_norm(layer) for inner in layer.modules()}
    found = {
        name: type(layer).__name__
        for name, layer in module.named_modules()
        if id(layer) not in norms and _resembles_norm(layer)
    }
    if inputs is not None:
        inside = {name for name, layer in module.named_modules() if id(layer) in norms}
        for name, function in _calls(module, inputs).items():
            if name not in inside:
                found.setdefault(name, function)
    return found


def left_out_text(left_out: Mapping[str, str], most: int = 5) -> str:
    """Return the number, names and classes of such layers, for people.

    Examples
    --------
    >>> left_out_text({"a": "GRN", "b": "GRN"}, most=1)
    '2 layers: a (GRN), …'
    """
    names = [f"{name or 'the model itself'} ({kind})" for name, kind in left_out.items()]
    count = "1 layer" if len(names) == 1 else f"{len(names)} layers"
    return f"{count}: {', '.join(names[:most])}{', …' if len(names) > most else ''}"


def found_no_norm_layer(left_out: Mapping[str, str]) -> str:
    """Say that a model has no layer that adapts, and which it has that do not."""
    others = f"; it has normalisation that cannot be adapted, {left_out_text(left_out)}" if left_out else ""
    return (
        "expected a model with normalisation layers, found none: it has no BatchNorm, LayerNorm, GroupNorm, "
        f"InstanceNorm or RMSNorm layer{others}; CEMA adapts their affine parameters, so choose a model that has some"
    )


def _resembles_norm(layer: nn.Module) -> bool:
    """Tell whether a layer's class, statistics or parameters say that it normalises."""
    own = vector_parameters(layer)
    statistics = any("running_" in name for name, _ in layer.named_buffers(recurse=False))
    named = "norm" in type(layer).__name__.lower() and bool(own)
    return statistics or named or {"gamma", "beta"} <= set(own)


class _Calls(TorchFunctionMode):
    """Notes in which module a function that normalises is called."""

    def __init__(self, path: list[str]) -> None:
        super().__init__()
        self.path = path
        self.found: dict[str, str] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _FUNCTIONS:
            self.found[self.path[-1]] = name
        return func(*args, **(kwargs or {}))


def _calls(module: nn.Module, inputs: torch.Tensor) -> dict[str, str]:
    path = [""]
    hooks = list(_tracking(module, path))
    calls = _Calls(path)
    try:
        with torch.no_grad(), calls:
            module(inputs.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return calls.found


def _tracking(module: nn.Module, path: list[str]) -> Iterator[Any]:
    """Let `path` end with the name of the module that runs, while hooks are in place."""
    for name, layer in module.named_modules():
        if name:
            yield layer.register_forward_pre_hook(lambda *_, name=name: path.append(name))
            yield layer.register_forward_hook(lambda *_: path.pop() and None, always_call=True)
