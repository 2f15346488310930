"""Copies of models: without the wrappers of training, and with a reason where there can be none."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from cema._util.names import first_line
from cema.errors import ModelError
from cema.models.wrappers import unwrap_inside, unwrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from cema.models.spec import Model

__all__ = ["copy_module"]


def copy_module(model: Model) -> nn.Module:
    """Return a copy of a model's module, in evaluation mode, with all wrappers removed.

    Tensors that layers kept from a pass with gradients cannot be copied: where copying fails, the module is run once on
    an image of zeros without gradients, which replaces them.

    Parameters
    ----------
    model : cema.models.spec.Model
        The source.

    Returns
    -------
    torch.nn.Module
        On the same device, of the same dtype.

    Raises
    ------
    ModelError
        When it cannot be copied; the message names the layer's attribute.
    """
    source = unwrapped(model.module)
    try:
        module = copy.deepcopy(source)
    except Exception:
        _run_once(source, model)
        try:
            module = copy.deepcopy(source)
        except Exception as error:
            where = next(_not_copied(source), "")
            raise ModelError(
                f"{model.name}: the model cannot be copied{where}: {first_line(error)}; detach tensors that a layer "
                "keeps, and keep what cannot be copied (locks, files, generators) outside of the model"
            ) from error
    unwrap_inside(module)
    return module.eval()


def _run_once(module: nn.Module, model: Model) -> None:
    p, modes = model.preprocessing, {layer: layer.training for layer in module.modules()}
    like = next((t for t in module.parameters() if t.is_floating_point()), torch.zeros(0))
    inputs = torch.zeros((1, p.channels, p.height, p.width), device=like.device, dtype=like.dtype)
    try:
        with torch.no_grad():
            module.eval()(inputs)
    except Exception:  # noqa: S110 - foreign code; the copy that follows says what is wrong
        pass
    finally:
        for layer, training in modes.items():
            layer.training = training


def _not_copied(module: nn.Module) -> Iterator[str]:
    """Name attributes that cannot be copied."""
    for name, layer in module.named_modules():
        tensors = dict((*layer.named_buffers(recurse=False), *layer.named_parameters(recurse=False)))
        others = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
        for key, value in {**tensors, **others}.items():
            try:
                copy.deepcopy(value)
            except Exception:
                path = f"{name}.{key}" if name else key
                yield f", because of its attribute {path} ({type(value).__name__})"
