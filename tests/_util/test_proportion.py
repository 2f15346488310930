from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema._util.proportion import proportion


@given(st.integers(1, 10**6), st.data())
def test_the_interval_ends_where_the_share_is_196_standard_errors_away(
    samples: int, data: st.DataObject
) -> None:
    matching = data.draw(st.integers(0, samples))
    found = proportion(samples, matching)
    assert 0 <= found.low <= found.share <= found.high <= 1
    # What defines Wilson's interval: the standard error at its ends, not at the share itself.
    for end in (found.low, found.high):
        error = math.sqrt(end * (1 - end) / samples)
        assert abs(found.share - end) == pytest.approx(1.959964 * error, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("samples", "matching"), [(3, 4), (3, -1), (-1, -1)])
def test_counts_that_cannot_be_are_refused(samples: int, matching: int) -> None:
    with pytest.raises(ValueError, match="expected from 0 to"):
        proportion(samples, matching)
