"""ETA's second filter against the formula written out in torch, float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cema.ondevice.selection.redundancy import RedundancyFilter
from cema.testing.selectors import logits


def test_the_filter_is_the_written_out_formula() -> None:
    filter_, mean, passed = RedundancyFilter(0.4, 0.9), None, 0
    for seed in range(8):
        batch = logits(24, seed)
        p = torch.softmax(torch.from_numpy(batch).double(), 1)
        unlike = torch.ones(24, dtype=torch.bool)
        if mean is not None:
            unlike = torch.cosine_similarity(mean[None], p, dim=1).abs() < 0.4
        if unlike.any():
            new = p[unlike].mean(0)
            mean = new if mean is None else 0.9 * mean + 0.1 * new
        np.testing.assert_array_equal(filter_.passes(batch), unlike.numpy())
        passed += int(unlike.sum())
    assert mean is not None
    np.testing.assert_allclose(filter_.mean, mean.numpy(), rtol=1e-12)
    assert 24 < passed < 8 * 24


@pytest.mark.parametrize("count", [0, 1])
def test_few_samples_are_fine(count: int) -> None:
    filter_ = RedundancyFilter(0.4)
    assert filter_.passes(logits(count)).tolist() == [True] * count
