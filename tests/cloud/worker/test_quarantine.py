"""A device that an operator has quarantined teaches nothing, from the worker's next turn on, until it is released."""

from __future__ import annotations

import numpy as np
from cloud_support import samples_of
from cloud_tiny_models import quadrants
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_cloud import Cloud, drain

from cema.cloud.store.base import Waiting
from cema.cloud.store.fleet import FleetRegister, Move, Quarantine, Release, fleet_of
from cema.cloud.worker.cohort import CohortWorker
from cema.cloud.worker.fairness import KNOWN, DeviceRecord, Ledger, draw
from cema.cloud.worker.quarantine import OperatorQuarantine

NAMES = ("a", "b", "c", "bad")


def put(cloud: Cloud, device: str, count: int) -> None:
    images, _ = quadrants(count, 1000 + cloud.sent, drift=True)
    cloud.sent += count
    cloud.store.put("north", samples_of(images), device=device, now=cloud.now, max_backlog=10**6)


def register(cloud: Cloud) -> FleetRegister:
    devices = fleet_of(cloud.store.devices(["north", "south"]))
    for name in NAMES:
        devices.add(name, cohort="north")
    return devices


def learned_from(worker: CohortWorker) -> dict[str, float]:
    return {name: record.learned for name, record in worker.progress.ledger.devices.items()}


def test_nothing_is_learned_from_it_and_what_it_sends_is_done_with(cloud: Cloud) -> None:
    devices = register(cloud)
    devices.act("bad", Quarantine())
    worker = cloud.open()
    for _ in range(4):
        put(cloud, "a", 16)
        put(cloud, "bad", 16)
        drain(worker)
    counters = cloud.counters()
    assert (counters["worker.fresh_steps"], counters["worker.left_out_samples"]) == (4, 64)
    assert (cloud.store.backlog("north").samples, worker.learner.replayable) == (0, 64)
    assert learned_from(worker)["bad"] == 0
    assert worker.progress.ledger.devices["bad"].seen > 0, "some of its samples are looked at"
    assert worker.report()["quarantined"] == [], "the worker has nothing against it"


def test_a_cohort_of_quarantined_devices_alone_makes_no_step(cloud: Cloud) -> None:
    devices = register(cloud)
    devices.act("bad", Quarantine())
    worker = cloud.open()
    put(cloud, "bad", 40)
    drain(worker)
    cloud.now += 2 * cloud.config.worker.linger_seconds
    drain(worker)
    assert "worker.fresh_steps" not in cloud.counters()
    assert (cloud.store.backlog("north").samples, cloud.counters()["worker.left_out_samples"]) == (0, 40)


def test_it_holds_from_the_next_turn_of_a_worker_that_runs(cloud: Cloud) -> None:
    devices = register(cloud)
    worker = cloud.open()
    for _ in range(6):
        put(cloud, "a", 8)
        put(cloud, "bad", 8)
        drain(worker)
    put(cloud, "bad", 20)
    put(cloud, "a", 4)
    assert worker.run_once()
    worker.run_once()
    of = {s.seq: s.device for s in cloud.store.samples(worker.progress.held)}
    assert "bad" in of.values(), "some of its samples wait for a full batch"
    before, steps = worker.learner.replayable, cloud.counters()["worker.fresh_steps"]
    devices.act("bad", Quarantine())
    worker.run_once()
    assert {s.device for s in cloud.store.samples(worker.progress.held)} <= {"a"}
    put(cloud, "a", 16)
    drain(worker)
    assert cloud.counters()["worker.fresh_steps"] > steps
    assert worker.learner.replayable <= before + 20
    # A worker that starts anew knows it from the store, and what was held is left out for good.
    worker = cloud.open()
    put(cloud, "bad", 16)
    learned = learned_from(worker)["bad"]
    drain(worker)
    assert learned_from(worker)["bad"] <= learned


def test_what_was_kept_of_it_is_not_replayed(cloud: Cloud) -> None:
    cloud.worker_config(idle_steps=40)
    devices = register(cloud)
    worker = cloud.open()
    for _ in range(8):
        put(cloud, "a", 8)
        put(cloud, "bad", 8)
        drain(worker)
    assert worker.learner.replayable == 128
    devices.act("bad", Quarantine())
    recalled: list[int] = []
    images = worker._quarantine.images

    def watched(seqs: list[int]) -> dict[int, bytes]:
        found = images(seqs)
        recalled.extend(found)
        return found

    worker._quarantine.images = watched  # type: ignore[method-assign,assignment]
    for _ in range(6):
        put(cloud, "a", 16)
        drain(worker)
    assert {sample.device for sample in cloud.store.samples(recalled)} == {"a"}
    assert cloud.counters()["worker.gone_samples"] > 0


def test_a_released_device_is_learned_from_again(cloud: Cloud) -> None:
    devices = register(cloud)
    devices.act("bad", Quarantine())
    worker = cloud.open()
    put(cloud, "bad", 32)
    drain(worker)
    assert learned_from(worker).get("bad", 0) == 0
    devices.act("bad", Release())
    put(cloud, "bad", 32)
    drain(worker)
    assert learned_from(worker)["bad"] > 0
    assert cloud.counters()["worker.fresh_steps"] == 2


def test_what_a_moved_device_left_behind_is_left_out_too(cloud: Cloud) -> None:
    devices = register(cloud)
    put(cloud, "bad", 32)
    devices.act("bad", Move(to="south"))
    devices.act("bad", Quarantine())
    drain(cloud.open())
    assert cloud.counters()["worker.left_out_samples"] == 32


@given(
    senders=st.lists(st.sampled_from(NAMES), min_size=1, max_size=80),
    size=st.integers(1, 32),
    behind=st.booleans(),
    quarantined=st.sets(st.sampled_from(NAMES)),
    learned=st.dictionaries(st.sampled_from(NAMES), st.floats(0, 500)),
)
@settings(max_examples=200, deadline=None)
def test_no_draw_has_a_sample_of_a_quarantined_device(
    senders: list[str], size: int, behind: bool, quarantined: set[str], learned: dict[str, float]
) -> None:
    quarantine = OperatorQuarantine.__new__(OperatorQuarantine)
    quarantine.names = frozenset(quarantined)
    ledger = Ledger(devices={name: DeviceRecord(learned=n, seen=100) for name, n in learned.items()})
    queue = [Waiting(i, name) for i, name in enumerate(senders, 1)]
    drawn = draw(queue, size, quarantine.marked(ledger), behind=behind)
    of = dict(queue)
    for seqs in (drawn.chosen, drawn.held, drawn.replay):
        assert not {of[seq] for seq in seqs} & quarantined
    done = [w.seq for w in queue if w.seq <= drawn.cursor]
    assert sorted([*drawn.chosen, *drawn.held, *drawn.replay, *drawn.left_out]) == done
    assert not any(record.quarantined for record in ledger.devices.values()), "the ledger itself is as it was"


def observed(apart: tuple[str, ...]) -> Ledger:
    """Two devices that see the same and one that sees something else, of which some may be apart."""
    ledger = Ledger()
    for name, shift in (("a", 0.0), ("b", 0.0), ("c", 9.0)):
        rows = np.random.default_rng(len(name)).normal(shift, 1.0, (4 * KNOWN, 8)).astype(np.float32)
        ledger.observe([name] * len(rows), rows, np.ones(len(rows), bool), apart=apart)
    return ledger


def test_a_quarantined_device_counts_for_none_of_the_others() -> None:
    assert observed(()).quarantined() == ["c"]
    assert observed(("c",)).quarantined() == ["c"], "the worker goes on judging it"
    assert observed(("b",)).quarantined() == [], "one other device alone tells nothing"
