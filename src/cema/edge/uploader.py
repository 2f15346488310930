"""Sending samples: batches out of the spool, verdicts into it."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

import msgspec

from cema.edge.answers import one_line
from cema.edge.background import BackgroundThread, Clock, Pause
from cema.edge.budget import Budget
from cema.edge.client import CloudClient
from cema.edge.near_duplicates import NearDuplicates
from cema.edge.outgoing import Outgoing
from cema.edge.retry import Backoff, LinkError
from cema.edge.spool import Spool
from cema.formats.sample import CONTENT_TYPE, Sample, Verdict, encode_samples

__all__ = ["Uploader"]

logger = logging.getLogger(__name__)

_TOO_LARGE = 413
# The part of the time to linger that is left to the samples which come together with the first after a silence.
_AFTER_SILENCE = 0.1
# Batches in a row that must come through before a halved limit is doubled again. Every 413 after that doubles
# the number, so that a cloud with a lower limit is asked ever more rarely.
_PATIENCE, _LONGEST_PATIENCE = 8, 1024
# The longest pause for the budget: quiet hours go by a clock that may be set meanwhile.
_LONGEST_WAIT = 60.0


class Uploader(BackgroundThread):
    """Empty the spool into the cloud, at least once each; the cloud's content hashes make that exactly once.

    A sample leaves the spool only with a verdict of its own. A batch is sent when it is full, `linger_seconds` after
    the last one, or on :meth:`hurry`; what comes after a silence waits a tenth of that time, for what comes with it.
    A batch answered 413 is halved, and after some batches that came through the limits double again, up to those
    configured; a single sample answered so is dropped (``too_large_for_cloud``), since it would block all others
    for ever. Under a budget a batch is cut to what may be sent now, and the rest waits; a sample larger than the budget
    will ever allow is dropped (``over_budget``).

    Parameters
    ----------
    spool : Spool
    link : CloudClient
    batch_samples, batch_bytes : int
        A batch's limits.
    linger_seconds : float
    clock, backoff, on_change
        See :class:`~cema.edge.background.BackgroundThread`.
    on_delivered : callable, optional
        Called with the samples of a batch that were answered ``stored`` or ``duplicate``.
    budget : Budget, optional
        What may be sent; everything when left out.
    near_duplicates : NearDuplicates, optional
        What looks like something that was sent, and is dropped (``near_duplicate``) unless it was drawn at random;
        nothing when left out.
    """

    def __init__(
        self,
        spool: Spool,
        link: CloudClient,
        *,
        batch_samples: int,
        batch_bytes: int,
        linger_seconds: float,
        clock: Clock,
        backoff: Backoff,
        on_change: Callable[[], None],
        on_delivered: Callable[[Sequence[Sample]], None] | None = None,
        budget: Budget | None = None,
        near_duplicates: NearDuplicates | None = None,
    ) -> None:
        super().__init__("uploader", clock=clock, backoff=backoff, on_change=on_change)
        self._on_delivered = on_delivered
        self._spool, self._link, self._budget = spool, link, budget
        self._near_duplicates = near_duplicates
        self._outgoing = Outgoing(spool, near_duplicates)
        self._limits = self._configured = (batch_samples, batch_bytes)
        self._patience, self._good = _PATIENCE, 0
        self._raised = False  # whether the limits were doubled since the last 413
        self._linger = linger_seconds
        self._since: float | None = None  # when the batch in the making got its first sample
        self._sent = float("-inf")  # when the last batch was sent
        self._hurry = False
        self._unwritten: Callable[[], object] | None = None  # what the cloud said and the disk did not take

    def hurry(self) -> None:
        """Send without lingering until the spool is empty; the budget and a server's wish to wait still hold."""
        self._hurry = True
        self.notify()

    def step(self) -> Pause:
        """Send one batch, if one is due."""
        self._write()  # a disk that is full is no reason to send the same batch again and again
        waiting = self._spool.samples
        if not waiting:
            self._since, self._hurry = None, False
            if self._budget is not None:
                self._budget.relax()
            return Pause(None)
        now = self.clock.monotonic()
        self._since = now if self._since is None else self._since
        samples, size = self._limits
        full = waiting >= samples or self._spool.bytes >= size
        due = max(self._since + _AFTER_SILENCE * self._linger, self._sent + self._linger)
        if not full and not self._hurry and now < due:
            return Pause(due - now)
        pause = self._send_next(now) if self._budget is None else self._send_within(self._budget, now)
        self._since = None
        return pause

    def _send_next(self, now: float) -> Pause:
        if batch := self._peek(*self._limits):
            self._sent = now
            self._send(batch, encode_samples(batch))
        return Pause(0.0)

    def _peek(self, samples: int, size: int) -> list[Sample]:
        """Return the first samples without near-duplicates; none where all of them were."""
        batch, twins = self._outgoing.peek(samples, size)
        if twins:
            self._drop(twins, "near_duplicate")
        return batch

    def _send_within(self, budget: Budget, now: float) -> Pause:
        """Send as much of a batch as the budget allows now, or say how long it has to wait."""
        room = budget.room()
        if not room.samples or not room.bytes:
            wait = budget.wait(1)
            return Pause(min(wait.seconds, _LONGEST_WAIT) if wait else 0.0)
        samples, size = self._limits
        batch = self._peek(min(samples, room.samples), min(size, room.bytes))
        fits = bisect_right(
            range(1, len(batch) + 1), room.bytes, key=lambda count: len(encode_samples(batch[:count]))
        )
        if not batch:
            return Pause(0.0)
        batch = batch[: max(1, fits)]
        body = encode_samples(batch)
        if len(body) > budget.largest:
            self._drop(batch[:1], "over_budget")
            logger.warning(
                "a sample of %d bytes is more than the budget ever allows (%d): dropped; raise the limits of "
                "[budget], or make samples smaller with upload.max_side or upload.quality",
                len(body),
                budget.largest,
            )
        elif (wait := budget.wait(len(body), len(batch))) is not None:
            return Pause(min(wait.seconds, _LONGEST_WAIT))
        elif budget.charge(len(body), len(batch)):
            self._sent = now
            self._send_charged(budget, batch, body)
        return Pause(0.0)

    def _send_charged(self, budget: Budget, batch: Sequence[Sample], body: bytes) -> None:
        began: list[bool] = []
        try:
            self._send(batch, body, lambda: began.append(True))
        finally:
            if began:
                budget.settle()
            else:
                budget.cancel()

    def _send(
        self, batch: Sequence[Sample], body: bytes, on_sending: Callable[[], None] = lambda: None
    ) -> None:
        self._spool.count("requests")
        try:
            reply = self._link.send_samples(
                body, CONTENT_TYPE, on_sending, drawn=self._outgoing.header(batch)
            )
        except LinkError as error:
            if error.status != _TOO_LARGE:
                raise
            self._shrink(batch)
            return
        verdicts = _verdicts(reply.body, {sample.id for sample in batch})
        self._unwritten = lambda: self._spool.acknowledge(verdicts)
        try:
            self._write()
        finally:
            kept = {verdict.id for verdict in verdicts if verdict.verdict != "rejected"}
            delivered = [sample for sample in batch if sample.id in kept]
            if delivered and self._near_duplicates is not None:
                self._near_duplicates.remember(delivered)
            if delivered and self._on_delivered is not None:
                self._on_delivered(delivered)
        if not verdicts:
            raise LinkError(
                f"the cloud answered 200 without a verdict on any of {len(batch)} samples; is it the cloud?"
            )
        for verdict in verdicts:
            if verdict.verdict == "rejected":
                logger.warning("the cloud rejected sample %s: %s", verdict.id, one_line(verdict.reason or ""))
        self._grow()
        self.succeeded()

    def _grow(self) -> None:
        """Take one step back to the configured limits once enough batches came through."""
        if self._limits == self._configured:
            return
        self._good += 1
        if self._good >= self._patience:
            samples, size = (
                min(2 * now, full) for now, full in zip(self._limits, self._configured, strict=True)
            )
            self._limits = samples, size
            self._good, self._raised = 0, True

    def _shrink(self, batch: Sequence[Sample]) -> None:
        self._good = 0
        if len(batch) > 1:
            if self._raised:
                self._patience, self._raised = min(2 * self._patience, _LONGEST_PATIENCE), False
            self._limits = (len(batch) // 2, max(1, sum(len(sample.image) for sample in batch) // 2))
            logger.info("the cloud takes no batch of %d samples: trying %d", len(batch), self._limits[0])
            return
        logger.warning("the cloud takes no sample of %d bytes: dropped", len(batch[0].image))
        self._limits = self._configured
        self._drop(batch[:1], "too_large_for_cloud")

    def _drop(self, samples: Sequence[Sample], reason: str) -> None:
        self._unwritten = lambda: self._spool.drop([sample.id for sample in samples], reason)
        self._write()

    def _write(self) -> None:
        """Let the spool know what the cloud said; it is kept here until the disk takes it."""
        if self._unwritten is not None:
            self._unwritten()
            self._unwritten = None


class _Judged(msgspec.Struct):
    id: str
    verdict: str
    reason: str | None = None


class _Verdicts(msgspec.Struct):
    verdicts: list[msgspec.Raw]


def _verdicts(body: bytes, sent: Iterable[str]) -> list[Verdict]:
    """Read the verdicts on what was sent; one that cannot be understood leaves its sample unjudged."""
    found = []
    open_ids = set(sent)
    try:
        entries = msgspec.json.decode(body, type=_Verdicts).verdicts
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: UTF-8 that is none
        raise LinkError(
            f"the cloud's verdicts cannot be read: {error}; expected JSON with `verdicts`"
        ) from error
    for entry in entries:
        try:
            judged = msgspec.json.decode(entry, type=_Judged)
            verdict = msgspec.convert(
                {"id": judged.id, "verdict": judged.verdict, "reason": judged.reason}, type=Verdict
            )
        except (msgspec.MsgspecError, ValueError, RecursionError):
            logger.warning("a verdict that cannot be read: %r", bytes(entry)[:200])
            continue
        if verdict.id in open_ids:
            open_ids.discard(verdict.id)
            found.append(verdict)
    return found
