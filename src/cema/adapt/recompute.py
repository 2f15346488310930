"""Activation checkpointing of any network that repeats blocks."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from torch.utils.checkpoint import checkpoint

from cema.models.norm_kinds import is_norm

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["blocks", "checkpointing"]


def blocks(module: nn.Module) -> list[nn.Module]:
    """Find the outermost children of Sequential and ModuleList containers that hold a normalisation layer."""
    found: list[nn.Module] = []
    for child in module.children():
        repeated = isinstance(module, nn.Sequential | nn.ModuleList)
        if repeated and list(child.children()) and _has_norm(child) and not _container(child):
            found.append(child)
        else:
            found.extend(blocks(child))
    return found


@contextmanager
def checkpointing(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Recompute the activations inside `blocks` during the backward pass, for graphs built in this block."""
    chosen = blocks(module) if enabled else []
    for block in chosen:
        # An instance attribute hides the method for this object only.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in chosen:
            del block.forward


def _has_norm(module: nn.Module) -> bool:
    return any(map(is_norm, module.modules()))


def _container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)
