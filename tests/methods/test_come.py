"""Tent and EATA with COME against the same steps written out in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from two_layers import CLASSES, normalised, pictures, two_layers
from written_two_layers import WrittenTwoLayers, opinion

from cema.methods.base import MethodContext, NotApplicable, Uplink
from cema.methods.registry import default_settings, find_method, make_adapter

SEED = 7


def entropies(logits: torch.Tensor) -> torch.Tensor:
    belief, uncertainty = opinion(logits)
    return -(belief * belief.log()).sum(1) - uncertainty * uncertainty.log()


def test_three_steps_of_tent_are_the_written_out_ones() -> None:
    adapter: Any = make_adapter("tent-come", two_layers(SEED), {"lr": 0.05})
    written = WrittenTwoLayers(SEED)
    for seed in range(3):
        images = pictures(12, seed)
        outcome = adapter.step(images)
        logits = written.logits(normalised(images))
        np.testing.assert_allclose(outcome.logits, logits.detach().numpy(), atol=1e-4)
        assert (outcome.uploads, outcome.forwards, outcome.backwards) == (12, 12, 12)
        assert outcome.bytes_up == Uplink().count(images)
        written.descend(entropies(logits).mean(), 0.05)
    written.check(adapter.model.parameters)


def test_three_steps_of_eata_are_the_written_out_ones() -> None:
    source = pictures(10, 99)
    e_0, d_margin, alpha = 0.85 * math.log(CLASSES), 0.99, 3.0
    settings = {"lr": 0.05, "e_margin": 0.85, "d_margin": d_margin, "fisher_alpha": alpha, "fisher_batch": 10}
    adapter: Any = make_adapter("eata-come", two_layers(SEED), settings, MethodContext(source_images=source))
    written = WrittenTwoLayers(SEED)
    # The Fisher information is EATA's, of the softmax.
    best = written.logits(normalised(source)).softmax(1).amax(1)
    fisher = [g**2 for g in torch.autograd.grad(-best.log().mean(), written.theta)]
    average, passed = None, []
    for seed in range(3):
        images = pictures(16, seed)
        outcome = adapter.step(images)
        logits = written.logits(normalised(images))
        terms, chosen = [], []
        for row, h in zip(logits, entropies(logits), strict=True):
            p = row.detach().softmax(0)
            alike = 0.0 if average is None else float(average @ p / (average.norm() * p.norm()))
            if h < e_0 and alike < d_margin:
                terms.append(math.exp(e_0 - float(h.detach())) * h)
                chosen.append(p)
        assert outcome.uploads == outcome.backwards == len(terms)
        passed.append(len(terms))
        mean = torch.stack(chosen).mean(0)
        average = mean if average is None else 0.9 * average + 0.1 * mean
        loss = torch.stack(terms).mean()
        for f, parameter, start in zip(fisher, written.theta, written.source, strict=True):
            loss = loss + alpha * (f * (parameter - start) ** 2).sum()
        written.descend(loss, 0.05)
    assert 0 < min(passed) < 16, "the filters must have decided something"
    written.check(adapter.model.parameters)


@pytest.mark.parametrize("without", ["tent", "eata"])
def test_a_row_has_the_settings_of_the_row_without(without: str) -> None:
    row = f"{without}-come"
    assert default_settings(row) == default_settings(without)
    assert find_method(row).papers == find_method(without).papers


def test_source_images_are_needed_where_eata_needs_them() -> None:
    with pytest.raises(NotApplicable, match="clean source images"):
        make_adapter("eata-come", two_layers(SEED))
