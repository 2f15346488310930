"""What training wraps around a model, taken off again."""

from __future__ import annotations

from torch import nn

__all__ = ["unwrap_inside", "unwrapped"]

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model inside ``DataParallel``, ``DistributedDataParallel`` and what ``torch.compile`` returns.

    Parameters
    ----------
    module : torch.nn.Module
        Wrapped any number of times, or not at all.

    Examples
    --------
    >>> net = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(net)) is net
    True
    """
    while isinstance(module, nn.Module):
        inner = (
            module.module if isinstance(module, _PARALLEL) else dict(module.named_children()).get("_orig_mod")
        )
        if not isinstance(inner, nn.Module):
            break
        module = inner
    return module


def unwrap_inside(module: nn.Module) -> None:
    """Take such wrappers off the parts of a model.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if (inner := unwrapped(child)) is not child:
                setattr(parent, name, inner)
