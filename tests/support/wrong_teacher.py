"""A foundation model that takes two classes for each other, and what that does to a cohort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

__all__ = ["swap_classes"]


def swap_classes(weights: Path, first: int, second: int) -> None:
    """Make the classifier with these weights answer one class where it answered the other, and the reverse."""
    tensors = load_file(weights)
    name = max((key for key in tensors if key.endswith(".bias")), key=lambda key: int(key.split(".")[0]))
    order: Sequence[int] = list(range(len(tensors[name])))
    swapped = [second if i == first else first if i == second else i for i in order]
    for key in (name, name.replace(".bias", ".weight")):
        tensors[key] = tensors[key][torch.tensor(swapped)].contiguous()
    save_file(tensors, weights)
