"""Samples that were drawn at random are measured, and nothing else is done with them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from cloud_support import samples_of
from cloud_tiny_models import quadrants
from worker_cloud import Cloud, cloud, drain

from cema._util.proportion import Weighted, proportion, weighted_proportion
from cema.cloud.store.draws import DrawnSample, draws_of, random_agreement_members, recent_random_agreement
from cema.cloud.worker.drawn import Answers, random_counts
from cema.edge.random_share import RandomShare
from cema.formats.draw import Draw
from cema.formats.sample import Sample
from cema.ondevice.batch import Batch
from cema.ondevice.selection.config import SelectionConfig
from cema.ondevice.selection.entropy import softmax_entropy
from cema.ondevice.selection.rules import make_selector

__all__ = ["cloud"]


def send(cloud: Cloud, samples: list[Sample], draws: dict[int, Draw], **more: Any) -> None:
    cloud.store.put("north", samples, device="d", now=cloud.now, max_backlog=10**6, draws=draws, **more)


def drawn_images(count: int, seed: int = 3) -> tuple[np.ndarray, list[Sample]]:
    images, _ = quadrants(count, seed, drift=True)
    return images, samples_of(images)


def test_they_are_measured_as_models_answer_and_nothing_is_learned_of_them(cloud: Cloud) -> None:
    images, samples = drawn_images(100)
    worker = cloud.open()
    before = worker.learner.norm_state()
    send(cloud, samples, dict.fromkeys(range(100), Draw(0.01, False)))
    drain(worker)
    batch = Batch(list(images))
    foundation = worker.learner.foundation_logits(batch).argmax(axis=1)
    adapted, running, source = worker.publisher.predictions(batch, *worker.publisher.learned(worker.learner))
    (version,) = cloud.store.random_agreement_by_version("north")
    assert version.version == 0
    assert {name: (found.samples, found.share) for name, found in version.models.items()} == {
        "device": (100, pytest.approx(np.mean([s.label for s in samples] == foundation))),
        "running": (100, pytest.approx(np.mean(running == foundation))),
        "adapted": (100, pytest.approx(np.mean(adapted == foundation))),
        "source": (100, pytest.approx(np.mean(source == foundation))),
    }
    assert version.models["source"].share < 0.95, "else it would say nothing"
    counters = cloud.counters()
    assert (counters["drawn.measured"], worker.learner.steps, worker.learner.replayable) == (100, 0, 0)
    assert "worker.fresh_steps" not in counters
    assert worker.progress.window.batches == []
    assert cloud.store.agreement_over_time("north") == []
    after = worker.learner.norm_state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_what_was_drawn_and_selected_is_measured_before_it_is_learned_from(cloud: Cloud) -> None:
    worker = cloud.open()
    for start in range(4):
        _, samples = drawn_images(16, 50 + start)
        send(cloud, samples, {i: Draw(0.5, i % 2 == 0) for i in range(16)})
        learned = worker.learner.steps
        worker._drawn.measure(worker.learner, worker.publisher, cloud.now)
        assert worker.learner.steps == learned
    _, samples = drawn_images(16, 90)
    send(cloud, samples, {})
    drain(worker)
    counters = cloud.counters()
    assert counters["drawn.measured"] == 64
    # Half of what was drawn, and what was not: in batches of 16.
    tested = sum(p.samples for p in cloud.store.agreement_over_time("north") if p.model == "source")
    assert tested == 48
    assert cloud.store.backlog("north").samples == 0


def test_learning_goes_on_as_if_nothing_had_been_drawn(cloud: Cloud) -> None:
    """The same samples, with and without others that were drawn among them: the same parameters."""

    def learned(drawn: int) -> tuple[dict[str, Any], int]:
        worker = cloud.open()
        cloud.store.open_cohort("north", base=worker.publisher.bundle.manifest.base)
        for start in range(4):
            _, samples = drawn_images(16 + drawn, 200 + start)
            others = samples_of(quadrants(16, 300 + start, drift=True)[0])
            chosen = others[:5] + samples[16:] + others[5:]
            draws = {5 + i: Draw(0.1, False) for i in range(drawn)}
            send(cloud, chosen, draws)
            drain(worker)
        return dict(worker.learner.norm_state()), worker.learner.steps

    with_drawn = learned(6)
    cloud.store.close()
    for path in cloud.folder.rglob("cema.db*"):
        path.unlink()
    cloud.store = cloud.config.open_store()  # type: ignore[assignment]
    without = learned(0)
    assert with_drawn[1] == without[1] > 0
    for key, value in without[0].items():
        np.testing.assert_array_equal(with_drawn[0][key], value)


def test_an_image_that_cannot_be_read_is_counted(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    _, samples = drawn_images(3)
    broken = msgspec.structs.replace(samples[1], image=samples[1].image[:40])
    send(cloud, [samples[0], broken, samples[2]], dict.fromkeys(range(3), Draw(0.01, False)))
    drain(cloud.open())
    counters = cloud.counters()
    assert (counters["drawn.measured"], counters["drawn.unreadable"]) == (2, 1)
    assert random_agreement_members(cloud.store, "north")["source"]["samples"] == 2
    assert "cannot be read" in caplog.text


def test_what_cannot_be_measured_is_given_up_alone_and_the_worker_goes_on(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, samples = drawn_images(4)
    worker = cloud.open()
    logits = worker.learner.foundation_logits

    def fails(images: Any) -> Any:
        if any(np.array_equal(image, poison) for image in images):
            raise RuntimeError("out of memory")
        return logits(images)

    poison = drawn_images(4)[0][2]
    monkeypatch.setattr(worker.learner, "foundation_logits", fails)
    send(cloud, samples, dict.fromkeys(range(4), Draw(0.01, False)))
    drain(worker)
    counters = cloud.counters()
    assert (counters["drawn.measured"], counters["drawn.failed"]) == (3, 1)
    assert random_agreement_members(cloud.store, "north")["running"]["samples"] == 3


def test_a_version_that_there_is_not_yet_is_not_counted() -> None:
    samples = [DrawnSample(i, b"", 1, version, 0.5) for i, version in enumerate([0, 2, 2, 9])]
    labels = np.array([1, 1, 0, 1])
    found = random_counts(samples, Answers(labels, labels, labels, 1 - labels), version=2)
    counted = {(count.version, count.model): count.sums for count in found}
    assert counted[0, "device"] == Weighted.of([(0.5, True)])
    assert counted[2, "device"] == Weighted.of([(0.5, True), (0.5, False)])
    assert counted[2, "running"] == Weighted.of([(0.5, True)] * 4)
    assert weighted_proportion(counted[2, "source"]).share == 0.0
    assert (9, "device") not in counted


def stream(rng: np.random.Generator, size: int, hard: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a device (size, 10), and the foundation model's labels; harder images have less contrast."""
    foundation = rng.integers(0, 10, size)
    contrast = np.where(rng.random(size) < hard, rng.uniform(0, 1.5, size), rng.uniform(3, 9, size))
    logits = rng.normal(0, 1, (size, 10)).astype(np.float32)
    logits[np.arange(size), foundation] += contrast.astype(np.float32)
    return logits, foundation


def test_the_estimate_is_unbiased_where_selected_samples_mislead() -> None:
    """Real entropies and the real selection: two devices that draw different shares of what they see."""
    runs, size, shares = 300, 6000, (0.02, 0.06)
    covered, errors, misled = 0, [], 0
    for run in range(runs):
        rng = np.random.default_rng(run)
        samples: list[DrawnSample] = []
        foundation: list[int] = []
        agreed: list[np.ndarray] = []
        chosen: list[np.ndarray] = []
        for device, share in enumerate(shares):
            logits, truth = stream(rng, size, hard=0.3 + 0.3 * device)
            selector = make_selector(SelectionConfig(), 10)
            draws = RandomShare(share, seed=run * 2 + device)
            entropy, labels = softmax_entropy(logits), logits.argmax(axis=1)
            for start in range(0, size, 50):
                part = slice(start, start + 50)
                chosen.append(selector.select(logits[part], entropy[part]))
                for i in np.flatnonzero(draws.draw(50)) + start:
                    samples.append(DrawnSample(len(samples), b"", int(labels[i]), 0, share))
                    foundation.append(int(truth[i]))
            agreed.append(labels == truth)
        known = np.array(foundation)
        counts = random_counts(samples, Answers(known, known, known, known), version=0)
        found = weighted_proportion(next(count.sums for count in counts if count.model == "device"))
        all_agreed = np.concatenate(agreed)
        old = proportion(int(np.sum(np.concatenate(chosen))), int(all_agreed[np.concatenate(chosen)].sum()))
        covered += found.low <= all_agreed.mean() <= found.high
        misled += not old.low - 0.05 <= all_agreed.mean() <= old.high + 0.05
        errors.append(found.share - all_agreed.mean())
    assert misled == runs, "selected samples are no sample of all"
    assert 0.92 <= covered / runs <= 0.98
    assert abs(np.mean(errors)) < 4 * np.std(errors) / runs**0.5


def test_the_newest_minutes_count(cloud: Cloud) -> None:
    keeps = draws_of(cloud.store)
    assert keeps is not None
    worker = cloud.open()
    for minute in range(3):
        send(cloud, drawn_images(10, minute)[1], dict.fromkeys(range(10), Draw(0.1, False)))
        drain(worker)
        cloud.now += 60.0
    points = keeps.random_agreement_over_time("north")
    assert len({point.at for point in points}) == 3
    assert recent_random_agreement(points, samples=15)["running"].samples == 20
    assert recent_random_agreement(points)["running"].samples == 30
