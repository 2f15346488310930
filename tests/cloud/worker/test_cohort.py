from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cloud_support import samples_of
from cloud_tiny_models import PREPROCESSING, edge, quadrants, train
from safetensors.torch import save_file
from worker_cloud import Cloud, drain

from cema.adapt.learner import CemaLearner
from cema.cloud.config import PublishConfig
from cema.cloud.store.base import Fenced, OtherBase
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.worker import images as worker_images
from cema.cloud.worker.attempts import ATTEMPTS, WorkerFailed
from cema.cloud.worker.cohort import FAILURES, MOST_REJECTED, CohortWorker
from cema.cloud.worker.gate import AgreementWindow, BatchAgreement
from cema.cloud.worker.publisher import Publisher
from cema.cloud.worker.rounds import run
from cema.errors import ConfigError, ModelError, StoreError, StoreUnavailable
from cema.formats.bundle import Bundle
from cema.formats.image import decode_image
from cema.formats.keys import generate_key, load_private_key
from cema.formats.payload import decode_payload
from cema.formats.update import verify_payload, verify_update
from cema.models.norm_state import load_folded
from cema.models.registry import resolve
from cema.ondevice.drift import Domain, InputAverage, input_statistics
from cema.ondevice.preprocess import Preprocessing


def accuracy(norm_state: dict[str, np.ndarray], folder: Path, *, drift: bool) -> float:
    module = resolve("cloud_tiny_models:edge", weights=folder / "edge.safetensors").module
    load_folded(module, norm_state)
    images, labels = quadrants(500, 5, drift=drift)
    with torch.inference_mode():
        return float((module(torch.from_numpy(PREPROCESSING(images))).argmax(1).numpy() == labels).mean())


def test_drifted_samples_make_a_signed_version_that_is_better(plain_cloud: Cloud) -> None:
    plain_cloud.send(160)
    assert drain(plain_cloud.open()) == 10
    bundle = Bundle.load(plain_cloud.folder / "bundle")
    update = plain_cloud.store.latest_update("north")
    assert update is not None
    manifest = verify_update(
        update.envelope,
        public_keys=bundle.public_keys,
        cohort="north",
        base=bundle.manifest.base,
        running_version=0,
        now=plain_cloud.now,
    )
    assert manifest.version == update.version >= 3
    assert manifest.expires == int(plain_cloud.now) + 30 * 86_400
    payload = verify_payload(manifest, update.payload)
    source = accuracy(bundle.norm_state(), plain_cloud.folder, drift=True)
    assert accuracy(payload.norm_state, plain_cloud.folder, drift=True) > source + 0.1
    # The golden logits are those of the rounded norm state that devices will run.
    module = resolve("cloud_tiny_models:edge", weights=plain_cloud.folder / "edge.safetensors").module
    load_folded(module, payload.norm_state)
    with torch.inference_mode():
        logits = module(torch.from_numpy(PREPROCESSING(bundle.golden_images))).numpy()
    np.testing.assert_allclose(payload.golden_logits, logits, rtol=2e-3, atol=2e-3)


def test_a_version_says_what_the_inputs_looked_like_that_it_was_made_from(cloud: Cloud) -> None:
    cloud.send(160)
    drain(cloud.open())
    update = cloud.store.latest_update("north")
    assert update is not None
    domain = decode_payload(update.payload).domain
    assert domain is not None
    images = [decode_image(sample.image) for sample in cloud.store.fresh("north", after=0, limit=160)]
    rows = input_statistics(PREPROCESSING(images))
    # Whole batches, at most as many as the statistics average over; the last candidate may have been held back.
    ends = range(16, 161, 16)
    means = [rows[a:b].mean(0) for b in ends for a in range(max(0, b - 96), b, 16)]
    assert min(np.abs(domain.mean - mean).max() for mean in means) < 1e-5
    quiet, _ = quadrants(200, 7, drift=False)
    drifted, _ = quadrants(200, 7, drift=True)
    average = {True: InputAverage(len(domain.mean)), False: InputAverage(len(domain.mean))}
    for drift, batch in ((True, drifted), (False, quiet)):
        for row in input_statistics(PREPROCESSING(batch)):
            average[drift].observe(row)
    precision = domain.precision()
    assert average[True].distance(domain, precision) < 36 < average[False].distance(domain, precision)


def test_no_version_that_is_ever_published_is_worse_than_the_source(plain_cloud: Cloud) -> None:
    plain_cloud.publish(every_steps=1)
    worker = plain_cloud.open()
    source = accuracy(Bundle.load(plain_cloud.folder / "bundle").norm_state(), plain_cloud.folder, drift=True)
    for _ in range(8):
        plain_cloud.send(16)
        assert worker.run_once()
        update = plain_cloud.store.latest_update("north")
        if update is not None:
            state = decode_payload(update.payload).norm_state
            assert accuracy(state, plain_cloud.folder, drift=True) >= source - 0.02


def test_images_are_preprocessed_once_for_each_model(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = cloud.open()
    cloud.send(16 * 6)
    for _ in range(5):
        assert worker.run_once()
    prepared: list[int] = []
    call = Preprocessing.__call__

    def count(self: Preprocessing, images: Any) -> Any:
        prepared.append(len(images))
        return call(self, images)

    monkeypatch.setattr(Preprocessing, "__call__", count)
    assert worker.run_once()
    step = cloud.store.status("north")["worker"]["step"]
    assert step["replayed"] > 0
    # Both models want the same pixels here: new samples once, replayed ones once.
    assert sum(prepared) == step["fresh"] + step["replayed"]


def test_a_step_passes_and_decodes_no_image_twice(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.publish(every_steps=1, gate=1.0)  # every step makes a version
    worker = cloud.open()
    cloud.send(16 * 6)
    for _ in range(5):
        assert worker.run_once()
    decoded: list[int] = []
    passed: list[int] = []
    read = worker_images.read_image
    monkeypatch.setattr(worker_images, "read_image", lambda *a: [decoded.append(1), read(*a)][1])
    module = worker.publisher._fast._module
    module.register_forward_hook(lambda module, inputs, output: passed.append(len(output)))
    learner: Any = worker.learner
    before = learner.edge.forwards, learner.foundation.forwards
    assert worker.run_once()
    step = cloud.store.status("north")["worker"]["step"]
    fresh, replayed = step["fresh"], step["replayed"]
    assert replayed > 0
    assert len(decoded) == fresh, "replayed samples were decoded when they were new"
    # The gate: the adapted model, which is what devices run, and the source model; and the golden batch.
    assert passed == [fresh, fresh, len(worker.publisher.bundle.golden_images)]
    refreshed = min(replayed, learner.config.refreshed)
    assert learner.edge.forwards - before[0] == fresh + replayed
    assert learner.foundation.forwards - before[1] == fresh + refreshed


def test_only_full_batches_until_the_oldest_sample_has_lingered(cloud: Cloud) -> None:
    worker = cloud.open()
    cloud.send(16 + 5)
    assert drain(worker) == 1
    assert cloud.store.backlog("north").samples == 5
    cloud.now += cloud.config.worker.linger_seconds - 0.1
    assert not worker.run_once()
    cloud.now += 0.1
    assert worker.run_once()
    assert cloud.store.backlog("north").samples == 0
    assert cloud.counters()["worker.fresh_steps"] == 2


def test_idle_steps_replay_and_are_bounded_until_new_samples_come(cloud: Cloud) -> None:
    cloud.worker_config(idle_steps=3)
    worker = cloud.open()
    cloud.send(48)
    assert drain(worker) == 3  # too few are stored to replay
    cloud.send(32)
    assert drain(worker) == 2 + 3
    assert cloud.counters()["worker.replay_steps"] == 3
    # A restart does not begin to count anew.
    assert drain(cloud.open()) == 0
    worker = cloud.open()
    cloud.send(16)
    assert drain(worker) == 1 + 3


def test_nothing_is_only_replayed_while_anything_waits(cloud: Cloud) -> None:
    cloud.worker_config(idle_steps=3)
    worker = cloud.open()
    cloud.send(80)
    drain(worker)
    replayed = cloud.counters()["worker.replay_steps"]
    assert replayed == 3
    cloud.send(16 + 5)
    assert drain(worker) == 1  # five wait, and eleven are missing
    assert cloud.counters()["worker.replay_steps"] == replayed
    cloud.now += cloud.config.worker.linger_seconds
    assert drain(worker) == 1 + 3
    assert cloud.counters()["worker.replay_steps"] == replayed + 3


def test_what_is_held_waits_too(cloud: Cloud) -> None:
    cloud.worker_config(idle_steps=3)
    worker = cloud.open()
    for _ in range(8):
        put(cloud, "a", 8)
        put(cloud, "b", 8)
        drain(worker)
    replayed = cloud.counters()["worker.replay_steps"]
    put(cloud, "a", 16)
    put(cloud, "b", 4)
    drain(worker)
    assert cloud.store.backlog("north").samples == 0
    assert len(worker.progress.held) == 20 - 16
    assert cloud.counters()["worker.replay_steps"] == replayed
    cloud.now += cloud.config.worker.linger_seconds
    drain(worker)
    assert worker.progress.held == []
    assert cloud.counters()["worker.replay_steps"] > replayed


def test_large_uploads_of_several_devices_are_all_learned_from(cloud: Cloud) -> None:
    worker = cloud.open()
    for _ in range(6):
        put(cloud, "a", 32)
        put(cloud, "b", 32)
        drain(worker)
    counters = cloud.counters()
    assert counters["worker.fresh_steps"] == 6 * 64 // 16
    assert not counters.keys() & {"worker.skipped_samples", "worker.left_out_samples"}


def test_a_small_batch_calls_for_its_share_of_replaying(cloud: Cloud) -> None:
    cloud.worker_config(idle_steps=4)
    worker = cloud.open()
    cloud.send(80)
    drain(worker)
    replayed = cloud.counters()["worker.replay_steps"]
    cloud.send(4)
    cloud.now += cloud.config.worker.linger_seconds
    drain(worker)
    assert cloud.counters()["worker.replay_steps"] == replayed + 1


class Killed(BaseException):
    """Stands for the end of the process: nothing in the worker catches it."""


def dying_commit(worker: CohortWorker) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    worker.commit = die  # type: ignore[method-assign]


def final_state(cloud: Cloud) -> tuple[bytes | None, int, int]:
    state = cloud.store.claim("north")
    update = cloud.store.latest_update("north")
    return state.checkpoint, state.cursor, update.version if update else 0


def send_two_domains(cloud: Cloud) -> None:
    """Both twice; three full batches and some more of each, so that changes come inside of batches."""
    for drift in (True, False, True, False):
        cloud.send(72, drift=drift)


@pytest.mark.parametrize("again", [False, True], ids=["one-domain", "domains-that-come-again"])
def test_a_worker_that_died_at_any_point_ends_in_the_very_same_state(
    cloud: Cloud, factory: Path, again: bool
) -> None:
    cloud.worker_config(idle_steps=2)
    if again:
        cloud.adapt(bank=4, bank_limit=1.5, bank_parameters="both")
        send_two_domains(cloud)
    else:
        cloud.send(160)
    copy = cloud.store.database.path.parent / "copy.db"
    with sqlite3.connect(copy) as target, cloud.store.database.read() as source:
        source.backup(target)
    target.close()
    straight = cloud.open()
    drain(straight)
    if again:
        assert isinstance(straight.learner, CemaLearner)
        assert straight.learner.changes.changes == 3
        assert max(entry.learned for entry in straight.learner.bank.entries) > 72, "one was put back"
    uninterrupted = final_state(cloud)
    payload = cloud.store.latest_update("north")

    other = SqliteStore(copy, max_bytes=64 * 2**20)
    shadow = Cloud(cloud.folder, cloud.config, other)
    for turn in range(200):
        worker = shadow.open()
        # Every step is made twice, those that put a state back too: it dies when one is done and not yet committed.
        if turn % (2 if again else 3) == (0 if again else 1):
            dying_commit(worker)
            try:
                worker.run_once()
            except Killed:
                continue
            break
        if not worker.run_once():
            break
    assert final_state(shadow) == uninterrupted
    assert uninterrupted[2] > 0
    again_sent = other.latest_update("north")
    assert payload is not None
    assert again_sent is not None
    assert again_sent.payload == payload.payload
    other.close()


def test_a_state_that_was_put_back_is_tested_before_it_learns_and_published_sooner(cloud: Cloud) -> None:
    """Its first batch counts for it, and nothing that was counted of the model before it does."""
    batches_until_published = {}
    for bank in (0, 4):
        cohort = f"bank-{bank}"
        cloud.adapt(bank=bank, bank_limit=1.5)
        cloud.publish(every_steps=1, evidence=32, gate=0.3)
        cloud._replace(name=cohort)
        worker = cloud.open()
        for drift in (True, False):
            cloud.send(96, drift=drift, cohort=cohort)
            drain(worker)
        version, changes = worker.publisher.version, worker.learner.changes.changes
        assert changes == 1
        for batch in range(1, 7):
            cloud.send(16, drift=True, cohort=cohort)
            drain(worker)
            if batch == 1:
                assert worker.learner.changes.changes == 2
                tested = worker.progress.window.batches
                assert [b.count for b in tested] == [16]
                assert tested[0].before_update == (bank > 0)
            if worker.publisher.version > version:
                batches_until_published[bank] = batch
                break
    assert batches_until_published == {0: 3, 4: 2}


def test_a_fault_inside_the_commit_leaves_the_step_undone(cloud: Cloud) -> None:
    cloud.publish(every_steps=1)
    worker = cloud.open()
    cloud.send(32)
    assert worker.run_once()
    before = cloud.store.status("north")
    with cloud.store.database.write() as connection:
        connection.execute(
            "CREATE TRIGGER fault BEFORE INSERT ON updates BEGIN SELECT raise(ABORT, 'x'); END"
        )
    with pytest.raises(StoreError, match="failed: x"):
        worker.run_once()
    assert cloud.store.status("north") == before
    with cloud.store.database.write() as connection:
        connection.execute("DROP TRIGGER fault")
    assert cloud.open().run_once()
    assert cloud.store.status("north")["version"] == before["version"] + 1


def test_samples_that_cannot_be_read_are_passed_over(cloud: Cloud) -> None:
    worker = cloud.open()
    cloud.send(32)
    with cloud.store.database.write() as connection:
        connection.execute("UPDATE samples SET image = x'00ff00ff' WHERE seq IN (2, 5)")
        connection.execute("UPDATE samples SET image = x'00ff00ff' WHERE seq > 16")
    assert drain(worker) == 2
    assert cloud.counters()["worker.unreadable_samples"] == 2 + 16
    assert cloud.counters()["worker.fresh_steps"] == 1
    cloud.send(16)
    assert drain(worker) == 1
    assert cloud.counters()["worker.fresh_steps"] == 2


def test_replayed_samples_that_were_evicted_are_forgotten(cloud: Cloud) -> None:
    cloud.adapt(replay_scope="all")
    cloud.worker_config(idle_steps=1)
    worker = cloud.open()
    cloud.send(96)
    drain(worker)
    with cloud.store.database.write() as connection:
        connection.execute("DELETE FROM samples WHERE seq <= 40")
    cloud.send(64)
    drain(worker)
    assert cloud.counters()["worker.gone_samples"] > 0
    drain(cloud.open())


def refusing(worker: CohortWorker, bad: set[int]) -> None:
    """Let every step fail that has one of these samples."""
    learn = worker.learner.learn

    def spoil(items: Any, batch: Any) -> Any:
        learn(items, batch)
        if bad & set(items):
            raise RuntimeError("out of memory")

    worker.learner.learn = spoil  # type: ignore[method-assign]


def test_a_failed_step_is_undone(cloud: Cloud) -> None:
    worker = cloud.open()
    cloud.send(32)
    worker.run_once()
    before = worker.learner.dumps()
    refusing(worker, set(range(17, 33)))
    assert worker.run_once()
    assert worker.learner.dumps() == before
    assert cloud.store.backlog("north").samples == 16


@pytest.mark.parametrize("place", [1, 7, 16])
def test_a_sample_that_no_step_survives_costs_only_itself(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    learn = CemaLearner.learn

    def spoil(self: Any, items: Any, batch: Any) -> Any:
        if place in items:
            raise MemoryError("a thin image")
        return learn(self, items, batch)

    monkeypatch.setattr(CemaLearner, "learn", spoil)
    worker = cloud.open()
    cloud.send(48)
    drain(worker)
    assert cloud.counters()["worker.failed_samples"] == 1
    assert "thin image" in cloud.store.status("north")["worker"]["error"]
    assert cloud.store.backlog("north").samples < 16  # what is too few for a batch waits
    assert worker.learner.replayable == cloud.store.status("north")["cursor"] - 1


def test_a_fault_that_is_not_in_the_samples_ends_the_worker(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("device lost")

    worker = cloud.open()
    monkeypatch.setattr("cema.adapt.learner.CemaLearner.learn", broken)
    cloud.send(64)
    with pytest.raises(WorkerFailed, match="device lost"):
        drain(worker)
    assert cloud.store.backlog("north").samples == 64 - FAILURES


def test_a_step_that_diverges_never_reaches_a_device(cloud: Cloud) -> None:
    cloud.adapt(edge_lr=1e30)
    cloud.send(32)
    drain(cloud.open())
    assert cloud.store.latest_update("north") is None
    counts = cloud.counters()
    rejected_in_a_row = ("worker.failed_steps", "updates.not_finite", "updates.gated")
    assert sum(counts.get(name, 0) for name in rejected_in_a_row) > 0


def test_an_adaptation_that_is_lost_begins_anew_and_keeps_its_samples(cloud: Cloud) -> None:
    cloud.publish(every_steps=1)
    sane = cloud.config
    cloud.adapt(edge_lr=1e30)
    cloud.send(16 * (MOST_REJECTED + 1))
    drain(cloud.open())
    assert cloud.store.latest_update("north") is None
    assert cloud.counters()["worker.resets"] == 1
    cloud.config = sane
    worker = cloud.open()
    assert worker.learner.replayable == 16 * (MOST_REJECTED + 1)
    cloud.send(64)
    drain(worker)
    assert cloud.store.latest_update("north") is not None


def test_the_gate_holds_back_what_agrees_less_with_the_foundation_model(cloud: Cloud) -> None:
    cloud.adapt(edge_lr=3.0, foundation_lr=0.0)
    cloud.publish(every_steps=1)
    # Clean samples: the source is right about them, and the absurd learning rate can only spoil it.
    cloud.send(80, drift=False)
    drain(cloud.open())
    counts = cloud.counters()
    assert counts["updates.gated"] >= 2
    update = cloud.store.latest_update("north")
    if update is not None:
        assert accuracy(decode_payload(update.payload).norm_state, cloud.folder, drift=False) > 0.9


def make_publisher(cloud: Cloud, **values: Any) -> Publisher:
    return Publisher(
        resolve("cloud_tiny_models:edge", weights=cloud.folder / "edge.safetensors"),
        Bundle.load(cloud.folder / "bundle"),
        "north",
        load_private_key(cloud.folder / "signing.key"),
        PublishConfig(**values),
    )


def seen(
    adapted: int, running: int, source: int, *, count: int = 64, before_update: bool = True
) -> AgreementWindow:
    """Return evidence of one batch."""
    return AgreementWindow(
        batches=[
            BatchAgreement(
                count=count, adapted=adapted, running=running, source=source, before_update=before_update
            )
        ]
    )


@pytest.mark.parametrize(
    ("window", "outcome"),
    [
        (seen(60, 60, 60), "published"),
        (seen(50, 51, 40), "published"),  # within the gate's slack of what devices run
        (seen(50, 53, 40), "gated"),
        (seen(50, 50, 51), "gated"),  # no slack to the source model
        (seen(30, 40, 50), "reverted"),
        (seen(60, 20, 20, count=63), "waiting"),
        (seen(0, 20, 20, before_update=False), "waiting"),
        (seen(0, 20, 50, before_update=False), "reverted"),
        (seen(0, 8, 15, count=32, before_update=False), "reverted"),  # by more than 1 / sqrt(32)
        (seen(0, 8, 12, count=32, before_update=False), "waiting"),
    ],
)
def test_the_gate(plain_cloud: Cloud, window: AgreementWindow, outcome: str) -> None:
    publisher = make_publisher(plain_cloud, gate=0.02, evidence=64)
    source = publisher.bundle.norm_state()
    state = {key: value * np.float32(1.25) for key, value in source.items()}
    candidate = publisher.consider(state, window, 5.0, Domain.of(np.eye(8)[:, :4]))
    assert candidate.outcome == outcome
    assert (candidate.update is not None) == (outcome in ("published", "reverted"))
    if candidate.update is not None:
        payload = decode_payload(candidate.update.payload)
        sent = payload.norm_state
        # The source model goes with any input.
        assert (payload.domain is not None) == (outcome == "published")
        expected = state if outcome == "published" else source
        assert all(np.allclose(sent[key], expected[key], rtol=1e-3, atol=1e-3) for key in source)


@pytest.mark.parametrize("gate", [0.02, 1.0])
def test_a_state_that_overflows_is_never_published(cloud: Cloud, gate: float) -> None:
    publisher = make_publisher(cloud, gate=gate)
    state = {key: np.full_like(value, 3e38) for key, value in publisher.bundle.norm_state().items()}
    assert publisher.consider(state, seen(64, 0, 0), 5.0).outcome == "not_finite"


def test_a_gate_of_one_publishes_whatever_is_finite(cloud: Cloud) -> None:
    publisher = make_publisher(cloud, gate=1.0)
    state = {key: -value for key, value in publisher.bundle.norm_state().items()}
    assert publisher.consider(state, seen(0, 64, 64), 5.0).outcome == "published"


def test_a_backlog_goes_to_the_replay_buffer_in_part(cloud: Cloud) -> None:
    cloud.worker_config(max_backlog=32)
    worker = cloud.open()
    cloud.send(100)
    assert drain(worker) == 2
    assert cloud.counters()["worker.skipped_samples"] == 68
    assert worker.learner.replayable == 100


@pytest.mark.parametrize("place", [1, 6, 16])
def test_a_sample_that_processes_die_of_is_left_out_alone(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    learn = CemaLearner.learn

    def die(self: Any, items: Any, batch: Any) -> Any:
        if place in items:
            raise Killed
        return learn(self, items, batch)

    monkeypatch.setattr(CemaLearner, "learn", die)
    cloud.send(48)
    deaths = 0
    while "worker.abandoned_samples" not in cloud.counters():
        try:
            drain(cloud.open())
        except Killed:
            deaths += 1
            assert deaths < 50
    drain(cloud.open())
    assert cloud.counters()["worker.abandoned_samples"] == 1
    assert cloud.store.backlog("north").samples < 16


def marked(cloud: Cloud, attempts: int) -> CohortWorker:
    """Return a worker after so many that died in their first step."""
    for _ in range(attempts):
        cloud.store.mark_attempt("north")
    return cloud.open()


def test_a_batch_that_processes_died_of_is_halved_before_anything_is_left_out(cloud: Cloud) -> None:
    cloud.worker_config(max_backlog=16)
    cloud.open()
    cloud.send(20)
    worker = marked(cloud, ATTEMPTS)
    sizes = []
    while worker.run_once():
        sizes.append(cloud.store.status("north")["cursor"] - sum(sizes))
    assert sizes == [2, 4, 8]
    assert "worker.abandoned_samples" not in cloud.counters()


def test_a_replay_that_processes_die_of_is_left_out_and_does_not_come_back(cloud: Cloud) -> None:
    cloud.send(80)
    drain(cloud.open())
    cloud.worker_config(idle_steps=2)
    drawn: list[list[int]] = []

    def die(items: list[int]) -> Any:
        drawn.append(list(items))
        raise Killed

    for _ in range(ATTEMPTS):
        worker = cloud.open()
        worker.learner._taught._recall = die  # type: ignore[attr-defined]
        with pytest.raises(Killed):
            worker.run_once()
    assert all(items == drawn[0] for items in drawn)
    worker = cloud.open()
    assert drain(worker) == 1
    assert cloud.counters()["worker.abandoned_replays"] == 1
    assert "worker.replay_steps" not in cloud.counters()
    assert drain(cloud.open()) == 0
    worker = cloud.open()
    worker.progress.idle = 0
    worker.learner._taught._recall = die  # type: ignore[attr-defined]
    with pytest.raises(Killed):
        worker.run_once()
    assert drawn[-1] != drawn[0]


def test_restarts_with_nothing_to_replay_are_no_deaths(cloud: Cloud) -> None:
    cloud.worker_config(idle_steps=2)
    for _ in range(ATTEMPTS + 1):
        assert drain(cloud.open()) == 0
    cloud.send(16)
    assert drain(cloud.open()) == 1
    assert cloud.counters()["worker.fresh_steps"] == 1


def test_an_older_worker_cannot_commit(cloud: Cloud) -> None:
    cloud.send(16)
    old, new = cloud.open(), cloud.open()
    with pytest.raises(Fenced):
        old.run_once()
    assert new.run_once()


def test_versions_keep_their_distance_in_time(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, min_seconds=60.0, gate=1.0)
    worker = cloud.open()
    cloud.send(48)
    drain(worker)
    assert cloud.store.status("north")["version"] == 1
    cloud.now += 60
    cloud.send(16)
    drain(worker)
    assert cloud.store.status("north")["version"] == 2


def test_a_version_is_signed_anew_before_it_expires(cloud: Cloud) -> None:
    worker = cloud.open()
    cloud.send(32)
    drain(worker)
    first = cloud.store.latest_update("north")
    assert first is not None
    cloud.now += 15 * 86_400
    assert drain(worker) == 1
    second = cloud.store.latest_update("north")
    assert second is not None
    assert (second.version, second.digest) == (first.version + 1, first.digest)
    assert second.expires == first.expires + 15 * 86_400


def test_a_version_from_the_future_holds_nothing_up(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, min_seconds=60.0, gate=1.0)
    cloud.now += 10 * 365 * 86_400
    worker = cloud.open()
    cloud.send(32)
    drain(worker)
    assert cloud.store.status("north")["version"] == 1
    cloud.send(8)  # received, by the wrong clock, in ten years
    cloud.now -= 10 * 365 * 86_400
    worker = cloud.open()
    drain(worker)
    assert cloud.store.backlog("north").samples == 0
    update = cloud.store.latest_update("north")
    assert update is not None
    assert (update.version, update.created) == (2, cloud.now)
    assert cloud.counters()["worker.clock_faults"] == 1
    cloud.send(16)
    drain(worker)
    assert cloud.store.status("north")["version"] == 2  # and now they keep their distance again


def test_a_version_from_the_future_is_signed_again_with_todays_date(cloud: Cloud) -> None:
    cloud.now += 10 * 365 * 86_400
    worker = cloud.open()
    cloud.send(32)
    drain(worker)
    cloud.now -= 10 * 365 * 86_400
    assert drain(worker) == 1
    update = cloud.store.latest_update("north")
    assert update is not None
    assert update.created == cloud.now


def test_after_a_restored_backup_no_version_number_is_used_again(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, gate=1.0)
    worker = cloud.open()
    cloud.send(32, version=50)  # devices that have seen what the backup has not
    drain(worker)
    assert cloud.store.status("north")["version"] >= 51
    newest = cloud.store.status("north")["version"]
    cloud.send(32, version=2**62)  # nobody has that: numbers must not run out
    drain(worker)
    assert newest < cloud.store.status("north")["version"] <= newest + 2


def test_the_operator_can_say_what_the_next_version_is_at_least(cloud: Cloud) -> None:
    cloud.publish(every_steps=2, gate=1.0, first_version=700)
    worker = cloud.open()
    cloud.send(64)
    drain(worker)
    update = cloud.store.latest_update("north")
    assert update is not None
    assert update.version == 701


def test_a_model_that_is_not_the_bundles_is_refused(cloud: Cloud) -> None:
    other = edge()
    train(other.module, 77)
    save_file(other.module.state_dict(), cloud.folder / "edge.safetensors")
    with pytest.raises(ModelError, match="not what the bundle"):
        cloud.open()


def test_a_key_that_devices_do_not_trust_is_refused(cloud: Cloud) -> None:
    (cloud.folder / "signing.key").unlink()
    (cloud.folder / "signing.pub").unlink()
    generate_key(cloud.folder / "signing.key")
    with pytest.raises(ConfigError, match="would refuse every update"):
        cloud.open()


def test_a_store_of_another_base_model_is_refused(cloud: Cloud) -> None:
    cloud.store.open_cohort("north", base="1" * 64)
    cloud.store.count("north", {"steps.count": 1})
    with pytest.raises(OtherBase, match="cema cohort migrate north"):
        cloud.open()


def test_another_bundle_simply_works_before_the_first_step(cloud: Cloud) -> None:
    cloud.send(5, drift=False)  # less than a batch
    cloud.store.open_cohort("north", base="1" * 64)
    worker = cloud.open()
    assert cloud.store.status("north")["base"] == worker.publisher.bundle.manifest.base
    cloud.send(16)
    drain(worker)
    assert cloud.counters()["steps.count"] > 0


def test_a_store_that_is_unavailable_is_no_fault_of_the_configuration(cloud: Cloud) -> None:
    with cloud.store.database.write() as connection:
        connection.execute("ALTER TABLE cohorts RENAME TO lost")
    with pytest.raises(StoreUnavailable):  # and no ConfigError, which would end the server at its first start
        run(cloud.config, threading.Event(), threading.Event())


def put(cloud: Cloud, device: str, count: int) -> None:
    images, _ = quadrants(count, 1000 + cloud.sent, drift=True)
    cloud.sent += count
    cloud.store.put("north", samples_of(images), device=device, now=cloud.now, max_backlog=10**6)


def flood(cloud: Cloud, count: int) -> None:
    images = 255 - np.random.default_rng(cloud.sent).integers(0, 9, (count, 8, 8, 3), dtype=np.uint8)
    cloud.sent += count
    cloud.store.put("north", samples_of(images), device="flood", now=cloud.now, max_backlog=10**6)


def test_what_a_flood_fills_makes_no_small_steps_of_the_others_samples(cloud: Cloud) -> None:
    worker = cloud.open()
    for _ in range(12):
        for device in ("a", "b", "c"):
            put(cloud, device, 8)
        drain(worker)
    flood(cloud, 96)
    drain(worker)
    assert worker.report()["quarantined"] == ["flood"]
    steps = cloud.counters()["worker.fresh_steps"]
    for device in ("a", "b", "c"):
        flood(cloud, 30)
        put(cloud, device, 4)
        drain(worker)
    assert cloud.counters()["worker.fresh_steps"] == steps  # twelve samples, and a batch has sixteen
    left_out = cloud.counters()["worker.left_out_samples"]
    assert (
        left_out + cloud.store.backlog("north").samples == 96 + 90 + 4
    )  # the last four of c are not drawn yet
    worker = cloud.open()  # what was chosen is kept, also when the process ends
    put(cloud, "a", 4)
    drain(worker)
    assert cloud.counters()["worker.fresh_steps"] == steps + 1
    put(cloud, "b", 4)
    flood(cloud, 30)
    drain(worker)
    assert cloud.counters()["worker.fresh_steps"] == steps + 1
    cloud.now += 60
    drain(worker)  # they have lingered
    assert cloud.counters()["worker.fresh_steps"] == steps + 2
    assert worker.learner.replayable == 12 * 24 + 20
