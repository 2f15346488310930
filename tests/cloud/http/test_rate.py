"""The limit to what one device sends."""

from __future__ import annotations

from pathlib import Path

from cloud_client import SOUTH, Cloud, refused
from cloud_support import StillEngine, make_samples, serving, write_config
from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.config import CloudConfig
from cema.cloud.http.rate import BURST_SECONDS, MOST_DEVICES, RateLimit
from cema.formats.sample import encode_samples


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.floats(0.5, 50),
    steps=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 40)), min_size=1, max_size=40),
)
def test_over_any_time_no_more_is_taken_than_the_rate_and_one_burst(
    rate: float, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    limit = RateLimit(rate, clock=clock)
    taken = 0
    largest = 0
    for seconds, samples in steps:
        clock.now += seconds
        largest = max(largest, samples)
        if not limit.take("cam", samples):
            taken += samples
        assert taken <= rate * (clock.now + BURST_SECONDS) + largest


def test_what_was_refused_is_taken_after_the_time_that_was_said() -> None:
    clock = Clock()
    limit = RateLimit(2.0, clock=clock)
    assert limit.take("cam", 60) == 0
    wait = limit.take("cam", 32)
    assert wait == 16
    assert limit.take("other", 32) == 0
    clock.now += wait
    assert limit.take("cam", 32) == 0


def test_a_request_larger_than_a_bucket_gets_through_a_full_one() -> None:
    clock = Clock()
    limit = RateLimit(1.0, clock=clock)
    assert limit.take("cam", 256) == 0
    assert limit.take("cam", 1) > 0
    clock.now += 256
    assert limit.take("cam", 256) == 0


def test_invented_names_take_no_memory() -> None:
    limit = RateLimit(1.0)
    for i in range(MOST_DEVICES + 10):
        limit.take(str(i), 1)
    assert len(limit._buckets) == MOST_DEVICES


def test_no_limit() -> None:
    assert RateLimit(0.0).take("cam", 10**9) == 0


def test_a_device_that_sends_too_fast_is_429_and_others_are_not(tmp_path: Path) -> None:
    # A rate so low that the bucket holds one request.
    limits = f"[limits]\ndevice_samples = {8 / BURST_SECONDS}\n"
    engine = StillEngine(CloudConfig.load(write_config(tmp_path, extra=limits, cohorts=SOUTH)))
    with serving(engine) as url:
        cloud = Cloud(engine, url)
        assert len(cloud.send(make_samples(8))) == 8
        response = cloud.post(encode_samples(make_samples(4, seed=1)))
        refused(response, 429, "too_fast")
        assert 14 <= int(response.headers["Retry-After"]) <= 16
        cloud.token = engine.devices.add("other", cohort="north")
        assert len(cloud.send(make_samples(4, seed=1))) == 4
        cloud.http.close()
