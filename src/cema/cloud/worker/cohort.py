"""One cohort's worker: read samples, adapt, publish, commit; resume after any crash."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from cema._util.events import report
from cema.adapt.algorithms import make_learner
from cema.adapt.base import Learner, PutsBack, StepReport
from cema.adapt.config import AdaptConfig
from cema.cloud import events
from cema.cloud.config import CohortConfig, WorkerConfig
from cema.cloud.store.agreements import AgreementCount, agreements_of
from cema.cloud.store.base import PublishedUpdate, Store, StoredSample
from cema.cloud.store.control import Acted, ControlChanged, name_of
from cema.cloud.store.offers import Offer
from cema.cloud.worker.acts import ActsOfOperators, Done
from cema.cloud.worker.attempts import Attempts, WorkerFailed
from cema.cloud.worker.bases import replay_stored, resume_publisher
from cema.cloud.worker.batch_size import BatchSize
from cema.cloud.worker.checkpoint import Progress, dump_checkpoint, load_checkpoint
from cema.cloud.worker.drawn import DrawnSamples
from cema.cloud.worker.fairness import Draw, draw
from cema.cloud.worker.gate import BatchAgreement, agreements
from cema.cloud.worker.history import ChangeOfDomain, HistoryOfSteps
from cema.cloud.worker.images import DecodedImages, most_pixels
from cema.cloud.worker.measured import counts_of
from cema.cloud.worker.publisher import Candidate, Publisher
from cema.cloud.worker.quarantine import OperatorQuarantine
from cema.cloud.worker.rights import RightsOfData
from cema.cloud.worker.rollout_turn import roll_out
from cema.cloud.worker.rollouts import Rollouts
from cema.cloud.worker.tracing import Tracer
from cema.models.spec import Model
from cema.ondevice.batch import Batch

__all__ = ["CohortWorker"]

log = logging.getLogger(__name__)

# Samples in a row that may fail on their own before the fault must be elsewhere and the process starts again.
FAILURES = 3
# Candidates in a row that were rejected, after which the adaptation is reset to the source models.
MOST_REJECTED = 16


class CohortWorker:
    """Adapts one cohort.

    Parameters
    ----------
    store
        Where samples come from and every step is committed to.
    cohort
        The cohort's settings.
    edge, foundation
        The source models.
    publisher
        Makes the cohort's updates.
    config
        Batches, waiting, idle steps; ``auto`` as device must have been resolved.
    clock
        Unix seconds.
    seed
        Seed of the draws from the replay buffer.

    Raises
    ------
    CohortUnreadable
        The committed checkpoint does not fit the models or settings.
    ConfigError
        The algorithm has not the layers with statistics that the bundle lists.
    """

    def __init__(
        self,
        store: Store,
        cohort: CohortConfig,
        *,
        edge: Model,
        foundation: Model,
        publisher: Publisher,
        config: WorkerConfig,
        clock: Callable[[], float] = time.time,
        seed: int = 0,
    ) -> None:
        self.store = store
        self.cohort = cohort
        self.config = config
        self.publisher = publisher
        self.settings: AdaptConfig = cohort.adapt
        self._clock = clock
        self._counts: dict[str, float] = {}
        self._measured: list[AgreementCount] = []
        self._failures = 0
        self._last: dict[str, Any] = {}
        self._models = (edge, foundation)
        self._seed = seed
        self._acts = ActsOfOperators(store, cohort.name)
        base = publisher.bundle.manifest.base
        self._rollouts = Rollouts(store, cohort.name, cohort.rollout, base=base)
        self._quarantine = OperatorQuarantine(store, cohort.name)
        self._rights = RightsOfData(store, cohort)
        most = most_pixels(edge.preprocessing, foundation.preprocessing)
        self._images = DecodedImages(most)
        self.history = HistoryOfSteps(store, cohort.name)
        self._drawn = DrawnSamples(store, cohort.name, most, note=self.history.random)
        self._claim()

    def _claim(self) -> None:
        store, name = self.store, self.cohort.name
        store.open_cohort(name, base=self.publisher.bundle.manifest.base)
        state = store.claim(name)
        self.epoch = state.epoch
        self.cursor = state.cursor
        self._tracer = Tracer(self._clock())
        self._attempts = Attempts(store, name, state.attempts)
        self._saved = state.checkpoint
        self._size = BatchSize(self.settings.fresh, self._attempts.halvings)
        self._restore()
        resume_publisher(self.publisher, store, name)
        store.put_report(name, self.report(), now=self._clock())

    def rewind(self) -> None:
        """Go back to the last committed step, after an error that was none of the samples'.

        Raises
        ------
        StoreError
            As for the constructor.
        """
        self._claim()
        self._attempts.forgive()  # no process has died of these samples
        self._size.reset()

    def _new_learner(self) -> Learner[int]:
        return make_learner(
            *self._models,
            self.settings,
            device=self.config.device,
            dtype=self.config.dtype,
            recall=self._recall,
            seed=self._seed,
        )

    def _restore(self) -> None:
        """Go back to the last committed step."""
        self._rights.undo()
        self._rollouts.resume()
        self.history.undone()
        self.learner = self._rights.ready(self._new_learner())
        self.publisher.learned(self.learner)  # refuses at the start what could never be published
        self.progress = Progress()
        if self._saved is not None:
            self.progress = load_checkpoint(self._saved, self.learner, cohort=self.cohort.name)
        else:  # samples from before are of another base model's time, or there are none
            most = self.settings.capacity
            replay_stored(self.learner, self.store, self.cohort.name, until=self.cursor, most=most)

    def run_once(self) -> bool:
        """Do the next thing there is to do.

        Returns
        -------
        bool
            False when there was nothing: samples may come later.

        Raises
        ------
        Fenced
            Another worker has taken the cohort over.
        WorkerFailed
            Three samples in a row failed, each on its own.
        """
        try:
            newest = self._rollouts.newest
            measured = self._drawn.measure(self.learner, self.publisher, self._clock(), newest=newest)
            busy = self._run_once() or measured
            if not busy:
                self.history.write()
            return busy
        except ControlChanged as error:
            report(log, events.STEP_MADE_AGAIN, cohort=self.cohort.name, error=str(error))
            self.rewind()
            return True

    def _run_once(self) -> bool:
        return self._obey() or self._go_on()

    def _obey(self) -> bool:
        """Do what operators and those on the images have asked for, and what canary devices' reports call for."""
        act = self._acts.look()
        if not self._acts.publishes:
            self.publisher.unsigned.forget()  # what could not be signed in time is not to be published any more
        if act is not None and self.publisher.unsigned.may_try(self._clock()) and self._act(act):
            return True
        if (gone := self._rights.look(self.progress, self._clock())) is not None:
            if not self._rights.forget(gone, self.learner, self.progress, self._images):
                self.learner = self._rights.ready(self._new_learner())
            self.commit(self.cursor)
            self._rights.committed(self._clock())
            return True
        self._count("worker.left_out_samples", self._quarantine.look(self.progress))
        return roll_out(self, self._rollouts, self._clock(), publishes=self._acts.publishes)

    def _go_on(self) -> bool:
        """Learn from what waits, replay, or sign anew."""
        backlog, held = self.store.backlog(self.cohort.name), self.progress.held
        now = self._clock()
        size = self._size.samples
        oldest = self.progress.held_since if held else backlog.oldest
        # One that came in the future came before the clock was set: waiting for that moment could take years.
        waited = oldest is not None and not 0 <= now - oldest < self.config.linger_seconds
        if len(held) + backlog.samples >= size or waited:
            drawn = self._draw(backlog.samples, size)
            if len(drawn.chosen) < size and not waited:
                self._hold(drawn, now if oldest is None else oldest)
            else:
                self._learn(drawn)
            return True
        # A step takes its time: one that only replays would make those wait that come to complete the batch.
        idle = not held and not backlog.samples and self.progress.idle < self.config.idle_steps
        if idle and self._replay():
            return True
        if self.publisher.renewal_due(now):
            candidate = self._renewed(now)
            # What could not be signed when it was learned is no renewal.
            about = {"kind": "renewed"} if candidate.outcome == "renewed" else None
            self.commit(self.cursor, candidate.update, about=about)
            return True
        return False

    def _act(self, act: Acted) -> bool:
        """Do what an operator asked for, if it can be signed now; the models are compared anew after that."""
        rollout = self._rollouts.open is not None
        done = self._acts.do(act, self.publisher, self._clock(), open_rollout=rollout)
        if done is None:
            self._count("updates.unsigned", 1)
            return False
        if done.begins_anew:
            self.learner.restart()
        if done.offer is None:
            self.progress.acted()
        about = {"kind": name_of(act.act), "act": act.number, "content_of": getattr(act.act, "to", 0)}
        self.commit(self.cursor, done.update, done=done, about=about, offer=done.offer)
        self._acts.told(done)
        return True

    def _draw(self, backlog: int, size: int) -> Draw:
        """Choose what is next; where too many samples wait, the oldest go without a step of their own."""
        held = self.progress.held
        if len(held) >= size or not backlog:
            return Draw(held[:size], [], [], [], self.cursor, held[size:])
        excess = backlog - self.config.max_backlog
        # After a step that failed, small batches follow in order until the sample is found that it failed for.
        behind = excess > 0 and size == self.settings.fresh
        limit = excess + size if behind else 2 * size
        waiting = self.store.waiting(self.cohort.name, after=self.cursor, limit=limit)
        if not waiting:  # all were deleted since they were counted
            return Draw(held, [], [], [], self.cursor)
        ledger = self._quarantine.marked(self.progress.ledger)
        return draw(waiting, size - len(held), ledger, behind=behind).after(held)

    def _hold(self, drawn: Draw, since: float) -> None:
        """Keep samples until there is a full batch: what others may not give is no reason for small steps."""
        self._pass_on(drawn)
        self.progress.hold([*drawn.chosen, *drawn.held], since)
        self.commit(drawn.cursor)

    def _learn(self, drawn: Draw) -> None:
        samples = self.store.samples(drawn.chosen)
        if self._attempts.exhausted(self.settings.fresh):
            self._count("worker.abandoned_samples", len(samples))
            self._size.reset()
            self._done(drawn)
            return
        began, begin = self._clock(), time.perf_counter()
        try:
            self._pass_on(drawn)
            readable, batch = self._readable(samples)
            if readable:
                self._after_step(self._test_then_train(readable, batch), begin)
                self.progress.learned(len(readable) / self.settings.fresh, self.config.idle_steps)
            seconds = time.perf_counter() - begin
            update = self._candidate()
        except Exception as error:
            self._recover(error)
            self._size.failed()
            if len(samples) <= 1:
                self._pass_over(drawn)
            return
        self._failures = 0
        self._size.succeeded()
        self._tracer.learned(readable, began, seconds)
        self._done(drawn, update)

    def _done(self, drawn: Draw, update: PublishedUpdate | None = None) -> None:
        # Where others were drawn, those that were held before are all among the chosen.
        self.progress.hold(drawn.held, self._clock() if drawn.cursor != self.cursor else None)
        self.commit(drawn.cursor, update)

    def _pass_on(self, drawn: Draw) -> None:
        """Do what is to be done with samples that are not learned from now."""
        if drawn.replay:
            report(log, events.SAMPLES_POSTPONED, cohort=self.cohort.name, samples=len(drawn.replay))
            self.learner.skip(drawn.replay)
        self._count("worker.skipped_samples", len(drawn.replay))
        self._count("worker.left_out_samples", len(drawn.left_out))
        watched, batch = self._readable(self.store.samples(drawn.watched))
        if watched:
            labels = self.learner.foundation_logits(batch).argmax(axis=1)
            self._note(watched, batch, self._rights.taught(watched, labels))

    def _note(self, samples: Sequence[StoredSample], batch: Batch, labels: npt.NDArray[np.int64]) -> None:
        """Remember what devices send, and whether the foundation model agrees with them."""
        self._rollouts.measured(samples, labels.tolist())
        rows = batch.statistics(self._models[0].preprocessing)
        agrees = labels == [sample.label for sample in samples]
        devices, apart = [sample.device for sample in samples], self._quarantine.names
        judged = self.progress.ledger.observe(devices, rows, agrees, apart=apart)
        for device, quarantined in judged.items():
            event = events.DEVICE_QUARANTINED if quarantined else events.DEVICE_RELEASED
            report(log, event, cohort=self.cohort.name, device=device)

    def _pass_over(self, drawn: Draw) -> None:
        """Leave out a sample that failed on its own; several in a row are no fault of theirs."""
        self._failures += 1
        self._count("worker.failed_samples", 1)
        self._done(drawn)
        if self._failures >= FAILURES:
            raise WorkerFailed(
                f"cohort {self.cohort.name!r}: {FAILURES} samples in a row failed, last with: "
                f"{self._last.get('error')}; see the log above"
            )

    def _test_then_train(self, samples: Sequence[StoredSample], batch: Batch) -> StepReport:
        self.publisher.unsigned.forget()  # the next candidate comes from what is learned now
        self.publisher.devices_run(max(sample.version for sample in samples))
        # A model that has learned nothing yet is the source model: that it does as well as that says nothing.
        started = self.learner.steps > 0
        domain = ChangeOfDomain(self.learner, self.settings.fresh)
        put_back = isinstance(self.learner, PutsBack) and self.learner.prepare(batch)
        predictions = self.publisher.predictions(batch, *self.publisher.learned(self.learner))
        report = self.learner.learn([sample.seq for sample in samples], batch)
        labels = report.labels
        if labels is None:
            labels = self.learner.foundation_logits(batch).argmax(axis=1)
        labels = self._rights.taught(samples, labels)
        counts = agreements(labels, *predictions)
        # No more samples since the last change than this batch has: it is the first of its domain.
        changed = self.learner.since_change <= len(batch)
        if domain.found(self.learner, len(batch)):
            rows = batch.statistics(self._models[0].preprocessing)
            self.history.changed(domain.distance(rows), self._clock())
        if put_back:
            self.progress.window.put_back(changed=changed)
        # What was put back had no part in the change: it was tested as it was learned, before this batch.
        before_update = started and (put_back or not changed)
        tested = BatchAgreement(
            count=len(batch),
            adapted=counts[0],
            running=counts[1],
            source=counts[2],
            before_update=before_update,
        )
        self.progress.window.add(tested, self.cohort.publish.window)
        self._tracer.tested(predictions, labels, before_update=before_update, size=self.cohort.publish.window)
        version, newest = self.publisher.version, self._rollouts.newest
        self._measured += counts_of(tested, samples, labels, version=version, newest=newest)
        self.progress.ledger.learned([sample.device for sample in samples])
        self._note(samples, batch, labels)
        return report

    def _readable(self, samples: Sequence[StoredSample]) -> tuple[list[StoredSample], Batch]:
        """Return the samples that can be decoded, and their images."""
        images = self._images.new(samples)
        readable = [sample for sample, image in zip(samples, images, strict=True) if image is not None]
        self._count("worker.unreadable_samples", len(samples) - len(readable))
        return readable, Batch([image for image in images if image is not None])

    def _replay(self) -> bool:
        if self._attempts.exhausted():
            self._count("worker.abandoned_replays", 1)
            self.progress.idle = self.config.idle_steps
            # Otherwise the next replay would draw the very same samples.
            self.learner.redraw()
            self.commit(self.cursor)
            return True
        begin = time.perf_counter()
        report = None
        try:
            report = self.learner.replay()
            self._after_step(report, begin)
            self.progress.idle = self.progress.idle + 1 if report.step else self.config.idle_steps
            self._tracer.replayed(report.step > 0)
        except Exception as error:
            self._recover(error)
            self.progress.idle = self.config.idle_steps
        # What replay changed goes out once new samples have tested it. Also when there was nothing to replay: the
        # attempt was noted, and must not be held against the next batch.
        self.commit(self.cursor)
        return report is None or report.step > 0

    def _after_step(self, report: StepReport, begin: float) -> None:
        if not report.step:
            return
        self.publisher.learned(self.learner)  # raises when the step left something that is not finite
        seconds = time.perf_counter() - begin
        self.progress.since_candidate += 1
        self._count("steps.count", 1)
        self._count("steps.seconds", seconds)
        self._count("worker.fresh_steps" if report.fresh else "worker.replay_steps", 1)
        self._count("worker.gone_samples", report.dropped)
        self._count("worker.refused_gradients", report.skipped)
        self.history.losses(report.losses)
        losses = {name: value if math.isfinite(value) else None for name, value in report.losses.items()}
        counts = {name: getattr(report, name) for name in ("step", "fresh", "replayed", "dropped", "skipped")}
        self._last |= {"step": counts | losses, "step_seconds": seconds}

    def _candidate(self) -> PublishedUpdate | None:
        now = self._clock()
        if not self._acts.publishes or self._rollouts.holds(now):
            return None
        if self.progress.since_candidate < self.cohort.publish.every_steps or not self.publisher.due(now):
            return None
        if self.publisher.ahead(now):
            report(
                log, events.CLOCK_WRONG,
                cohort=self.cohort.name, version=self.publisher.version, seconds=self.publisher.created - now,
            )  # fmt: skip
            self._count("worker.clock_faults", 1)
        self.progress.since_candidate = 0
        norm_state, statistics = self.publisher.learned(self.learner)
        candidate = self.publisher.consider(
            norm_state, self.progress.window, now, self.learner.domain(), statistics
        )
        self._count(f"updates.{candidate.outcome}", 1)
        self._tracer.judged(candidate.outcome, now)
        agreement = asdict(candidate.agreement) if candidate.agreement else {}
        self._last["candidate"] = {"outcome": candidate.outcome, **agreement}
        self._judged(candidate, now)
        if self.progress.rejected_in_a_row >= MOST_REJECTED:
            self._reset()
        return candidate.update

    def _renewed(self, now: float) -> Candidate:
        candidate = self.publisher.renew(now)
        if candidate.outcome != "renewed":
            self._count(f"updates.{candidate.outcome}", 1)
        self._judged(candidate, now)
        return candidate

    def _judged(self, candidate: Candidate, now: float) -> None:
        update, restricted = candidate.update, False
        if update is not None and candidate.outcome == "published":
            restricted = self._rollouts.starts(update, self.publisher.version, now)
        self.progress.judged(candidate.outcome, restricted=restricted)

    def _reset(self) -> None:
        """Reset to the source models; the replay buffer stays."""
        report(log, events.ADAPTATION_RESET, cohort=self.cohort.name, candidates=MOST_REJECTED)
        self.learner.restart()
        self.progress.window.forget_adapted()
        self.progress.rejected_in_a_row = 0
        self._count("worker.resets", 1)

    def _recall(self, seqs: Sequence[int]) -> list[npt.NDArray[np.uint8] | None]:
        """Return replayed samples' images; None where one is evicted, unreadable or not to be used."""
        stored = self._quarantine.images(seqs)
        return [self._images.again(seq, stored.get(seq)) for seq in seqs]

    def _recover(self, error: Exception) -> None:
        """Undo a failed step."""
        report(log, events.STEP_FAILED, exc_info=error, cohort=self.cohort.name)
        self._last["error"] = f"{type(error).__name__}: {error}"[:500]
        self._counts = {k: v for k, v in self._counts.items() if not k.startswith(("steps.", "updates."))}
        self._measured = []
        self._count("worker.failed_steps", 1)
        self._restore()

    def commit(
        self,
        cursor: int,
        update: PublishedUpdate | None = None,
        *,
        done: Done | None = None,
        about: Mapping[str, Any] | None = None,
        offer: Offer | None = None,
    ) -> None:
        """Make the step durable whole; only then is it true. The trace of the update says what it is `about`."""
        offer = offer or self._rollouts.offer_of(update)
        to_all = offer is None or offer.audience is None
        saved = dump_checkpoint(self.progress, self.learner)
        counts, self._counts, now = self._counts, {}, self._clock()
        measured, self._measured = self._measured, []
        more = {"measured": measured} if agreements_of(self.store) else {}
        more |= (
            self._acts.committed_with(done)
            | self._rights.committed_with()
            | ({"offer": offer} if offer else {})
        )
        version = update.version if update and to_all else self.publisher.version
        self.store.commit_step(
            self.cohort.name,
            cursor,
            saved,
            self._tracer.traced(update, now, self._lineage if about is None else lambda: about),
            epoch=self.epoch,
            now=now,
            counts=counts,
            report=self.report() | {"version": version},
            **more,
        )
        self.cursor, self._saved = cursor, saved
        self._attempts.committed()
        self.history.committed(measured, now)
        if update is not None:
            self.publisher.published(update, to_all=to_all)
            report(log, events.UPDATE_PUBLISHED, cohort=self.cohort.name, version=update.version)
        self._rollouts.committed(offer, update)

    def _lineage(self) -> dict[str, Any]:
        """Return what a version was learned with: the gate's agreement, the last losses, what inputs look like."""
        candidate = self._last.get("candidate", {})
        kind = "reverted" if candidate.get("outcome") == "reverted" else "learned"
        domain = self.learner.domain()
        return {
            "kind": kind,
            "gate": candidate,
            "step": self._last.get("step"),
            "domain": None if domain is None else domain.mean.tolist(),
            "predictions": self._tracer.predictions(self.publisher.bundle.manifest.classes),
        }

    def report(self) -> dict[str, Any]:
        """Return what the worker is doing, JSON-able."""
        return {
            "ready": True,
            "device": self.config.device,
            "steps": self.learner.steps,
            "replay": self.learner.replayable,
            "version": self.publisher.version,
            "quarantined": self.progress.ledger.quarantined(),
            **({"unsigned": problem} if (problem := self.publisher.unsigned.problem) else {}),
            **self._last,
        }

    def _count(self, name: str, value: float) -> None:
        self._counts[name] = self._counts.get(name, 0) + value
