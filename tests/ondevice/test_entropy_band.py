from __future__ import annotations

import json
import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cema.errors import FormatError, LogitsError
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.entropy_band import EntropyBand


def exact_entropy(logits: Sequence[float]) -> Decimal:
    """Return the entropy by its definition, with 60 decimal digits."""
    with localcontext() as context:
        context.prec = 60
        values = [Decimal(float(value)) for value in logits]
        top = max(values)
        # Below e^-745 float64 has no number for what a class adds.
        weights = [(value - top).exp() if value - top > -760 else Decimal(0) for value in values]
        total = sum(weights)
        shares = [weight / total for weight in weights if weight > 0]
        return -sum((share * share.ln() for share in shares), Decimal(0))


def rows(dtype: Any) -> st.SearchStrategy[np.ndarray]:
    width = np.dtype(dtype).itemsize * 8
    return hnp.arrays(
        dtype, st.integers(2, 12), elements=st.floats(width=width, allow_nan=False, allow_infinity=False)
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_entropy_of_any_finite_logits_is_right(dtype: Any) -> None:
    @settings(max_examples=100, deadline=None)
    @given(rows(dtype))
    def check(logits: np.ndarray) -> None:
        expected = float(exact_entropy(logits.tolist()))
        got = softmax_entropy(logits)
        assert got.dtype == np.float64
        assert got.shape == ()
        assert 0.0 <= float(got) <= math.log(logits.size)
        assert float(got) == pytest.approx(expected, rel=1e-12, abs=1e-46)

    check()


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(-40, 40)))
def test_entropy_of_ordinary_logits_is_right(logits: np.ndarray) -> None:
    assert float(softmax_entropy(logits)) == pytest.approx(float(exact_entropy(logits.tolist())), rel=1e-12)


def test_entropy_keeps_its_digits_when_one_class_has_all_the_mass() -> None:
    # 1 - p underflows in the textbook formula: E is about 41 e^-40.
    assert float(softmax_entropy([40.0, 0.0])) == pytest.approx(float(exact_entropy([40.0, 0.0])), rel=1e-14)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (np.array([65504, -65504, 0], np.float16), 0.0),
        (np.array([65504, 65504], np.float16), math.log(2)),
        (np.array([-65504, -65504, -65504], np.float16), math.log(3)),
        (np.array([6e-8, -6e-8], np.float16), math.log(2)),
        (np.array([3.4e38, -3.4e38], np.float32), 0.0),
        (np.array([1.7e308, -1.7e308, 1.7e308]), math.log(2)),
        (np.array([3, 3, 3, 3], np.int64), math.log(4)),
    ],
)
def test_entropy_at_the_ends_of_the_number_line(logits: np.ndarray, expected: float) -> None:
    assert float(softmax_entropy(logits)) == pytest.approx(expected, rel=1e-7, abs=1e-300)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(0, 4), st.integers(2, 6)), elements=st.floats(-30, 30, width=32)
    )
)
def test_rows_do_not_depend_on_each_other(logits: np.ndarray) -> None:
    together = softmax_entropy(logits)
    assert together.shape == logits.shape[:1]
    for row, value in zip(logits, together, strict=True):
        assert float(softmax_entropy(row)) == float(value)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(2, 8), elements=st.floats(-30, 30)), st.randoms(use_true_random=False)
)
def test_entropy_does_not_see_order_or_offset(logits: np.ndarray, random: Any) -> None:
    order = list(range(logits.size))
    random.shuffle(order)
    shuffled = softmax_entropy(logits[order] + 3.0)
    assert float(shuffled) == pytest.approx(float(softmax_entropy(logits)), rel=1e-9, abs=1e-12)


def test_leading_dimensions_are_kept() -> None:
    assert softmax_entropy(np.zeros((2, 3, 5))).shape == (2, 3)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.float32(1.0), r"shape \(..., C\)"),
        (np.zeros((3, 1)), "C >= 2"),
        (np.zeros((3, 0)), "C >= 2"),
        (np.array([[0.0, np.nan], [0.0, 1.0]]), "in 1 of 2 samples"),
        (np.array([0.0, np.inf]), "in 1 of 1 samples"),
        (np.array([0.0, -np.inf], np.float16), "NaN or infinity"),
        (np.array([True, False]), "dtype bool"),
        (np.array([1 + 1j, 0]), "dtype complex128"),
    ],
)
def test_damaged_logits_are_refused(logits: Any, message: str) -> None:
    with pytest.raises(LogitsError, match=message):
        softmax_entropy(logits)


def reference_thresholds(
    stream: Sequence[Sequence[float]],
    *,
    classes: int,
    decay: float,
    average: str,
    momentum: float,
    group: int,
) -> list[float]:
    """Return E_max after every call, written as a plain loop over the formula."""
    top, low, e_max = math.log(classes), 0.02 * math.log(classes), 0.4 * math.log(classes)
    everything: list[float] = []
    pending: list[float] = []
    previous: float | None = None
    thresholds = []
    for call in stream:
        pending.extend(call)
        if call and len(pending) >= group:
            everything.extend(pending)
            batch_mean = math.fsum(pending) / len(pending)
            if average == "running":
                current = math.fsum(everything) / len(everything)
            else:
                current = (
                    batch_mean if previous is None else (1 - momentum) * previous + momentum * batch_mean
                )
            if previous is not None:
                ratio = current / previous if min(current, previous) >= 1e-12 else 1.0
                e_max = min(top, max(low, decay * e_max * ratio))
            previous = current
            pending = []
        thresholds.append(e_max)
    return thresholds


streams = st.lists(st.lists(st.floats(0, math.log(10)), max_size=12), max_size=25)


@settings(max_examples=100, deadline=None)
@given(
    streams,
    st.sampled_from([1.0, 0.9, 0.5, 1.1]),
    st.sampled_from(["running", "exponential"]),
    st.sampled_from([0.1, 0.7, 1.0]),
    st.sampled_from([1, 4, 16]),
)
def test_the_threshold_follows_the_formula(
    stream: list[list[float]], decay: float, average: Any, momentum: float, group: int
) -> None:
    selector = EntropyBand(
        10, SelectionConfig(decay=decay, average=average, momentum=momentum, group=group, floor=0)
    )
    expected = reference_thresholds(
        stream, classes=10, decay=decay, average=average, momentum=momentum, group=group
    )
    for call, e_max in zip(stream, expected, strict=True):
        chosen = selector.decide(np.array(call))
        assert selector.e_max == pytest.approx(e_max, rel=1e-9)
        assert chosen.tolist() == [selector.e_min < value < selector.e_max for value in call]


def threshold(selector: EntropyBand, entropies: list[float]) -> float:
    """Return the upper threshold that decided about these."""
    selector.decide(entropies)
    return selector.e_max


def test_a_recorded_stream() -> None:
    selector = EntropyBand(10, SelectionConfig(group=1, floor=0))
    start = 0.4 * math.log(10)
    assert threshold(selector, [1.0, 1.0]) == pytest.approx(start)
    assert threshold(selector, [2.0, 2.0]) == pytest.approx(start * 1.5)
    assert threshold(selector, [0.0, 0.0]) == pytest.approx(start)
    assert threshold(selector, [0.2, 0.2]) == pytest.approx(start * 0.8)


def test_decay_compounds_and_is_clamped() -> None:
    selector = EntropyBand(10, SelectionConfig(decay=0.9, group=1, floor=0))
    selector.decide([1.0])
    for step in range(1, 12):
        assert threshold(selector, [1.0]) == pytest.approx(0.4 * math.log(10) * 0.9**step)
    for _ in range(100):
        selector.decide([1.0])
    assert selector.e_max == selector.e_min
    assert not selector.decide([selector.e_min]).any()
    rising = EntropyBand(10, SelectionConfig(decay=2.0, group=1))
    for _ in range(10):
        rising.decide([1.0])
    assert rising.e_max == math.log(10)


@settings(max_examples=100, deadline=None)
@given(streams, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.9, 1.0]), st.sampled_from([1, 4, 16]))
def test_the_floor_bounds_what_decides_and_leaves_the_recursion(
    stream: list[list[float]], floor: float, decay: float, group: int
) -> None:
    paper, ours = (
        EntropyBand(10, SelectionConfig(decay=decay, group=group, floor=value)) for value in (0, floor)
    )
    for call in stream:
        expected, got = paper.decide(call), ours.decide(call)
        average = ours.state()["average"] or 0.0
        assert ours.e_max == min(max(paper.e_max, floor * average), math.log(10))
        assert set(np.flatnonzero(expected)) <= set(np.flatnonzero(got))
        assert ours.state()["e_max"] == paper.state()["e_max"]


def test_a_stream_that_is_hard_from_its_start_is_not_starved() -> None:
    entropies = np.random.default_rng(0).uniform(1.0, 2.2, (10, 64))
    paper, ours = EntropyBand(10, SelectionConfig(floor=0)), EntropyBand(10)
    assert sum(int(paper.decide(batch).sum()) for batch in entropies) == 0
    assert 0.4 < np.mean([ours.decide(batch) for batch in entropies]) < 0.6


def test_single_samples_are_grouped() -> None:
    selector = EntropyBand(10, SelectionConfig(group=4, floor=0))
    thresholds = [threshold(selector, [value]) for value in [1.0] * 4 + [2.0] * 4]
    assert thresholds[:7] == [0.4 * math.log(10)] * 7
    assert thresholds[7] == pytest.approx(0.4 * math.log(10) * 1.5)


def test_silence_has_no_ratio() -> None:
    selector = EntropyBand(10, SelectionConfig(group=1))
    for _ in range(3):
        assert threshold(selector, [0.0, 0.0]) == 0.4 * math.log(10)
    assert threshold(selector, [1.0]) == 0.4 * math.log(10)


def test_an_empty_call_changes_nothing() -> None:
    selector = EntropyBand(10, SelectionConfig(group=1))
    before = selector.state()
    assert selector.decide(np.array([])).shape == (0,)
    assert selector.state() == before


@pytest.mark.parametrize("entropy", [[math.nan], [math.inf], [[1.0]], 1.0])
def test_damaged_entropies_leave_the_selector_as_it_was(entropy: Any) -> None:
    selector = EntropyBand(10, SelectionConfig(group=1))
    selector.decide([1.0])
    before = selector.state()
    with pytest.raises(LogitsError):
        selector.decide(entropy)
    assert selector.state() == before


@settings(max_examples=100, deadline=None)
@given(streams, st.integers(0, 25), st.sampled_from(["running", "exponential"]), st.sampled_from([0.95, 1.0]))
def test_saving_and_restoring_in_the_middle_changes_nothing(
    stream: list[list[float]], cut: int, average: Any, decay: float
) -> None:
    def fresh() -> EntropyBand:
        return EntropyBand(10, SelectionConfig(decay=decay, average=average, group=8))

    whole, first = fresh(), fresh()
    for call in stream[:cut]:
        whole.decide(call)
        first.decide(call)
    second = fresh()
    second.load_state(json.loads(json.dumps(first.state())))
    for call in stream[cut:]:
        np.testing.assert_array_equal(whole.decide(call), second.decide(call))
        assert whole.e_max == second.e_max
    assert second.state() == whole.state()


@pytest.mark.parametrize(
    "change",
    [
        {"e_max": math.nan},
        {"e_max": 100.0},
        {"e_max": "1"},
        {"count": -1},
        {"count": True},
        {"pending_count": 0.5},
        {"average": None},
        {"total": None},
        {"extra": 1},
        {"settings": {}},
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, Any]) -> None:
    source, selector = EntropyBand(10, SelectionConfig(group=1)), EntropyBand(10, SelectionConfig(group=1))
    source.decide([1.0, 0.5])
    before = selector.state()
    with pytest.raises(FormatError, match="fresh selector"):
        selector.load_state(source.state() | change)
    assert selector.state() == before


entropies = st.lists(st.lists(st.floats(0.0, math.log(10)), max_size=6), max_size=12)


@settings(max_examples=100, deadline=None)
@given(entropies, entropies, st.integers(1, 8))
def test_after_a_change_it_decides_as_a_new_one_does(
    before: list[list[float]], after: list[list[float]], group: int
) -> None:
    config = SelectionConfig(group=group, on_change="restart")
    selector, new = EntropyBand(10, config), EntropyBand(10, config)
    for call in before:
        selector.decide(call)
    selector.changed()
    assert selector.state() == new.state()
    for call in after:
        np.testing.assert_array_equal(selector.decide(call), new.decide(call))


@settings(max_examples=50, deadline=None)
@given(entropies)
def test_the_papers_thresholds_go_on_after_a_change(before: list[list[float]]) -> None:
    selector = EntropyBand(10, SelectionConfig(group=2))
    for call in before:
        selector.decide(call)
    state = selector.state()
    selector.changed()
    assert selector.state() == state


def test_after_a_hard_domain_an_easy_one_is_sent_again() -> None:
    hard, easy = [0.9, 1.1] * 32, [0.1, 0.3] * 32
    sent = {}
    for on_change in ("keep", "restart"):
        selector = EntropyBand(10, SelectionConfig(group=64, floor=0.0, on_change=on_change))  # type: ignore[arg-type]
        selector.decide(hard)
        for _ in range(30):
            selector.decide(easy)
        selector.changed()
        sent[on_change] = int(selector.decide(easy).sum())
    assert sent == {"keep": 32, "restart": 64}


def test_a_state_from_before_changes_were_noted_goes_on() -> None:
    selector = EntropyBand(10, SelectionConfig())
    selector.decide([1.0] * 64)
    state = json.loads(json.dumps(selector.state()))
    assert "on_change" not in state["settings"]
    with pytest.raises(FormatError, match="made with the settings"):
        EntropyBand(10, SelectionConfig(on_change="restart")).load_state(state)
    EntropyBand(10, SelectionConfig()).load_state(state)


def test_a_state_of_other_settings_is_refused() -> None:
    with pytest.raises(FormatError, match="made with the settings"):
        EntropyBand(10, SelectionConfig(group=2)).load_state(
            EntropyBand(10, SelectionConfig(group=1)).state()
        )


@pytest.mark.parametrize(
    "arguments",
    [
        {"classes": 1},
        {"e_min": 0.5},
        {"e_min": -0.1},
        {"e_max": 1.1},
        {"decay": 0.0},
        {"decay": math.inf},
        {"average": "median"},
        {"momentum": 0.0},
        {"momentum": 1.5},
        {"group": 0},
        {"floor": -0.1},
        {"floor": math.inf},
        {"on_change": "reset"},
        {"d_margin": 1.5},
        {"options": {"share": 0.5}},
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        EntropyBand(arguments.pop("classes", 10), SelectionConfig(**arguments))


def test_why_samples_are_left_out() -> None:
    selector = EntropyBand(10, SelectionConfig(d_margin=0.5, group=1000))
    logits = np.zeros((5, 10), np.float32)
    logits[:4, 0] = 4.0
    entropy = np.array([0.5, 0.5, 0.001, selector.e_min, 2.2])
    assert selector.select(logits, entropy).tolist() == [True, True, False, False, False]
    assert selector.left_out() == {"below": 2, "above": 1, "redundant": 0}
    assert not selector.select(logits[:1], entropy[:1]).any()
    assert selector.left_out() == {"below": 0, "above": 0, "redundant": 1}
