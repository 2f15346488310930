"""The trace that a worker leaves of every version."""

from __future__ import annotations

import pytest
from worker_cloud import Cloud, drain

from cema.cloud.store.base import StoredSample
from cema.cloud.worker.tracing import STEPS_TRACED, Tracer


def publish(cloud: Cloud) -> int:
    """Send drifted samples until there is a version more."""
    worker = cloud.open()
    before = cloud.store.newest_versions(["north"])["north"]
    for _ in range(20):
        cloud.send(16)
        cloud.now += 3
        drain(worker)
        version = cloud.store.newest_versions(["north"])["north"]
        if version > before:
            return version
    pytest.fail("nothing was published")


def test_a_version_has_a_trace_of_all_that_it_learned_from(cloud: Cloud) -> None:
    first = publish(cloud)
    trace = cloud.store.trace("north", first)
    assert trace is not None
    assert trace["version"] == first
    assert trace["published_at"] == trace["evidence_at"] == cloud.now
    assert [step["samples"] for step in trace["steps"]] == [16] * (cloud.sent // 16)
    assert trace["samples"] == cloud.sent
    last = trace["steps"][-1]
    assert last["received"] == [cloud.now - 3] * 2
    assert last["begin"] == cloud.now
    assert last["seconds"] > 0
    assert last["devices"] == 1
    assert trace["outcomes"]["published"] == 1
    sent = cloud.sent
    second = publish(cloud)
    later = cloud.store.trace("north", second)
    assert later is not None
    assert later["samples"] == cloud.sent - sent
    assert later["since"] >= trace["published_at"]


def test_a_trace_goes_with_its_update_or_not_at_all(cloud: Cloud) -> None:
    worker = cloud.open()
    cloud.send(200)
    commit = cloud.store.database.write

    def broken() -> object:
        raise OSError("the disk is gone")

    cloud.store.database.write = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="disk"):
        drain(worker)
    cloud.store.database.write = commit  # type: ignore[method-assign]
    assert cloud.store.traced("north") == []
    worker.rewind()
    drain(worker)
    versions = cloud.store.traced("north")
    assert versions[-1] == cloud.store.newest_versions(["north"])["north"] > 0


def test_a_version_that_is_signed_anew_has_a_trace_without_evidence(cloud: Cloud) -> None:
    version = publish(cloud)
    cloud.now += 40 * 86_400
    worker = cloud.open()
    drain(worker)
    trace = cloud.store.trace("north", version + 1)
    assert trace is not None
    assert trace["evidence_at"] is None
    assert trace["steps"] == []


def test_a_trace_is_bounded() -> None:
    tracer = Tracer(0.0)
    sample = StoredSample(1, "0" * 64, b"", 0.5, 0, 0, captured_at=1.0, received_at=2.0, device="d")
    for i in range(3 * STEPS_TRACED):
        tracer.learned([sample, sample], float(i), 0.5)
    trace = tracer.take(1.0)
    begins = [step["begin"] for step in trace["steps"]]
    assert begins == [0.0, *map(float, range(2 * STEPS_TRACED + 1, 3 * STEPS_TRACED))]
    assert trace["steps_left_out"] == 2 * STEPS_TRACED
    assert trace["samples"] == 6 * STEPS_TRACED
