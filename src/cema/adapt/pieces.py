"""A training pass in pieces: how many images at once stay within the memory for activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["activation_bytes", "even_slices"]


def even_slices(count: int, most: int) -> list[slice]:
    """Cut a range into as few slices of at most `most` as there can be, of nearly one length.

    Examples
    --------
    >>> even_slices(10, 4)
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    >>> even_slices(0, 4)
    []
    """
    pieces = -(-count // most)
    return [slice(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]


def activation_bytes(
    module: torch.nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
) -> int:
    """Measure what one image leaves in memory between a forward pass and its backward pass.

    Parameters
    ----------
    module : torch.nn.Module
        Whose own tensors do not count: they are there in any case.
    forward : callable
        Passes inputs through the module.
    inputs : torch.Tensor
        Shape (N, C, H, W); a few images will do.

    Returns
    -------
    int
        Bytes an image, at least 1.
    """
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        logits = forward(inputs)  # held, and so is all that it saved: no two tensors share an address
    del logits
    return max(1, sum(saved.values()) // len(inputs))
