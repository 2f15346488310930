"""Fetching updates: ask, verify, build beside the running model, try the golden batch, swap one reference."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from cema.edge.background import BackgroundThread, Clock, Pause
from cema.edge.client import CloudClient, Reply
from cema.edge.device_model import DeviceModel
from cema.edge.migrator import Migrator
from cema.edge.probation import Probation
from cema.edge.reports import Reporter
from cema.edge.retry import Backoff, LinkError
from cema.edge.runtime import Active, Check, build_active, pack_payload
from cema.edge.spool import Spool
from cema.edge.state import Resumed, StateFolder
from cema.edge.trust import Trust
from cema.errors import CemaError, FormatError, LogitsError, UpdateRejected
from cema.formats.bundle import Bundle
from cema.formats.report import Refused
from cema.formats.update import UpdateManifest, verify_payload, verify_update, version_of

__all__ = ["Updater"]

logger = logging.getLogger(__name__)

# What a request for news asks the cloud to wait while there are none; one that waits makes polling unnecessary.
_WAIT_SECONDS = 20.0
# A device that is to ask more rarely than this is not to hold a connection open either.
_LONGEST_POLL = 60.0
# Between two such requests: a cloud that has news all the time is not asked all the time.
_BETWEEN_WAITS = 1.0
# After a request that was to wait and failed, so many that are not: something on the way may end those that are silent.
# Twice as many after every further failure.
_PLAIN, _MOST_PLAIN = 4, 1024
# After samples were sent to a cloud that does not wait, the next question comes no later than this.
_SOON = 5.0
# Rejections that another attempt may cure: the clock is set right, the next transfer comes through whole.
_CURABLE = {"expired", "payload_mismatch"}


@dataclass(frozen=True)
class _Offer:
    """An envelope that was found right, and the moment (unix seconds) for which that holds."""

    envelope: bytes
    manifest: UpdateManifest
    verified_at: float


class Updater(BackgroundThread):
    """Bring the running version to the one the cloud wants, whatever happened in between.

    Every poll compares what runs with what is published (level-triggered): a missed, repeated or failed
    update needs no memory of its own. A version lower than the highest ever accepted, the running one under
    another content, and whatever fails verification, never run; the old model goes on serving. A new version
    of the very payload that runs (the cloud signs it again before it expires) is only remembered, and takes the
    running model's place without being fetched or built.

    Parameters
    ----------
    link : CloudClient
    bundle : Bundle
    cohort : str
    state : StateFolder
        Where an accepted update is remembered, before it serves.
    resumed : Resumed
        What was remembered at the start.
    activate : callable
        Called with the new :class:`Active`; assigns one reference.
    source : callable
        Returns the model that the device was provisioned with: it serves again when the keys that have signed the
        running version are revoked.
    counters : Spool
        Keeps ``swaps``, ``bytes_down`` and ``rejected_update.REASON``.
    reports : Reporter
        Sends reports before polls; is told what is refused.
    poll_seconds : float
        Between two questions, give or take a tenth, where the cloud does not keep its answer back until there is news;
        above a minute it is not asked to. After samples were sent the next question comes sooner.
    threads : int
        For the sessions that are built.
    check : callable or None
        See `cema.edge.runtime.build_active`.
    probation : Probation, optional
        Told of every version that is swapped in; calls :meth:`tried`.
    migrator : Migrator, optional
        Told of the base that the cloud names; what it has prepared comes to serve here. Without one no base is named.
    exchange : callable, optional
        Called with a model of the migrator's; lets it serve as its bundle came.
    clock, backoff, on_change
        See :class:`~cema.edge.background.BackgroundThread`.
    """

    def __init__(
        self,
        link: CloudClient,
        bundle: Bundle,
        cohort: str,
        *,
        state: StateFolder,
        resumed: Resumed,
        activate: Callable[[Active], None],
        source: Callable[[], Active],
        counters: Spool,
        reports: Reporter,
        poll_seconds: float,
        threads: int,
        clock: Clock,
        backoff: Backoff,
        on_change: Callable[[], None],
        check: Check | None = None,
        probation: Probation | None = None,
        migrator: Migrator | None = None,
        exchange: Callable[[DeviceModel], None] = lambda _: None,
    ) -> None:
        super().__init__("updater", clock=clock, backoff=backoff, on_change=on_change)
        self._link, self._bundle, self._cohort, self._state = link, bundle, cohort, state
        self._floor = resumed.floor
        self._active = resumed.active  # None: the bundle's own
        self._activate, self._source = activate, source
        self._counters = counters
        self._reports = reports
        self._trust = Trust(link, state, bundle, cohort, clock=clock, count=counters.count)
        self._poll_seconds = poll_seconds
        self._threads = threads
        self._check = check
        self._probation = probation
        self._swapping = (
            threading.Lock()
        )  # this thread swaps versions in, and that of the probation goes back
        self._on_trial, self._returned = resumed.on_trial, resumed.returned
        self._migrator, self._exchange = migrator, exchange
        if migrator is not None:
            migrator.on_ready = self.notify
        self._etag: str | None = None
        self._settled = ""  # digest of the envelope there is nothing more to do about
        self._verdict: str | None = None  # what was wrong with it
        self._counted = ("", "")
        self._unsaved: tuple[str, bytes] | None = None  # digest and content of what the disk did not take
        self._plain = 0  # questions that are not to wait
        self._penalty = _PLAIN  # how many after the next failure
        self._due = float("-inf")  # of the next question
        self._waits = False  # whether the cloud kept its last answer back
        self._hastened = threading.Event()
        link.on_sent = self._hasten

    def _hasten(self) -> None:
        """Ask sooner: samples were sent, and an update may come of them."""
        if not self._waits:
            self._hastened.set()
            self.notify()

    def step(self) -> Pause:
        """Ask once, if it is time to, and do what the reply calls for."""
        if self._migrator is not None and (model := self._migrator.take()) is not None:
            self._begin_with(model, self._migrator)
        elif self._hastened.is_set():  # woken before its time
            self._hastened.clear()
            now = self.clock.monotonic()
            self._due = min(self._due, now + _SOON)
            if now < self._due:
                return Pause(self._due - now)
        pause = self._ask()
        self._due = self.clock.monotonic() + pause
        return Pause(pause)

    def _ask(self) -> float:
        """Ask once, and return the seconds until the next question."""
        self._refresh_trust()
        self._reports.send_if_due()
        began = self.clock.monotonic()
        asks = self._poll_seconds <= _LONGEST_POLL and not self._plain
        wait = min(_WAIT_SECONDS, self._link.longest_wait, self._reports.seconds) if asks else 0.0
        base = None if self._migrator is None else self._bundle.manifest.base
        try:
            reply = self._link.latest_update(self._etag, wait=wait, base=base)
        except LinkError as error:
            if wait and not (error.permanent or self.closing):
                self._plain, self._penalty = self._penalty, min(2 * self._penalty, _MOST_PLAIN)
            raise
        self._plain = max(0, self._plain - 1)
        if self._migrator is not None:
            self._migrator.told(reply.headers.get("cema-base"), self._trust.keyring)
        waited = self.clock.monotonic() - began
        # One that answers at once does not wait, or has news: then the next answer will tell.
        self._waits = wait > 0 and waited >= wait / 2
        news = self._take(reply)
        if self._waits:
            self._penalty = _PLAIN
        if wait and (self._waits or news):
            return max(0.0, _BETWEEN_WAITS - waited)
        return self._poll_seconds * self.backoff.random.uniform(0.9, 1.1)

    def _begin_with(self, model: DeviceModel, migrator: Migrator) -> None:
        """Let the model of another bundle serve, and go on with the updates that are for it."""
        self._bundle, self._check, self._active = model.bundle, model.check, None
        self._on_trial, self._returned = False, None
        self._etag, self._settled, self._verdict, self._unsaved = None, "", None, None
        base = model.bundle.manifest.base
        try:
            self._state.put_update_aside(base)
        except OSError as error:  # it is for another base, and refused at the next start
            logger.warning("state: the update for the base of before stays: %s", error)
        self._floor = self._state.floor(model.bundle, self._trust.keyring)
        self._exchange(model)
        if self._probation is not None:
            self._probation.restart(model.bundle.manifest.classes)
        migrator.taken(base)
        logger.info("the bundle with base %s serves", base[:12])

    def _take(self, reply: Reply) -> bool:
        """Do what a reply calls for; tell whether it had an envelope that was not known."""
        news = False
        if reply.status == 200:
            self._counters.count("bytes_down", len(reply.body))
            digest = hashlib.sha256(reply.body).hexdigest()
            if digest != self._settled:
                news, verdict = True, None
                try:
                    self._consider(reply.body)
                except UpdateRejected as rejection:
                    self._count(digest, rejection, version_of(reply.body))
                    if rejection.reason in _CURABLE:
                        raise
                    verdict = f"updater: {rejection}"
                    logger.warning("%s", verdict)
                self._settled, self._verdict = digest, verdict
            self._etag = reply.etag
        self.succeeded()
        self.last_error = self._verdict  # a refused update stays an error for as long as it is the latest
        return news

    def _refresh_trust(self, *, at_once: bool = False) -> bool:
        """Ask for new keys if it is time to; tell whether there are any, after having acted on them."""
        if not self._trust.refresh(at_once=at_once):
            return False
        self._settled, self._etag = "", None  # what was refused may be right now
        keyring = self._trust.keyring
        if self._state.revoked(self._bundle, keyring):
            # Whoever has the revoked key may have made a version with the highest number of all.
            self._floor = self._state.floor(self._bundle, keyring)
            if self._active is not None:
                logger.warning(
                    "version %d is of a revoked key; the source model serves", self._active.version
                )
                with self._swapping:
                    self._active, self._on_trial = None, False
                    self._activate(self._source())
                    if self._probation is not None:
                        self._probation.end()
        return True

    def _verify(self, envelope: bytes, now: float, *, retired: bool = False) -> UpdateManifest:
        """Verify an envelope; by `retired` keys too, those that sign nothing new."""
        keyring = self._trust.keyring
        return verify_update(
            envelope,
            public_keys=keyring.known if retired else keyring.trusted,
            cohort=self._cohort,
            base=self._bundle.manifest.base,
            # The running version may be announced again; one whose payload got lost may be fetched again.
            running_version=self._floor - 1,
            now=now,
            revoked=keyring.revoked_ids,
        )

    def _runs(self, envelope: bytes) -> bool:
        """Tell whether an envelope is that of the running version: its key may have been retired since."""
        try:
            manifest = self._verify(envelope, -math.inf, retired=True)
        except UpdateRejected:
            return False
        running = self._active
        return running is not None and (manifest.version, manifest.payload) == (
            running.version,
            running.digest,
        )

    def _consider(self, envelope: bytes) -> None:
        now = self.clock.now()  # read once: a clock that jumps from here on changes nothing about this update
        try:
            manifest = self._verify(envelope, now)
        except UpdateRejected as rejection:
            if rejection.reason == "unknown_key" and self._runs(envelope):
                return
            if rejection.reason != "unknown_key" or not self._refresh_trust(at_once=True):
                raise
            manifest = self._verify(envelope, now)
        offer = _Offer(envelope, manifest, now)
        if manifest.payload == self._returned:
            raise UpdateRejected(
                "returned", f"this device went back from the content of version {manifest.version} by itself"
            )
        running = self._active
        if running is not None and manifest.version == running.version:
            if manifest.payload != running.digest:
                raise UpdateRejected("old", f"version {running.version} runs already, with another content")
            return
        if running is not None and manifest.payload == running.digest:
            self._renew(offer, running)
        else:
            self._install(offer, self._download(manifest))

    def _download(self, manifest: UpdateManifest) -> bytes:
        if self._unsaved is not None and self._unsaved[0] == manifest.payload:
            return self._unsaved[1]
        payload = self._link.artifact(manifest.payload, manifest.payload_bytes)
        self._counters.count("bytes_down", len(payload))
        return payload

    def _renew(self, offer: _Offer, running: Active) -> None:
        """Give what serves its new version: it was built and tried on the golden batch when it came."""
        manifest = offer.manifest
        data = self._state.load_payload(manifest.payload)
        if data is None:  # lost on the disk since; what serves must be remembered whole
            data = self._download(manifest)
        verify_payload(manifest, data)
        self._accept(offer, data, replace(running, version=manifest.version), on_trial=self._on_trial)
        logger.info("version %d serves, with the content of %d", manifest.version, running.version)

    def _install(self, offer: _Offer, data: bytes) -> None:
        manifest = offer.manifest
        payload = verify_payload(manifest, data)
        started = self.clock.monotonic()
        try:
            norm = pack_payload(self._bundle, payload)
        except FormatError as error:
            raise UpdateRejected("malformed", str(error)) from error
        try:
            active = build_active(
                self._bundle, manifest, payload, norm, threads=self._threads, check=self._check
            )
        except LogitsError as error:
            raise UpdateRejected("golden_mismatch", str(error)) from error
        self._accept(offer, data, active, swaps=1, on_trial=self._probation is not None)
        logger.info("version %d serves (%.3f s to build)", manifest.version, self.clock.monotonic() - started)

    def _accept(
        self, offer: _Offer, data: bytes, active: Active, *, swaps: int = 0, on_trial: bool = False
    ) -> None:
        with self._swapping:
            self._remember(offer, data, on_trial=on_trial)
            self._floor = offer.manifest.version
            self._active, self._on_trial, self._returned = active, on_trial, None
            self._counters.count("swaps", swaps)  # before anybody can see that it serves
            if self._probation is not None and on_trial:
                (self._probation.begin if swaps else self._probation.renumber)(active)
            self._activate(active)

    def tried(self, version: int, reason: str | None, before: Active | None) -> None:
        """Do what the trial of a version calls for: keep it, or go back; called by the thread of the probation.

        Parameters
        ----------
        version : int
            What was on trial; if another one serves by now, nothing is done.
        reason : str or None
            How it is worse than the one before; None where it is not.
        before : Active or None
            What is to serve in its place then.
        """
        with self._swapping:
            running = self._active
            if running is None or running.version != version:
                return
            self._on_trial = False
            try:
                self._state.settle("good" if reason is None else "returned")
            except OSError as error:
                logger.warning("state: how version %d did cannot be remembered: %s", version, error)
            if reason is None or before is None:
                return
            rejection = UpdateRejected(
                "returned", f"version {version} has {reason}; the version before serves"
            )
            logger.warning("%s", rejection)
            self._returned, self._verdict = running.digest, f"updater: {rejection}"
            self.last_error = self._verdict
            self._active = before if before.version else None
            self._reports.refused = Refused(version=version, reason=rejection.reason)
            self._counters.count("rejected_update.returned")
            self._activate(before)

    def _remember(self, offer: _Offer, data: bytes, *, on_trial: bool) -> None:
        # Remembered first: what has served is never followed by something older, even after a power loss.
        try:
            self._state.save_update(
                offer.envelope, offer.manifest, data, offer.verified_at, on_trial=on_trial
            )
        except OSError as error:
            self._unsaved = (offer.manifest.payload, data)  # a full disk is no reason to fetch it again
            raise CemaError(
                f"version {offer.manifest.version} waits, for it cannot be remembered: {error}; "
                "check the disk's space and health"
            ) from error
        self._unsaved = None

    def _count(self, digest: str, rejection: UpdateRejected, version: int) -> None:
        """Count and report a rejection once for as long as the envelope stays, not once a poll."""
        self._reports.refused = Refused(version=version, reason=rejection.reason)
        if (digest, rejection.reason) != self._counted:
            self._counted = (digest, rejection.reason)
            self._counters.count(f"rejected_update.{rejection.reason}")
