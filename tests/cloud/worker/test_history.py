"""What a worker notes over time: of committed steps, and at the moments at which they were committed."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cloud_support import samples_of
from cloud_tiny_models import quadrants
from worker_cloud import Cloud, drain

from cema.cloud.store.history import BIN_SECONDS
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.worker.history import ChangeOfDomain, HistoryOfSteps
from cema.cloud.worker.tracing import CLASSES_COUNTED, Tracer
from cema.cloud.worker.turn import Turn
from cema.errors import StoreFull
from cema.formats.draw import Draw
from cema.ondevice.drift import Domain
from cema.testing.store_data import numbered_update


def sums(store: SqliteStore, since: float = 0.0, until: float = 1e12) -> dict[str, tuple[float, float]]:
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for each in store.history("north", since, until, BIN_SECONDS):
        for name, (count, total) in each.measures.items():
            found[name][0] += count
            found[name][1] += total
    return {name: (count, total) for name, (count, total) in found.items()}


def agreement(store: SqliteStore) -> dict[str, tuple[float, float]]:
    """Return what the store itself keeps of the agreement."""
    samples, agreed = Counter[str](), Counter[str]()
    for point in store.agreement_over_time("north"):
        samples[point.model] += point.samples
        agreed[point.model] += point.agreed
    return {f"agreement.{model}": (samples[model], agreed[model]) for model in samples}


def test_agreement_and_losses_of_committed_steps_are_in_the_history(cloud: Cloud) -> None:
    worker = cloud.open()
    for _ in range(4):
        cloud.send(16)
        cloud.now += 7
        drain(worker)
    found = sums(cloud.store)
    assert found.items() >= agreement(cloud.store).items()
    assert found["agreement.running"][0] == 64
    steps = cloud.counters()["steps.count"]
    losses = {name: pair for name, pair in found.items() if name.startswith("loss.")}
    assert losses.keys() == {
        f"loss.{name}" for name in ("foundation_loss", "distillation_loss", "kl", "ce", "entropy")
    }
    assert {count for count, _ in losses.values()} == {steps}
    moments = [each.at for each in cloud.store.history("north", 0, 1e12, BIN_SECONDS)]
    assert moments == sorted({int(at) // 10 * 10 for at in (1007, 1014, 1021, 1028)})
    assert sums(cloud.store, until=1010)["agreement.running"][0] == 16


def test_versions_are_in_the_history_with_their_kind(cloud: Cloud) -> None:
    worker = cloud.open()
    while not (known := cloud.store.published("north", 0, 1e12)):
        cloud.send(16)
        cloud.now += 3
        drain(worker)
    assert (known[0].version, known[0].at, known[0].kind) == (1, cloud.now, "learned")
    cloud.now += 40 * 86_400
    drain(worker)
    assert [each.kind for each in cloud.store.published("north", 0, 1e12)] == ["learned", "renewed"]


def test_samples_drawn_at_random_count_by_the_predictions_that_they_stand_for(cloud: Cloud) -> None:
    worker = cloud.open()
    images, _ = quadrants(32, 5, drift=True)
    draws = dict.fromkeys(range(32), Draw(0.125, False))
    cloud.store.put("north", samples_of(images), device="d", now=1.0, max_backlog=100, draws=draws)
    drain(worker)
    (version,) = cloud.store.random_agreement_by_version("north")
    found = sums(cloud.store)
    for model, known in version.models.items():
        count, total = found[f"random.{model}"]
        assert (count, total / count) == (32 / 0.125, pytest.approx(known.share))


def test_what_is_undone_is_not_noted_and_a_store_that_fails_fails_no_step(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = cloud.open()
    learn = worker.learner.learn

    def learned(items: Any, batch: Any) -> Any:
        report = learn(items, batch)
        worker.history.losses({"kl": 1000.0})
        worker.history.changed(3.0, cloud.now)
        if len(batch) == 16:
            raise RuntimeError("after it has learned")
        return report

    monkeypatch.setattr(worker.learner, "learn", learned)
    cloud.send(16)
    drain(worker)
    assert cloud.counters()["worker.failed_steps"] == 1
    found = sums(cloud.store)
    assert found.items() >= agreement(cloud.store).items()
    assert found["loss.kl"][1] < 1000
    assert cloud.store.domain_changes("north", 0, 1e12) == []
    before = cloud.store.status("north")["cursor"]

    def refuse(*_: object) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(cloud.store, "note_history", refuse)
    cloud.send(16)
    cloud.now += 100
    drain(worker)
    assert cloud.store.status("north")["cursor"] > before
    assert "measures over time could not be noted: no room" in caplog.text


def test_a_busy_worker_writes_once_in_ten_seconds_and_the_rest_at_the_end(cloud: Cloud) -> None:
    writes: list[float] = []
    note = cloud.store.note_history

    def counted(*what: Any) -> None:
        writes.append(cloud.now)
        note(*what)

    cloud.store.note_history = counted  # type: ignore[method-assign]
    worker = cloud.open()
    cloud.send(16 * 12)
    while worker.run_once():
        cloud.now += 4
    assert all(later - earlier >= 10 for earlier, later in pairwise(writes[:-1]))
    assert len(writes) <= 12 * 4 / 10 + 3
    assert sums(cloud.store).items() >= agreement(cloud.store).items()


def test_what_waits_is_written_when_the_worker_is_told_to_stop(cloud: Cloud) -> None:
    turn = Turn(cloud.store, "north", cloud.open)
    cloud.send(16 * 3)
    for _ in range(2):
        assert turn.once()
    assert sums(cloud.store)["agreement.running"][0] == 16, "the second step waits for ten seconds"
    turn.finish()
    assert sums(cloud.store)["agreement.running"][0] == 32
    turn.finish()
    assert sums(cloud.store)["agreement.running"][0] == 32


def test_a_change_of_the_domain_is_noted_once_with_its_distance(cloud: Cloud) -> None:
    cloud.adapt(change_limit=50.0)
    worker = cloud.open()
    for _ in range(6):
        cloud.send(16, drift=False)
        cloud.now += 20
        drain(worker)
    assert cloud.store.domain_changes("north", 0, 1e12) == []
    moment = cloud.now + 20
    for _ in range(4):
        images, _ = quadrants(16, int(cloud.now), drift=True)
        dark = (images // 4).astype(np.uint8)
        cloud.store.put("north", samples_of(dark), device="d", now=cloud.now, max_backlog=100)
        cloud.now += 20
        drain(worker)
    (change,) = cloud.store.domain_changes("north", 0, 1e12)
    assert change.at == moment
    assert change.distance is not None
    assert change.distance > 50


class Told:
    """What is asked of a learner."""

    def __init__(self, since: int, domain: Domain | None = None) -> None:
        self.since_change, self._domain = since, domain

    def domain(self) -> Domain | None:
        return self._domain


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [(0, 16, False), (16, 32, False), (64, 80, False), (64, 16, True), (64, 9, True), (16, 16, False)],
)
def test_what_counts_as_a_change(before: int, after: int, changed: bool) -> None:
    found = ChangeOfDomain(Told(before), 16)  # type: ignore[arg-type]
    assert found.found(Told(after), 16) is changed  # type: ignore[arg-type]
    assert found.distance(np.zeros((16, 3), np.float32)) is None


def test_losses_of_any_names_are_bounded(cloud: Cloud) -> None:
    history = HistoryOfSteps(cloud.store, "north")
    many = {f"a{i}": 1.0 for i in range(30)} | {"Not a name": 1.0, "nan": float("nan")}
    history.losses(many)
    history.committed([], 5.0)
    found = sums(cloud.store)
    assert len(found) == 16
    assert all(name.startswith("loss.a") for name in found)


def test_a_trace_has_what_inputs_look_like_and_what_models_chose(cloud: Cloud) -> None:
    worker = cloud.open()
    chosen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    predictions = worker.publisher.predictions

    def recorded(batch: Any, *more: Any) -> Any:
        found = predictions(batch, *more)
        teacher = worker.learner.foundation_logits(batch).argmax(axis=1)
        chosen.append((found[1], found[0], teacher))
        return found

    worker.publisher.predictions = recorded  # type: ignore[method-assign]
    batches = []
    while worker.publisher.version < 2:
        cloud.send(16)
        cloud.now += 3
        drain(worker)
        if worker.publisher.version > len(batches):
            batches.append(len(chosen))
    classes = worker.publisher.bundle.manifest.classes
    for version, end in zip((1, 2), batches, strict=True):
        trace = cloud.store.trace("north", version)
        assert trace is not None
        assert len(trace["domain"]) == worker.learner.domain().mean.size  # type: ignore[union-attr]
        told = trace["predictions"]
        # Nothing was learned before the first batch: it says nothing.
        tested = chosen[1:end]
        first = batches[0] if version == 2 else 1
        before = [row[1] if i + 1 < first else row[0] for i, row in enumerate(tested)]
        assert told["classes"] == classes
        assert told["after"] == _counts([row[1] for row in tested], classes)
        assert told["before"] == _counts(before, classes)
        assert sum(told["teacher"]) == 16 * len(tested)
    rolled = Tracer(0.0)
    assert rolled.predictions(classes) is None
    rolled.tested([chosen[0][1], chosen[0][0]], chosen[0][2], before_update=True, size=16)
    assert rolled.predictions(CLASSES_COUNTED + 1) is None
    assert rolled.predictions(classes) is not None
    rolled.traced(numbered_update(1), 1.0, lambda: {"kind": "rollback"})
    assert rolled.predictions(classes) is None


def _counts(labels: list[np.ndarray], classes: int) -> list[int]:
    return np.bincount(np.concatenate(labels), minlength=classes).tolist()
