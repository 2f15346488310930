"""One identity for a network's values: what results and checkpoints name a model by."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["model_digest"]


def model_digest(module: torch.nn.Module) -> str:
    """Return the hex SHA-256 of a network's tensors, with their names and shapes.

    Stored checkpoints hold it: another value for the same network would refuse them.

    Parameters
    ----------
    module : torch.nn.Module
        On any device.

    Returns
    -------
    str
        64 lowercase hexadecimal digits.

    Examples
    --------
    >>> layer = torch.nn.BatchNorm2d(2)
    >>> model_digest(layer)[:12]
    '2d618154324e'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
