"""What a worker does with what people decide about samples: it forgets, and it lets nothing grow too old."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cloud_support import samples_of
from cloud_tiny_models import PREPROCESSING, quadrants
from file_bytes import found_in
from worker_cloud import Cloud, drain

from cema.adapt.learner import CemaLearner
from cema.cloud.store.base import Fenced
from cema.cloud.store.data import RETENTION, DataFilter
from cema.cloud.worker.checkpoint import Progress
from cema.cloud.worker.cohort import CohortWorker
from cema.cloud.worker.replayed import replayed_seqs
from cema.errors import ConfigError, StoreUnavailable
from cema.formats.sample import Sample
from cema.ondevice.drift import input_statistics

DAY = 86_400.0


class Device:
    """Sends samples of its own, and knows what they look like."""

    def __init__(self, cloud: Cloud, name: str, seed: int) -> None:
        self.cloud, self.name, self.seed = cloud, name, seed
        self.samples: list[Sample] = []
        self.rows: list[bytes] = []

    def send(self, count: int) -> None:
        images, _ = quadrants(count, self.seed + len(self.samples), drift=True)
        samples = samples_of(images)
        self.samples += samples
        self.rows += [row.tobytes() for row in input_statistics(PREPROCESSING(images))]
        self.cloud.store.put("north", samples, device=self.name, now=self.cloud.now, max_backlog=10**6)

    @property
    def seqs(self) -> set[int]:
        found = (self.cloud.store.data_sample("north", sample.id) for sample in self.samples)
        return {sample.seq for sample in found if sample is not None}


def devices(cloud: Cloud) -> tuple[Device, Device]:
    """Two devices whose samples were learned from, in turn."""
    first, second = Device(cloud, "a", 100), Device(cloud, "b", 5000)
    for _ in range(8):
        first.send(8)
        second.send(8)
    return first, second


def learner_of(worker: CohortWorker) -> CemaLearner[int]:
    assert isinstance(worker.learner, CemaLearner)
    return worker.learner


def test_what_a_worker_keeps_of_deleted_samples_goes_with_its_next_turn(cloud: Cloud) -> None:
    first, second = devices(cloud)
    worker = cloud.open()
    drain(worker)
    gone, left = first.seqs, second.seqs
    learner = learner_of(worker)
    assert set(learner.replay_buffer.items()) == gone | left
    assert {row in worker.learner.dumps() for row in first.rows[-16:]} == {True}
    assert "a" in worker.progress.ledger.devices
    receipt = cloud.store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=cloud.now)
    assert (receipt.samples, receipt.state) == (64, "waiting")
    assert worker.run_once()
    (receipt,) = cloud.store.receipts("north")
    assert (receipt.state, receipt.note) == ("done", "")
    assert set(learner.replay_buffer.items()) == left
    checkpoint = cloud.store.saved_checkpoint("north")
    assert checkpoint is not None
    assert replayed_seqs(checkpoint) == left
    assert not any(row in checkpoint for row in first.rows)
    assert all(row in checkpoint for row in second.rows[-16:])
    assert len(learner._taught.targets) <= len(left)
    assert "a" not in worker.progress.ledger.devices
    assert not worker.run_once()
    # Neither the state of before nor the images are in any file.
    contents = [sample.image for sample in first.samples]
    assert found_in(cloud.folder / "data", contents) == set()
    for path in (cloud.folder / "data").iterdir():
        data = path.read_bytes()
        assert not any(row in data for row in first.rows)


def test_a_worker_goes_on_learning_after_it_has_forgotten(cloud: Cloud) -> None:
    _, second = devices(cloud)
    worker = cloud.open()
    drain(worker)
    cloud.store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=cloud.now)
    drain(worker)
    before = cloud.counters()["steps.count"]
    second.send(32)
    assert drain(worker) >= 2
    assert cloud.counters()["steps.count"] > before
    restarted = cloud.open()
    assert restarted.learner.dumps() == worker.learner.dumps()


def test_samples_that_wait_or_are_held_are_deleted_too(cloud: Cloud) -> None:
    cloud.worker_config(linger_seconds=1e6)
    first, second = devices(cloud)
    worker = cloud.open()
    drain(worker)
    first.send(14)  # more than one device may give to a batch
    second.send(2)
    assert worker.run_once()
    assert set(worker.progress.held) & first.seqs
    first.send(3)
    cloud.store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=cloud.now)
    drain(worker)
    assert set(worker.progress.held) <= second.seqs
    assert cloud.store.receipts("north")[0].state == "done"
    cloud.now += 2e6
    drain(worker)
    assert cloud.store.backlog("north").samples == 0
    assert set(learner_of(worker).replay_buffer.items()) <= second.seqs


def test_a_step_that_was_begun_before_a_deletion_is_committed_and_then_forgotten(cloud: Cloud) -> None:
    device = Device(cloud, "a", 100)
    worker = cloud.open()
    device.send(32)
    learn = worker.learner.learn

    def meanwhile(*arguments: object) -> object:
        cloud.store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=cloud.now)
        return learn(*arguments)  # type: ignore[arg-type]

    worker.learner.learn = meanwhile  # type: ignore[method-assign,assignment]
    assert worker.run_once()
    assert worker.learner.replayable == 16
    assert worker.run_once()
    assert worker.learner.replayable == 0
    assert cloud.store.receipts("north")[0].state == "done"
    assert cloud.store.data_groups("north", DataFilter()) == []


def test_what_was_evicted_is_forgotten_with_what_is_deleted(cloud: Cloud) -> None:
    first, _ = devices(cloud)
    worker = cloud.open()
    drain(worker)
    seq = min(first.seqs)
    with cloud.store.database.write() as connection:
        connection.execute("INSERT INTO evicted SELECT seq, cohort, id FROM samples WHERE seq = ?", (seq,))
        connection.execute("DELETE FROM samples WHERE seq = ?", (seq,))
    cloud.store.delete_data("north", DataFilter(device="nobody"), actor="os:ann", now=cloud.now)
    drain(worker)
    assert seq not in learner_of(worker).replay_buffer.items()
    assert worker.learner.replayable == 127


@pytest.mark.parametrize("method", ["go_on_deleting", "commit_step", "finish_deletions"])
def test_a_worker_that_ends_at_any_point_leaves_it_to_the_next(
    cloud: Cloud, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second = devices(cloud)
    worker = cloud.open()
    drain(worker)
    cloud.store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=cloud.now)
    with monkeypatch.context() as patch:
        patch.setattr(cloud.store, method, _unavailable)
        with pytest.raises(StoreUnavailable):
            worker.run_once()
    again = cloud.open()
    with pytest.raises(Fenced):
        worker.commit(worker.cursor)
    drain(again)
    assert cloud.store.receipts("north")[0].state == "done"
    assert replayed_seqs(cloud.store.saved_checkpoint("north")) == second.seqs


def test_what_was_forgotten_is_erased_once_nobody_reads_the_store(cloud: Cloud) -> None:
    first, second = devices(cloud)
    worker = cloud.open()
    drain(worker)
    path = cloud.store.database.path
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM samples").fetchone()
        cloud.store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=cloud.now)
        drain(worker)
        (waits,) = cloud.store.receipts("north")
        assert (waits.state, "being read" in waits.note) == ("forgotten", True)
        # Another deletion does not wait for that.
        cloud.store.delete_data("north", DataFilter(device="b"), actor="os:ann", now=cloud.now)
        drain(worker)
        assert [receipt.state for receipt in cloud.store.receipts("north")] == ["forgotten"] * 2
        assert worker.learner.replayable == 0
    assert not worker.run_once()
    assert cloud.store.receipts("north")[0].state == "forgotten", "it is not tried at every turn"
    cloud.now += 1000
    assert not worker.run_once()
    assert [receipt.state for receipt in cloud.store.receipts("north")] == ["done"] * 2
    contents = [sample.image for device in (first, second) for sample in device.samples]
    assert found_in(cloud.folder / "data", contents) == set()


def _unavailable(*_: object, **__: object) -> None:
    raise StoreUnavailable("the disk is gone")


class NoMemory:
    """An algorithm of one's own that knows nothing of forgetting."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        self._inner: CemaLearner[int] = CemaLearner(*arguments, **settings)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        if name == "forget":
            raise AttributeError(name)
        return getattr(self._inner, name)


def test_an_algorithm_that_cannot_forget_begins_anew(cloud: Cloud) -> None:
    cloud.adapt(algorithm=f"{Path(__file__).resolve()}:NoMemory")
    devices(cloud)
    worker = cloud.open()
    drain(worker)
    assert worker.learner.replayable == 128
    cloud.store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=cloud.now)
    drain(worker)
    assert (worker.learner.steps, worker.learner.replayable) == (0, 0)
    assert cloud.store.receipts("north")[0].state == "done"
    cloud._replace(retention_days=1.0)
    with pytest.raises(ConfigError, match=r"retention_days.*forget"):
        cloud.open()


def test_what_is_older_than_the_retention_is_deleted(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    cloud._replace(retention_days=10.0)
    first, second = Device(cloud, "a", 100), Device(cloud, "b", 5000)
    worker = cloud.open()
    first.send(32)
    drain(worker)
    cloud.now += 6 * DAY
    second.send(32)
    drain(worker)
    assert worker.learner.replayable == 64
    cloud.now += 5 * DAY
    with caplog.at_level(logging.INFO):
        drain(worker)
    assert (first.seqs, len(second.seqs)) == (set(), 32)
    assert set(learner_of(worker).replay_buffer.items()) == second.seqs
    assert cloud.counters()["samples.expired"] == 32
    (receipt,) = cloud.store.receipts("north")
    assert (receipt.actor, receipt.state, receipt.samples) == (RETENTION, "done", 32)
    assert "32 samples are older than 10 days" in caplog.text
    assert f"deletion {receipt.number} of retention is done, 32 samples" in caplog.text
    assert cloud.store.put("north", first.samples[:1], device="a", now=cloud.now, max_backlog=100)[
        0
    ].verdict == ("duplicate")
    cloud.now += 6 * DAY
    drain(worker)
    assert second.seqs == set()
    assert worker.learner.replayable == 0


def test_nothing_is_too_old_by_default(cloud: Cloud) -> None:
    device = Device(cloud, "a", 100)
    worker = cloud.open()
    device.send(32)
    cloud.now += 100_000 * DAY
    drain(worker)
    assert len(device.seqs) == 32


def test_a_time_below_zero_is_no_retention() -> None:
    from cema.cloud.config import CohortConfig

    with pytest.raises(ValueError, match="retention_days"):
        CohortConfig(name="n", bundle="b", model="m", foundation="f", retention_days=-1.0)


def test_the_foundation_models_labels_are_kept_with_the_step(cloud: Cloud) -> None:
    device = Device(cloud, "a", 100)
    worker = cloud.open()
    device.send(40)
    for _ in range(2):
        worker.run_once()
    learned = sorted(device.seqs)[:32]
    told = {s.seq: s.teacher for s in cloud.store.data_samples("north", DataFilter(), limit=100)}
    assert all(told[seq] is not None for seq in learned)
    assert [told[seq] for seq in sorted(device.seqs)[32:]] == [None] * 8
    images = [worker._recall([seq])[0] for seq in learned]
    answers = worker.learner.foundation_logits([image for image in images if image is not None])
    assert np.mean(answers.argmax(axis=1) == [told[seq] for seq in learned]) > 0.8


def test_a_checkpoint_tells_what_may_be_replayed(cloud: Cloud) -> None:
    assert replayed_seqs(None) == frozenset()
    assert replayed_seqs(b"something else") is None
    assert replayed_seqs(msgspec.msgpack.encode({"adapter": b"of another algorithm"})) is None
    device = Device(cloud, "a", 100)
    worker = cloud.open()
    device.send(40)
    worker.run_once()
    assert isinstance(worker.progress, Progress)
    assert replayed_seqs(cloud.store.saved_checkpoint("north")) == frozenset(sorted(device.seqs)[:16])


def labels_for(cloud: Cloud, device: Device, truth: np.ndarray) -> dict[str, int]:
    return {sample.id: int(label) for sample, label in zip(device.samples, truth, strict=True)}


def test_a_true_label_counts_in_the_place_of_the_foundation_models(cloud: Cloud) -> None:
    """Of the gate, of every count of agreement, and of what is known of the device."""
    device = Device(cloud, "a", 100)
    device.send(16)
    worker = cloud.open()
    sent = np.array([sample.label for sample in device.samples])
    cloud.store.put_labels("north", labels_for(cloud, device, sent), actor="os:ann", now=cloud.now)
    assert worker.run_once()
    (of_version,) = cloud.store.agreement_by_version("north")
    assert of_version.models["device"].share == 1.0
    assert worker.progress.ledger.devices["a"].agreed == 1.0
    told = [s.teacher for s in cloud.store.data_samples("north", DataFilter(), limit=100)]
    assert told != sent.tolist(), "what the foundation model said is kept as it was"


def test_labels_that_come_late_are_learned_without_new_samples(cloud: Cloud) -> None:
    cloud.worker_config(idle_steps=4)
    first, _ = devices(cloud)
    worker = cloud.open()
    drain(worker)
    steps, before = worker.learner.steps, worker.learner.dumps()
    assert not worker.run_once()
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, len(first.samples))
    cloud.store.put_labels("north", labels_for(cloud, first, truth), actor="os:ann", now=cloud.now)
    drain(worker)
    assert worker.learner.steps == steps + 4
    assert worker.learner.dumps() != before
    seqs = sorted(first.seqs)
    assert worker._rights._truths(seqs) == truth.tolist()
    # A worker that starts later knows them too, until the samples are deleted.
    again = cloud.open()
    drain(again)
    assert again._rights._truths(seqs) == truth.tolist()
    cloud.store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=cloud.now)
    drain(again)
    assert again._rights._truths(seqs) == [None] * len(seqs)


def test_without_labels_every_step_is_the_same(cloud: Cloud) -> None:
    devices(cloud)
    worker = cloud.open()
    learner_of(worker)._truth.source = None
    drain(worker)
    plain = worker.learner.dumps()
    with cloud.store.database.write() as connection:
        connection.execute("UPDATE cohorts SET cursor = 0, checkpoint = NULL")
    again = cloud.open()
    assert learner_of(again)._truth.source is not None
    drain(again)
    assert again.learner.dumps() == plain
