"""What names a network's values."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from cema.models.digest import model_digest


def test_the_digest_is_what_stored_checkpoints_hold() -> None:
    layer = nn.Linear(2, 1)
    bias, weight = (getattr(layer, name).detach().numpy().tobytes() for name in ("bias", "weight"))
    written_out = b"bias\0(1,)\0" + bias + b"weight\0(1, 2)\0" + weight
    assert model_digest(layer) == hashlib.sha256(written_out).hexdigest()


def test_every_value_and_name_counts_and_nothing_else() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(3)
    before = model_digest(layer)
    assert model_digest(layer.eval().requires_grad_(False)) == before
    assert model_digest(nn.Sequential(layer)) != before
    layer.running_mean[1] += 1e-7  # type: ignore[index]
    assert model_digest(layer) != before
