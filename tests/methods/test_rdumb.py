"""RDumb against ETA, and against the same steps written out in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from two_layers import CLASSES, normalised, pictures, two_layers
from written_two_layers import WrittenTwoLayers, softmax_entropies

from cema.methods.rdumb import RDumbConfig
from cema.methods.registry import default_settings, make_adapter

SEED = 7
ETA = {"lr": 0.05, "e_margin": 0.8, "d_margin": 0.98}


def make(name: str, **settings: object) -> Any:
    return make_adapter(name, two_layers(SEED), ETA | settings)


class WrittenETA:
    """What passes, and the loss of it; `average` is the only memory."""

    def __init__(self) -> None:
        self.e_0 = ETA["e_margin"] * math.log(CLASSES)
        self.average: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor) -> list[torch.Tensor]:
        terms, chosen = [], []
        for row, e in zip(logits, softmax_entropies(logits), strict=True):
            p, m = row.detach().softmax(0), self.average
            alike = 0.0 if m is None else float(m @ p / (m.norm() * p.norm()))
            if e < self.e_0 and alike < ETA["d_margin"]:
                terms.append(math.exp(self.e_0 - float(e.detach())) * e)
                chosen.append(p)
        mean = torch.stack(chosen).mean(0)
        self.average = mean if self.average is None else 0.9 * self.average + 0.1 * mean
        return terms


def test_seven_steps_with_a_reset_after_every_three_are_the_written_out_ones() -> None:
    adapter, written, eta = make("rdumb", reset_every=3), WrittenTwoLayers(SEED), WrittenETA()
    passed = []
    for step in range(7):
        if step in (3, 6):
            written.begin_again()
            eta = WrittenETA()
        images = pictures(16, step)
        outcome = adapter.step(images)
        logits = written.logits(normalised(images))
        np.testing.assert_allclose(outcome.logits, logits.detach().numpy(), atol=1e-4)
        terms = eta(logits)
        assert (outcome.uploads, outcome.forwards, outcome.backwards) == (len(terms), 16, len(terms))
        passed.append(len(terms))
        written.descend(torch.stack(terms).mean(), 0.05)
        assert adapter.resets == (step >= 3) + (step >= 6)
    assert 0 < min(passed) < 16, "the filters must have decided something"
    written.check(adapter.model.parameters)


def test_until_the_first_reset_it_is_eta_to_the_bit_and_then_another_eta() -> None:
    rdumb, fresh = make("rdumb", reset_every=4), make("eta")
    for step in range(12):
        if step % 4 == 0:
            fresh = make("eta")
        # A batch of one image is a step too.
        images = pictures(1 if step % 4 == 2 else 12, step)
        got, expected = rdumb.step(images), fresh.step(images)
        np.testing.assert_array_equal(got.logits, expected.logits)
        assert (got.uploads, got.bytes_up, got.backwards) == (
            expected.uploads,
            expected.bytes_up,
            expected.backwards,
        )
    assert rdumb.resets == 2


def test_a_step_that_teaches_nothing_counts() -> None:
    rdumb = make("rdumb", reset_every=2, e_margin=0.0)
    for step in range(5):
        assert rdumb.step(pictures(4, step)).backwards == 0
    assert rdumb.resets == 2


def test_the_default_is_the_papers_interval() -> None:
    assert default_settings("rdumb") == {**default_settings("eta"), "reset_every": 1000}


@pytest.mark.parametrize("settings", [{"reset_every": 0}, {"lr": -1.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RDumbConfig(**settings)
