"""What the worker leaves in the store about the agreement with the foundation model."""

from __future__ import annotations

import numpy as np
import pytest
from cloud_support import samples_of
from cloud_tiny_models import quadrants
from worker_cloud import Cloud, cloud, drain

from cema.cloud.store.agreements import AgreementCount
from cema.cloud.store.base import StoredSample
from cema.cloud.worker.gate import BatchAgreement
from cema.cloud.worker.measured import counts_of

__all__ = ["cloud"]


def stored(version: int, label: int) -> StoredSample:
    return StoredSample(1, "", b"", 0.1, label, version, 1.0, 1.0)


@pytest.mark.parametrize("before_update", [True, False])
def test_each_model_and_each_version_that_answered_is_counted(before_update: bool) -> None:
    tested = BatchAgreement(count=5, adapted=4, running=3, source=1, before_update=before_update)
    samples = [stored(0, 1), stored(2, 1), stored(2, 0), stored(3, 2), stored(9, 2)]
    found = counts_of(tested, samples, np.array([1, 1, 1, 2, 2]), version=3)
    adapted = [AgreementCount(3, "adapted", 5, 4)] if before_update else []
    assert sorted(found) == sorted(
        [
            AgreementCount(3, "running", 5, 3),
            AgreementCount(3, "source", 5, 1),
            *adapted,
            AgreementCount(0, "device", 1, 1),
            AgreementCount(2, "device", 2, 1),
            AgreementCount(3, "device", 1, 1),  # and none of version 9, which there is not yet
        ]
    )


def test_the_store_tells_that_adaptation_helps(cloud: Cloud) -> None:
    cloud.send(320)
    drain(cloud.open())
    versions = cloud.store.agreement_by_version("north")
    assert versions[0].version == 0
    assert versions[-1].version >= 3
    for model in ("running", "source"):
        assert sum(v.models[model].samples for v in versions) == 320
    # All were answered by the model that devices came with, at random labels.
    assert versions[0].models["device"].samples == 320
    last = versions[-1].models
    assert last["running"].share > last["source"].share


def test_a_step_that_failed_is_not_counted(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = cloud.open()
    cloud.send(16)
    candidate = worker._candidate

    def fail() -> None:
        monkeypatch.setattr(worker, "_candidate", candidate)
        raise RuntimeError("no memory")

    monkeypatch.setattr(worker, "_candidate", fail)
    drain(worker)
    cloud.now += 100.0  # the other half of the batch has waited long enough
    drain(worker)
    points = cloud.store.agreement_over_time("north")
    assert [point.samples for point in points if point.model == "source"] == [8, 8]


def test_what_devices_answered_is_compared_as_they_said_it(cloud: Cloud) -> None:
    images, labels = quadrants(16, 5, drift=False)
    worker = cloud.open()
    samples = samples_of(images)
    cloud.store.put("north", samples, device="d", now=cloud.now, max_backlog=100)
    drain(worker)
    told = [sample.label for sample in samples]
    answers = cloud.store.agreement_by_version("north")[0].models["device"]
    # The foundation model is right about clean images.
    assert answers.share == pytest.approx(np.mean(np.array(told) == labels))
