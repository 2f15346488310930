"""Running statistics: windows, exponential averages, and where they start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cema.adapt.norm import AdaptiveBatchNorm, normalising
from cema.adapt.statistics import RunningStatistics


def observed(layer: AdaptiveBatchNorm, batches: list[torch.Tensor], tracker: RunningStatistics) -> None:
    for batch in batches:
        with normalising([layer], "batch"), torch.no_grad():
            layer(batch)
        assert tracker.observe(len(batch))


def data(count: int, size: int = 8) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.normal(i, 1 + i, (size, 3, 4, 4)).astype(np.float32)) for i in range(count)]


def make(
    window: int | None, start: str = "first_batch", share: float = 0.0
) -> tuple[AdaptiveBatchNorm, RunningStatistics]:
    layer = AdaptiveBatchNorm(nn.BatchNorm2d(3))
    tracker = RunningStatistics(
        [layer],
        start=start,  # type: ignore[arg-type]
        window=window,
        momentum=0.1,
        batch=8,
        share=share,
    )
    return layer, tracker


def test_a_window_holds_the_exact_statistics_of_its_samples() -> None:
    layer, tracker = make(window=16)
    batches = data(5)
    observed(layer, batches, tracker)
    union = torch.cat(batches[-2:]).double().transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(layer.running_mean.double(), union.mean(1), rtol=1e-5, atol=1e-6)
    # Batches contribute their unbiased variance: the union's, within one part in 128.
    torch.testing.assert_close(layer.running_var.double(), union.var(1, correction=0), rtol=1 / 100, atol=0)


@pytest.mark.parametrize("following", [False, True])
def test_a_share_of_the_source_stays_however_many_samples_came(following: bool) -> None:
    layer, tracker = make(window=16, share=0.25)
    plain, other = make(window=16)
    for batch in data(5):
        observed(plain, [batch], other)
        if following:
            with tracker.following(len(batch)), torch.no_grad():
                layer(batch)
            assert tracker.observe(len(batch), followed=True)
        else:
            observed(layer, [batch], tracker)
        # The source's are means of 0 and variances of 1.
        torch.testing.assert_close(layer.running_mean, 0.75 * plain.running_mean)
        torch.testing.assert_close(layer.running_var, 0.75 * plain.running_var + 0.25)


def test_what_is_put_back_keeps_its_share_of_the_source() -> None:
    layer, tracker = make(window=16, share=0.25)
    batches = data(3)
    observed(layer, batches[:2], tracker)
    kept = tracker.running()
    other, again = make(window=16, share=0.25)
    again.begin_at(kept, 16)
    torch.testing.assert_close(again.running(), kept)
    for each, one in ((layer, tracker), (other, again)):
        observed(each, batches[2:], one)
    # The first batch has left one window; the other knows both as one.
    expected = (kept[0] / 0.75 * 2 + batches[2].mean((0, 2, 3))) / 3
    torch.testing.assert_close(other.running_mean, 0.75 * expected)


def test_a_window_weighs_batches_by_their_size() -> None:
    layer, tracker = make(window=100)
    batches = [*data(2), data(1, size=2)[0] + 5]
    observed(layer, batches, tracker)
    union = torch.cat(batches).transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(layer.running_mean, union.mean(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 16])
def test_the_first_batch_replaces_the_source(window: int | None) -> None:
    layer, tracker = make(window)
    layer.running_mean.fill_(100.0)
    batch = data(1)[0]
    observed(layer, [batch], tracker)
    torch.testing.assert_close(layer.running_mean, batch.mean((0, 2, 3)))
    torch.testing.assert_close(layer.running_var, batch.transpose(0, 1).reshape(3, -1).var(1))


def test_a_window_that_starts_at_the_source_lets_it_go_after_a_window() -> None:
    layer, tracker = make(window=16, start="source")
    batches = data(2)
    observed(layer, batches[:1], tracker)
    torch.testing.assert_close(layer.running_mean, batches[0].mean((0, 2, 3)) / 3)  # source: 16 samples of 0
    observed(layer, batches[1:], tracker)
    torch.testing.assert_close(layer.running_mean, torch.cat(batches).mean((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_an_exponential_average_moves_less_for_a_small_batch() -> None:
    layer, tracker = make(None, start="source")
    batch = data(1)[0]
    observed(layer, [batch], tracker)
    torch.testing.assert_close(layer.running_mean, 0.1 * batch.mean((0, 2, 3)))
    layer, tracker = make(None, start="source")
    observed(layer, [batch[:4]], tracker)
    torch.testing.assert_close(layer.running_mean, (1 - 0.9**0.5) * batch[:4].mean((0, 2, 3)))


def test_a_single_value_per_channel_is_no_statistic() -> None:
    layer = AdaptiveBatchNorm(nn.BatchNorm1d(3))
    tracker = RunningStatistics([layer], start="first_batch", window=8, momentum=0.1, batch=8)
    with normalising([layer], "batch"):
        layer(torch.ones(1, 3))
    assert not tracker.observe(1)
    assert not tracker.started
    assert torch.equal(layer.running_var, torch.ones(3))


def test_a_window_that_begins_anew_forgets_the_rest() -> None:
    layer, tracker = make(window=64)
    batches = data(3)
    observed(layer, batches[:2], tracker)
    with normalising([layer], "batch"), torch.no_grad():
        layer(batches[2])
    assert tracker.observe(8, reset=True)
    torch.testing.assert_close(layer.running_mean, batches[2].mean((0, 2, 3)))
