"""What the agent and the benchmark rely on in every selection rule."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from cema.errors import FormatError
from cema.ondevice.selection.base import Selector, TellsWhy
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.rules import make_selector

__all__ = ["SelectorSuite"]

CLASSES = 10


class SelectorSuite:
    """The suite. A stranger runs it on his own rule.

    ::

        class TestMine(SelectorSuite):
            __test__ = True
            config = SelectionConfig(rule="package.module:Mine", options={"share": 0.1})

    Attributes
    ----------
    config : SelectionConfig
        The rule and its settings.
    """

    __test__ = False
    config: ClassVar[SelectionConfig] = SelectionConfig()

    def make(self) -> Selector:
        """Return a new device's selector for ten classes."""
        return make_selector(self.config, CLASSES)

    def test_there_is_a_decision_for_every_sample(self) -> None:
        selector = self.make()
        for count in (16, 1, 0, 7):
            selected = select(selector, logits(count, seed=count))
            assert selected.shape == (count,)
            assert selected.dtype == np.bool_

    def test_the_same_stream_gives_the_same_decisions(self) -> None:
        first, second = self.make(), self.make()
        for seed in range(12):
            np.testing.assert_array_equal(select(first, logits(16, seed)), select(second, logits(16, seed)))

    def test_arguments_are_left_alone(self) -> None:
        batch = logits(16)
        entropy = softmax_entropy(batch)
        before = batch.copy(), entropy.copy()
        self.make().select(batch, entropy)
        np.testing.assert_array_equal(batch, before[0])
        np.testing.assert_array_equal(entropy, before[1])

    def test_saving_and_restoring_in_the_middle_changes_nothing(self) -> None:
        whole, first, second = self.make(), self.make(), self.make()
        for seed in range(10):
            for selector in (whole, first):
                select(selector, logits(16, seed))
        second.load_state(json.loads(json.dumps(first.state())))
        for seed in range(10, 20):
            np.testing.assert_array_equal(select(whole, logits(16, seed)), select(second, logits(16, seed)))
        assert second.state() == whole.state()

    @pytest.mark.parametrize("state", [{}, {"unknown": 1}])
    def test_a_state_that_is_none_is_refused(self, state: dict[str, Any]) -> None:
        selector = self.make()
        select(selector, logits(16))
        before = selector.state()
        with pytest.raises(FormatError):
            selector.load_state(state)
        assert selector.state() == before

    def test_every_sample_that_is_left_out_has_a_reason(self) -> None:
        selector = self.make()
        if not isinstance(selector, TellsWhy):
            pytest.skip("this rule does not tell why samples are left out")
        for count in (16, 1, 0, 40):
            selected = select(selector, logits(count, seed=count))
            told = selector.left_out()
            assert all(name.replace("_", "").isalpha() and name == name.lower() for name in told)
            assert all(number >= 0 for number in told.values())
            assert sum(told.values()) == count - selected.sum()

    def test_what_decides_is_described_in_numbers(self) -> None:
        described = self.make().describe()
        assert all(isinstance(name, str) and np.isfinite(value) for name, value in described.items())


def logits(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return predictions (count, 10), sure ones and unsure ones."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 6.0, (count, 1))
    return (scale * rng.standard_normal((count, CLASSES))).astype(np.float32)


def select(selector: Selector, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Let a selector decide as the agent does."""
    return selector.select(batch, softmax_entropy(batch))
