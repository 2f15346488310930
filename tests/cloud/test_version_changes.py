"""What a version changed, and where domains lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cema.cloud.version_changes import MOST_MOVED, like, moved, project
from cema.formats.payload import Payload

LOGITS = np.zeros((1, 2), np.float32)


def payload(*, unfolded: bool = False, **tensors: list[float]) -> Payload:
    state = {
        f"{name}.{part}": np.array(values, np.float32)
        for name, values in tensors.items()
        for part in ("scale", "shift")
    }
    return Payload(state, LOGITS, unfolded=unfolded)


def test_what_moved_furthest_comes_first_by_the_name_that_people_know() -> None:
    before = payload(a=[1.0, 1.0], b=[2.0, 0.0]).norm_state
    now = payload(unfolded=True, a=[1.0, 1.0], b=[0.0, 0.0])
    now.norm_state["a.shift"] = np.array([1.0, 1.5], np.float32)
    told = moved(now, before)
    assert told is not None
    assert [one["name"] for one in told] == ["b.bias", "b.weight", "a.bias", "a.weight"]
    assert told[0] == {"name": "b.bias", "relative": 1.0, "rms": pytest.approx(2**0.5), "size": 2}
    assert told[3]["relative"] == told[3]["rms"] == 0.0
    folded = moved(payload(a=[1.0, 2.0]), payload(a=[1.0, 1.0]).norm_state)
    assert folded is not None
    assert [one["name"] for one in folded] == ["a.scale", "a.shift"]


def test_only_like_is_compared_with_like() -> None:
    one, other = payload(a=[1.0]), payload(unfolded=True, a=[2.0])
    assert like(one, other) is None
    assert like(one, None) is None
    assert like(one, payload(a=[3.0])) is not None
    assert moved(one, None) is None
    assert moved(one, payload(b=[1.0]).norm_state) is None
    assert moved(one, payload(a=[1.0, 2.0]).norm_state) is None


def test_the_list_is_bounded_and_nothing_divides_by_zero() -> None:
    many = payload(**{f"layer{i}": [float(i)] for i in range(50)})
    still = payload(**{f"layer{i}": [0.0] for i in range(50)})
    told = moved(many, still.norm_state)
    assert told is not None
    assert len(told) == MOST_MOVED
    zeros = moved(still, still.norm_state)
    assert zeros is not None
    assert {one["relative"] for one in zeros} == {0.0}


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.integers(1, 10)), elements=st.floats(-1e3, 1e3))
)
def test_two_directions_never_explain_more_than_all(rows: np.ndarray) -> None:
    points, explained = project(rows.tolist())
    assert points.shape == (len(rows), 2)
    assert np.isfinite(points).all()
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in explained)
    assert sum(explained) <= 1 + 1e-9
    assert explained[0] >= explained[1] - 1e-9


def test_points_of_a_plane_keep_their_distances_and_two_groups_stay_apart() -> None:
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((40, 2))
    points, explained = project(flat.tolist())
    assert sum(explained) == pytest.approx(1.0)
    scaled = flat / flat.std(axis=0)
    for i, j in ((0, 1), (5, 30), (7, 12)):
        assert np.linalg.norm(points[i] - points[j]) == pytest.approx(np.linalg.norm(scaled[i] - scaled[j]))
    day, night = rng.normal(0, 0.1, (20, 10)), rng.normal(0, 0.1, (20, 10)) + 1.0
    points, explained = project([*day.tolist(), *night.tolist()])
    assert explained[0] > 0.8
    assert points[:20, 0].max() < points[20:, 0].min(), "the largest part of a direction is positive"
