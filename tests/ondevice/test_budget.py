"""The budget is kept however a stream is split into calls, and the most useful samples go first."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.errors import ConfigError, FormatError, LogitsError
from cema.ondevice.selection.base import NotesChanges, Selector
from cema.ondevice.selection.budget import Budget
from cema.ondevice.selection.budget_options import BudgetOptions, Order, budget_options
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.rules import make_selector
from cema.testing.selectors import SelectorSuite, logits

ORDERS: tuple[Order, ...] = get_args(Order)
CALLS = st.lists(st.sampled_from([0, 1, 1, 1, 2, 7, 33, 64, 200]), min_size=1, max_size=40)


class TestBudgetByEntropy(SelectorSuite):
    __test__ = True
    config = SelectionConfig(rule="budget", options={"share": 0.1, "order": "entropy"})


class TestBudgetAtRandom(SelectorSuite):
    __test__ = True
    config = SelectionConfig(rule="budget", options={"share": 0.3, "order": "random", "seed": 7})


class TestBudgetByQuota(SelectorSuite):
    __test__ = True
    config = SelectionConfig(rule="budget", options={"order": "quota", "group": 8})


class TestBudgetByPrototype(SelectorSuite):
    __test__ = True
    config = SelectionConfig(rule="budget", options={"order": "prototype"})


class TestMixedBudgetWithBurst(SelectorSuite):
    __test__ = True
    config = SelectionConfig(rule="budget", options={"order": "mixed", "burst": 4.0, "burst_for": 50})


def run(selector: Selector, stream: npt.NDArray[np.float32], calls: list[int]) -> npt.NDArray[np.bool_]:
    """Give a stream in calls of these sizes, over and over until it ends, and return what was selected."""
    selected, at, turn = [np.zeros(0, np.bool_)], 0, 0
    while at < len(stream):
        part = stream[at : at + calls[turn % len(calls)]]
        selected.append(selector.select(part, softmax_entropy(part)))
        at, turn = at + len(part), turn + 1
    return np.concatenate(selected)


def budget(classes: int = 10, **options: Any) -> Budget:
    return Budget(classes, BudgetOptions(**options))


@settings(max_examples=150, deadline=None)
@given(
    CALLS,
    st.builds(
        BudgetOptions,
        share=st.floats(0.001, 1.0),
        order=st.sampled_from(ORDERS),
        burst=st.sampled_from([1.0, 1.5, 5.0]),
        burst_for=st.sampled_from([1, 40, 256]),
        group=st.sampled_from([1, 8, 64]),
    ),
    st.booleans(),
)
def test_no_split_into_calls_sends_more_than_the_share(
    calls: list[int], options: BudgetOptions, alike: bool
) -> None:
    selector = Budget(10, options)
    share, most = Fraction(options.share), Fraction(min(1.0, options.burst * options.share))
    seen = sent = 0
    for seed, count in enumerate(calls):
        batch = np.ones((count, 10), np.float32) if alike else logits(count, seed)
        sent += int(selector.select(batch, softmax_entropy(batch)).sum())
        seen += count
        assert sent <= share * seen + (most - share) * min(seen, options.burst_for) + Fraction(seen, 10**9)


@settings(max_examples=60, deadline=None)
@given(calls=CALLS, share=st.floats(0.01, 0.5), burst=st.sampled_from([1.0, 3.0]), seed=st.integers(0, 99))
def test_a_domain_that_never_stops_changing_sends_less_than_twice_the_share_and_one_burst(
    calls: list[int], share: float, burst: float, seed: int
) -> None:
    selector = budget(share=share, order="entropy", burst=burst, burst_for=20)
    seen = sent = 0
    for count in calls:
        selector.changed()
        batch = logits(count, seed + seen)
        sent += int(selector.select(batch, softmax_entropy(batch)).sum())
        seen += count
        assert sent <= share * (2 - 1 / burst) * seen + (burst - 1) * share * 20 + 1e-6


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("calls", [[1], [7], [64], [1, 64, 7, 200, 1]], ids=str)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.4, 0.8])
def test_nearly_all_of_the_share_is_spent(order: Order, calls: list[int], share: float) -> None:
    stream = logits(2000, seed=1)
    sent = run(budget(share=share, order=order), stream, calls).sum()
    # What is saved up at the end: half a bucket, and for each of the three parts of "mixed" up to one token.
    assert 0.95 * share * 2000 - 5 <= sent <= share * 2000


@pytest.mark.parametrize("calls", [[1], [7], [64], [500]], ids=str)
@pytest.mark.parametrize("order", ["entropy", "random", "quota", "prototype"])
def test_the_whole_share_is_everything(order: Order, calls: list[int]) -> None:
    assert run(budget(share=1.0, order=order), logits(700, seed=2), calls).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("calls", [[1], [7], [64]], ids=str)
def test_samples_that_are_all_alike_are_sent_at_the_share(order: Order, calls: list[int]) -> None:
    """Ties everywhere, and one class only."""
    stream = np.tile(np.array([[3.0, 1.0] + 8 * [0.0]], np.float32), (2000, 1))
    sent = run(budget(order=order), stream, calls).sum()
    assert 170 <= sent <= 200


def test_a_call_sends_its_highest_entropies() -> None:
    batch = logits(64, seed=4)
    entropy = softmax_entropy(batch)
    selected = budget(share=0.25, order="entropy").select(batch, entropy)
    np.testing.assert_array_equal(np.flatnonzero(selected), np.sort(np.argsort(-entropy)[:16]))


@pytest.mark.parametrize("calls", [[1], [7], [64]], ids=str)
def test_over_a_stream_the_highest_entropies_go_first(calls: list[int]) -> None:
    stream = logits(3000, seed=5)
    entropy = softmax_entropy(stream)
    selected = run(budget(share=0.1, order="entropy"), stream, calls)
    highest = np.sort(entropy)[-300:]
    # What an oracle that sees the whole stream would send, less what is not known one image at a time.
    assert entropy[selected].mean() > highest.mean() - 0.2 * highest.std() - 0.2
    assert entropy[selected].mean() > entropy.mean() + 1.2 * entropy.std()
    assert np.mean(entropy[selected] >= highest[0]) > 0.6


def test_the_threshold_follows_a_stream_whose_entropies_fall() -> None:
    hard, easy = logits(1000, seed=6) * 0.2, logits(3000, seed=7) * 3
    selected = run(budget(share=0.1, order="entropy"), np.concatenate([hard, easy]), [1])
    assert selected[1000:1300].sum() >= 5
    assert 180 < selected[2000:].sum() <= 207


def test_what_is_saved_up_is_bounded() -> None:
    """Entropies that only fall are never the highest: tokens are saved, and then lost."""
    selector = budget(share=0.1, order="entropy", group=64)
    saved = []
    for scale in np.linspace(1.0, 40.0, 600):
        batch = np.array([[scale] + 9 * [0.0]], np.float32)
        selector.select(batch, softmax_entropy(batch))
        saved.append(selector.describe()["tokens"])
    assert 6.4 < max(saved) <= 7.4


def test_at_random_is_random() -> None:
    stream = logits(6000, seed=8)
    selected = run(budget(share=0.2, order="random"), stream, [64])
    entropy = softmax_entropy(stream)
    assert abs(entropy[selected].mean() - entropy.mean()) < 3 * entropy.std() / math.sqrt(selected.sum())
    other = run(budget(share=0.2, order="random", seed=1), stream, [64])
    assert 0.12 < (selected & other).sum() / selected.sum() < 0.28


def imbalanced(count: int, seed: int) -> npt.NDArray[np.float32]:
    """Four of five predicted as class 0, the rest as classes 1 to 4; class 0 with the higher entropies."""
    rng = np.random.default_rng(seed)
    label = np.where(rng.random(count) < 0.8, 0, rng.integers(1, 5, count))
    batch = rng.uniform(0, 0.5, (count, 5))
    batch[np.arange(count), label] += np.where(label == 0, 1.0, 3.0) + rng.exponential(1.0, count)
    return batch.astype(np.float32)


@pytest.mark.parametrize("calls", [[1], [7], [64]], ids=str)
@pytest.mark.parametrize(("order", "least"), [("quota", 0.75), ("mixed", 0.6), ("prototype", 0.6)])
def test_every_class_has_its_quota(calls: list[int], order: Order, least: float) -> None:
    stream = imbalanced(4000, seed=9)
    labels, entropy = stream.argmax(axis=1), softmax_entropy(stream)
    selected = run(budget(5, share=0.1, order=order), stream, calls)
    counts = np.bincount(labels[selected], minlength=5)
    assert counts[1:].min() > least * selected.sum() / 5, counts
    by_entropy = run(budget(5, share=0.1, order="entropy"), stream, calls)
    assert np.mean(labels[by_entropy] == 0) > 0.95, "the stream tempts to send one class only"
    if order == "quota":
        for label in range(5):
            of_class = entropy[labels == label]
            assert entropy[selected & (labels == label)].mean() > np.quantile(of_class, 0.6)


def test_what_a_rare_class_leaves_goes_to_the_others() -> None:
    stream = imbalanced(4000, seed=10)
    labels = stream.argmax(axis=1)
    # Class 1 is hardly there; classes 2 to 4 are 15 % of the stream.
    keep = (labels != 1) | (np.arange(4000) % 8 == 0)
    stream, labels = stream[keep], labels[keep]
    selected = run(budget(5, share=0.2, order="quota"), stream, [64])
    assert selected.sum() > 0.19 * len(stream)
    sent = [float(selected[labels == label].mean()) for label in range(5)]
    assert sent[1] > 0.9, "a class that is rarer than its quota is sent whole"


def test_prototypes_are_sure_and_like_the_mean_prediction() -> None:
    stream = logits(3000, seed=11)
    entropy = softmax_entropy(stream)
    selected = run(budget(share=0.1, order="prototype"), stream, [64])
    assert np.mean(entropy[selected] <= np.quantile(entropy, 0.6)) > 0.97
    assert len(set(stream.argmax(axis=1)[selected])) == 10


def test_mixed_has_all_three() -> None:
    stream = logits(8000, seed=12)
    entropy = softmax_entropy(stream)
    selected = run(budget(share=0.1, order="mixed"), stream, [64])
    sure = entropy[selected] <= np.median(entropy)
    # The prototypes' 15 %, and half of the random 5 %.
    assert 0.12 < sure.mean() < 0.25


def test_the_first_samples_may_have_a_multiple_of_the_share() -> None:
    stream = logits(1024, seed=13)
    selected = run(budget(share=0.05, order="entropy", burst=4.0, burst_for=256), stream, [64])
    by_call = selected.reshape(-1, 64).sum(axis=1)
    assert (by_call[:4] >= 10).all()
    assert by_call[:4].sum() == 51  # 0.2 * 256, whole samples
    assert by_call[5:].max() <= 7


def test_a_burst_that_ends_within_a_call_is_counted_to_the_sample() -> None:
    first, second = budget(share=0.1, order="entropy", burst=5.0, burst_for=30), budget(share=0.1)
    stream = logits(100, seed=14)
    assert run(first, stream, [100]).sum() == 30 * 0.5 + 70 * 0.1
    assert run(second, stream, [100]).sum() == 10


def test_after_a_change_there_is_another_burst_but_not_at_once() -> None:
    selector = budget(share=0.1, order="entropy", burst=3.0, burst_for=64)
    assert isinstance(selector, NotesChanges)
    stream = logits(64 * 8, seed=15)
    selector.changed()  # the stream's own burst has only begun
    assert [int(run(selector, stream[:64], [64]).sum()), selector.describe()["burst_left"]] == [19, 0.0]
    selector.changed()  # too soon
    assert run(selector, stream[64:192], [64]).sum() <= 13
    selector.changed()  # three times 64 samples after the last burst began
    assert run(selector, stream[192:256], [64]).sum() >= 18


def test_after_a_change_samples_are_compared_with_new_ones() -> None:
    hard, easy = logits(1000, seed=16) * 0.2, logits(200, seed=17) * 3
    selectors = [budget(share=0.1, order="entropy") for _ in range(2)]
    for selector in selectors:
        run(selector, hard, [1])
    selectors[1].changed()
    told_nothing, told = (run(selector, easy[:64], [1]).sum() for selector in selectors)
    assert told_nothing < told


@settings(max_examples=60, deadline=None)
@given(CALLS, st.integers(0, 40), st.sampled_from(ORDERS), st.sampled_from([1.0, 4.0]))
def test_saving_and_restoring_in_the_middle_changes_nothing(
    calls: list[int], cut: int, order: Order, burst: float
) -> None:
    def fresh() -> Budget:
        return budget(share=0.2, order=order, burst=burst, burst_for=100, group=16, seed=3)

    whole, first, second = fresh(), fresh(), fresh()
    for seed, count in enumerate(calls[:cut]):
        batch = logits(count, seed)
        for selector in (whole, first):
            selector.select(batch, softmax_entropy(batch))
    second.load_state(json.loads(json.dumps(first.state())))
    for seed, count in enumerate(calls[cut:]):
        batch = logits(count, 100 + seed)
        entropy = softmax_entropy(batch)
        np.testing.assert_array_equal(whole.select(batch, entropy), second.select(batch, entropy))
    assert second.state() == whole.state()
    assert second.describe() == whole.describe()


@pytest.mark.parametrize(
    "change",
    [
        {"seen": -1},
        {"seen": 1.5},
        {"seen": True},
        {"sent": 999},
        {"burst_left": 257},
        {"no_burst_for": None},
        {"tokens": [1, 1]},
        {"tokens": [0.5]},
        {"tokens": [10**12]},
        {"tokens": 3},
        {"recent": [[1.0], [0.0]]},
        {"recent": [[1.0], [0.0], [0.0, 1.0]]},
        {"recent": [[math.nan], [0.0], [0.0]]},
        {"recent": [[1.0], [10.0], [0.0]]},
        {"recent": [[1.0], [0.5], [0.0]]},
        {"recent": [257 * [1.0], 257 * [0.0], 257 * [0.0]]},
        {"recent": None},
        {"mean": [0.1]},
        {"mean": "0.1"},
        {"settings": {}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused(change: dict[str, Any]) -> None:
    source, selector = budget(), budget()
    run(source, logits(100, seed=18), [50])
    before = selector.state()
    selector.load_state(source.state())
    selector = budget()
    with pytest.raises(FormatError, match="fresh selector"):
        selector.load_state(source.state() | change)
    assert selector.state() == before


@pytest.mark.parametrize(
    "other", [{"share": 0.2}, {"order": "entropy"}, {"seed": 1}, {"burst": 2.0}, {"group": 8}]
)
def test_a_state_of_other_settings_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="made with the settings"):
        budget(**other).load_state(budget().state())
    with pytest.raises(FormatError, match="made with the settings"):
        budget(9).load_state(budget().state())


@pytest.mark.parametrize(
    ("batch", "entropy"),
    [
        (np.ones((2, 10)), np.array([1.0, math.nan])),
        (np.full((2, 10), math.inf), np.array([1.0, 1.0])),
        (np.ones((2, 9)), np.array([1.0, 1.0])),
        (np.ones((2, 10)), np.array([1.0])),
        (np.ones((2, 10)), np.array([[1.0], [1.0]])),
    ],
)
def test_logits_that_are_none_are_refused_and_change_nothing(batch: Any, entropy: Any) -> None:
    selector = budget()
    run(selector, logits(20), [20])
    before = selector.state()
    with pytest.raises(LogitsError, match="expected"):
        selector.select(batch, entropy)
    assert selector.state() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, r"^options\.share: expected a number in \(0, 1\], got 0"),
        ({"share": 1.5}, r"^options\.share: "),
        ({"share": math.nan}, r"^options\.share: "),
        ({"share": "0.1"}, r"^options\.share: Expected `float`, got `str`"),
        ({"order": "quotas"}, r"^options\.order: expected one of entropy, .*'quotas'; did you mean quota"),
        ({"burst": 0.5}, r"^options\.burst: "),
        ({"burst": math.inf}, r"^options\.burst: "),
        ({"burst_for": 0}, r"^options\.burst_for: "),
        ({"group": 0}, r"^options\.group: "),
        ({"group": 1.5}, r"^options\.group: "),
        ({"seed": -1}, r"^options\.seed: "),
        ({"shares": 0.1}, r"^options\.shares: expected one of share, .*did you mean share"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectionConfig(rule="budget", options=options)


def test_options_are_read_as_toml_has_them() -> None:
    assert budget_options({"share": 1, "burst": 2}) == BudgetOptions(share=1.0, burst=2.0)
    selector = make_selector(SelectionConfig(rule="budget", options={"share": 0.5}), 10)
    assert selector.select(logits(64), softmax_entropy(logits(64))).sum() == 32
    with pytest.raises(ConfigError, match="2 classes"):
        Budget(1)
