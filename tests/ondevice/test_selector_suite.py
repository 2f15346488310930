"""Every selection rule passes the suite that a stranger runs on his own."""

from __future__ import annotations

import numpy as np
import pytest

from cema.errors import ConfigError, FormatError
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.entropy_band import EntropyBand
from cema.ondevice.selection.redundancy import RedundancyFilter
from cema.ondevice.selection.rules import make_selector
from cema.testing.selectors import SelectorSuite, logits


class TestEntropyBand(SelectorSuite):
    __test__ = True


class TestEntropyBandWithoutRedundantSamples(SelectorSuite):
    __test__ = True
    config = SelectionConfig(e_max=0.9, d_margin=0.4)


class TestEntropyBandThatRestarts(SelectorSuite):
    __test__ = True
    config = SelectionConfig(on_change="restart", group=16)


def test_the_second_filter_is_asked_about_what_lies_in_the_band() -> None:
    config = SelectionConfig(e_max=0.9, d_margin=0.4)
    both, band, redundancy = (
        make_selector(config, 10),
        EntropyBand(10, SelectionConfig(e_max=0.9)),
        RedundancyFilter(0.4),
    )
    left_out = 0
    for seed in range(6):
        batch = logits(32, seed)
        expected = band.decide(softmax_entropy(batch))
        inside = int(expected.sum())
        expected[expected] = redundancy.passes(batch[expected])
        np.testing.assert_array_equal(both.select(batch, softmax_entropy(batch)), expected)
        left_out += inside - int(expected.sum())
    assert left_out > 10


@pytest.mark.parametrize("mean", [[0.1] * 9, [float("nan")] * 10, "0.1", {}])
def test_a_damaged_mean_prediction_is_refused(mean: object) -> None:
    selector = make_selector(SelectionConfig(d_margin=0.4), 10)
    with pytest.raises(FormatError, match="fresh selector"):
        selector.load_state(selector.state() | {"redundancy": mean})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SelectionConfig(rule="entropy-bend"), "did you mean entropy-band"),
        (SelectionConfig(rule="no_such_module:Rule"), "cannot be imported"),
        (SelectionConfig(rule="math:tau_"), "has no 'tau_'"),
        (SelectionConfig(rule="builtins:dict", options={"share": 1}), "refuses its options"),
    ],
)
def test_a_rule_that_is_not_to_be_had_is_named(config: SelectionConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_selector(config, 10)
