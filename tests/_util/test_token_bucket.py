from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from cema._util.token_bucket import TokenBucket

SECOND = 10**9
BUCKETS = st.builds(TokenBucket, st.fractions(Fraction(1, 10), 10**13), st.integers(1, 86_400))


@given(
    bucket=BUCKETS,
    steps=st.lists(st.tuples(st.integers(0, 10**14), st.integers(0, 10**13)), min_size=1, max_size=40),
)
def test_from_any_moment_on_no_more_is_taken_than_one_bucket_and_what_flows_in(
    bucket: TokenBucket, steps: list[tuple[int, int]]
) -> None:
    used, now = Fraction(0), 0
    taken: list[tuple[int, int]] = []
    for nanoseconds, amount in steps:
        now += nanoseconds
        used = bucket.left_of(used, nanoseconds)
        if bucket.wait(used, amount) == 0:
            used += amount
            taken.append((now, amount))
    for i, (begin, _) in enumerate(taken):
        largest = max(amount for _, amount in taken[i:])
        allowed = bucket.capacity * (1 + Fraction(now - begin, bucket.seconds * SECOND))
        assert sum(amount for _, amount in taken[i:]) <= max(allowed, allowed - bucket.capacity + largest)


@given(bucket=BUCKETS, used=st.fractions(0, 10**13), amount=st.integers(0, 10**13))
def test_the_wait_is_exact(bucket: TokenBucket, used: Fraction, amount: int) -> None:
    wait = bucket.wait(used, amount)
    assert bucket.wait(bucket.left_of(used, wait), amount) == 0
    if wait:
        assert bucket.wait(bucket.left_of(used, wait - 1), amount) > 0


@given(bucket=BUCKETS, used=st.fractions(0, 10**13), parts=st.lists(st.integers(0, 10**13), max_size=30))
def test_asking_often_gains_nothing(bucket: TokenBucket, used: Fraction, parts: list[int]) -> None:
    often = used
    for part in parts:
        often = bucket.left_of(often, part)
    assert often == bucket.left_of(used, sum(parts))


def test_a_clock_that_goes_back_fills_nothing() -> None:
    bucket = TokenBucket(Fraction(10), 60)
    assert bucket.left_of(Fraction(5), -SECOND) == 5
