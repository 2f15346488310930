"""Normalisation layers while a model is being adapted.

Batch renormalisation (Ioffe, 2017) trains a layer that will be used with running statistics: the forward
value is the one with running statistics, the gradient flows through the statistics of the batch,

    y = gamma * ((x - mu_B) / sigma_B * r + d) + beta,
    r = sigma_B / sigma,  d = (mu_B - mu) / sigma,   r and d detached.

The part in x is an ordinary batch normalisation and the rest one affine map with weight ``r * gamma`` and bias
``d * gamma + beta``. So the forward pass is ``batch_norm`` with running statistics and the backward pass that of
``batch_norm`` with batch statistics: no further tensor of the input's size, and the value is a device's to the bit.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from cema.errors import ModelError
from cema.models.left_out import found_no_norm_layer, left_out_layers
from cema.models.norm_kinds import affine_names
from cema.models.norm_state import ensure_affine, norm_layers, without_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Merge = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

__all__ = ["AdaptiveBatchNorm", "Mode", "normalising", "prepare"]

Mode = Literal["running", "renorm", "batch", "follow"]

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class AdaptiveBatchNorm(nn.Module):
    """A BatchNorm whose way of normalising is chosen by `normalising`, never by ``train()`` and ``eval()``.

    Parameters
    ----------
    source : torch.nn.BatchNorm1d, BatchNorm2d, BatchNorm3d or a subclass that adds ``drop`` and ``act``
        The layer to take the place of; its tensors are shared, not copied.

    Attributes
    ----------
    mode : {"running", "renorm", "batch", "follow"}
        With running statistics; with them, but gradients through batch statistics; with batch statistics; or as
        "renorm", after the running statistics have moved to what `merge` makes of the batch's.
    merge : callable or None
        Returns new running statistics, given a batch's mean and unbiased variance; set for the mode "follow".
    observed : tuple of torch.Tensor or None
        Mean and unbiased variance, each (C,) float32, of the last batch in every mode but "running"; None when it held
        a single value per channel, which has no variance.

    Notes
    -----
    Inputs have shape (N, C) or (N, C, ...). A forward pass may be repeated with the same input (activation
    checkpointing does so): the second one changes nothing.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, source: _BatchNorm) -> None:
        super().__init__()
        self.num_features = source.num_features
        self.eps = source.eps
        self.weight = source.weight
        self.bias = source.bias
        self.register_buffer("running_mean", source.running_mean)
        self.register_buffer("running_var", source.running_var)
        # timm folds dropout and activation into its BatchNorm subclasses; keep them behind the normalisation.
        self.drop: nn.Module = getattr(source, "drop", None) or nn.Identity()
        self.act: nn.Module = getattr(source, "act", None) or nn.Identity()
        self.mode: Mode = "running"
        self.merge: Merge | None = None
        self.observed: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C) or (N, C, ...) to the same shape."""
        if self.mode != "running":
            self._observe(x)
        if self.mode == "follow":
            self._follow()
        if self.mode == "running" or self.observed is None:
            y = functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        elif self.mode == "batch":
            y = functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        else:
            y = _Renormalisation.apply(x, self.weight, self.bias, self)  # type: ignore[no-untyped-call]
        result: torch.Tensor = self.act(self.drop(y))
        return result

    def _follow(self) -> None:
        if self.merge is not None and self.observed is not None:
            mean, variance = self.merge(*self.observed)
            self.running_mean.copy_(mean)
            self.running_var.copy_(variance)

    def _observe(self, x: torch.Tensor) -> None:
        values = x.numel() // x.shape[1]
        if values < 2:
            self.observed = None
            return
        wide = x.detach().to(self.running_var.dtype)
        # var_mean over all but the channels takes several times as long as the normalisation itself.
        mean, variance = torch.batch_norm_update_stats(wide, None, None, 0.0)
        self.observed = mean, variance * (values / (values - 1))

    def extra_repr(self) -> str:
        """Describe the layer as torch prints modules."""
        return f"{self.num_features}, eps={self.eps}, mode={self.mode}"


class _Renormalisation(torch.autograd.Function):
    """Batch renormalisation by a layer that has observed the input."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, layer: AdaptiveBatchNorm
    ) -> torch.Tensor:
        assert layer.observed is not None  # noqa: S101 - for the type; the caller has seen to it
        mean, variance = layer.observed
        values = x.numel() // x.shape[1]
        sigma = torch.sqrt(layer.running_var + layer.eps)
        inverse = torch.rsqrt(variance * ((values - 1) / values) + layer.eps)
        r, d = 1 / (inverse * sigma), (mean - layer.running_mean) / sigma
        ctx.save_for_backward(x, r * weight, mean, inverse, r, d)
        ctx.eps = layer.eps
        return functional.batch_norm(
            x, layer.running_mean, layer.running_var, weight, bias, training=False, eps=layer.eps
        )

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, inverse, r, d = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], True, True]
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, None, None, mean, inverse, True, ctx.eps, wanted
        )
        return of_x, of_weight * r + of_bias * d, of_bias, None


@contextmanager
def normalising(layers: Iterable[AdaptiveBatchNorm], mode: Mode) -> Iterator[None]:
    """Let layers normalise in one way inside a ``with`` block, and as before after it.

    Parameters
    ----------
    layers : iterable of AdaptiveBatchNorm
        Typically all that `prepare` returned.
    mode : {"running", "renorm", "batch", "follow"}
        See `AdaptiveBatchNorm`.

    Yields
    ------
    None
    """
    before = [(layer, layer.mode) for layer in layers]
    for layer, _ in before:
        layer.mode = mode
    try:
        yield
    finally:
        for layer, earlier in before:
            layer.mode = earlier


def prepare(module: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, AdaptiveBatchNorm]]:
    """Make a model adaptable: freeze everything except the affine parameters of its normalisation layers.

    BatchNorm layers are replaced by `AdaptiveBatchNorm`; LayerNorm, GroupNorm, RMSNorm and the rest stay. Layers
    without affine parameters are given them. Dropout stays off. A BatchNorm subclass with a forward of its
    own is left in place: its affine parameters adapt, its statistics remain the source model's.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place and put in evaluation mode.

    Returns
    -------
    parameters : dict of str to torch.nn.Parameter
        The trainable parameters by their name in the module.
    layers : dict of str to AdaptiveBatchNorm
        The layers with running statistics that can be adapted, by module name.

    Raises
    ------
    ModelError
        When there is no normalisation layer, or a BatchNorm keeps no running statistics, which a device
        needs.
    """
    module.eval().requires_grad_(False)
    found = norm_layers(module)
    if not found:
        raise ModelError(found_no_norm_layer(left_out_layers(module)))
    lacking = without_statistics(found)
    if lacking is not None:
        raise ModelError(
            f"{lacking}: expected a BatchNorm with running statistics, got one without; an edge model "
            "predicts one image at a time, so build it with track_running_stats=True"
        )
    ensure_affine(module)
    _replace(module)
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, AdaptiveBatchNorm)}
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in norm_layers(module).items():
        for key in affine_names(layer).values():
            parameter: Any = getattr(layer, key)
            parameters[f"{name}.{key}"] = parameter.requires_grad_(True)
    return parameters, layers


def _replace(module: nn.Module) -> None:
    made: dict[int, AdaptiveBatchNorm] = {}
    replaced: list[nn.Module] = []  # alive as long as their identities are compared
    for parent in list(module.modules()):
        # Unlike `named_children`, with a layer that is used twice under both its names.
        for name, child in list(parent.named_modules(remove_duplicate=False)):
            own = name and "." not in name
            if not own or not isinstance(child, _BatchNorm) or not _replaceable(child):
                continue
            replaced.append(child)
            # One layer used in two places stays one layer.
            setattr(parent, name, made.setdefault(id(child), AdaptiveBatchNorm(child).eval()))
    for parent in module.modules():
        _replace_references(parent, made)


def _replace_references(parent: nn.Module, made: dict[int, AdaptiveBatchNorm]) -> None:
    """Replace layers where a forward may take them from without torch's knowledge: lists, tuples and dicts."""
    for name, value in list(vars(parent).items()):
        if name.startswith("_"):
            continue
        if type(value) is list:
            value[:] = [made.get(id(item), item) for item in value]
        elif type(value) is dict:
            value.update({key: made[id(item)] for key, item in value.items() if id(item) in made})
        elif type(value) is tuple and any(id(item) in made for item in value):
            setattr(parent, name, tuple(made.get(id(item), item) for item in value))


def _replaceable(layer: _BatchNorm) -> bool:
    return type(layer) in _PLAIN or (hasattr(layer, "drop") and hasattr(layer, "act"))
