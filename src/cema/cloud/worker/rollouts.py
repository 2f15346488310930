"""How versions come to a cohort's devices: to all at once, when an operator releases them, or canary devices first."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from cema._util.events import report
from cema._util.proportion import Proportion
from cema.cloud import events
from cema.cloud.rollout_config import RolloutConfig
from cema.cloud.store.activity import activity_of
from cema.cloud.store.agreements import agreements_of
from cema.cloud.store.audits import AuditedAct, AuditStore
from cema.cloud.store.base import PublishedUpdate, Store, StoredSample
from cema.cloud.store.bases import newest_of, periods_of
from cema.cloud.store.control import ControlStore
from cema.cloud.store.offers import Offer, Rollout, offers_of
from cema.cloud.store.reports import reports_of
from cema.cloud.worker.canary import Judgement, by_hash, canaries, judge

__all__ = ["Rollouts"]

log = logging.getLogger(__name__)

# Reports come once a minute and at changes: looking at them more often shows nothing new.
LOOK_SECONDS = 1.0
PINS_SECONDS = 3600.0
# Devices that were not heard of for longer are no canary devices: nobody would hear of them in time.
HEARD_OF_SECONDS = 86_400.0


class Rollouts:
    """The rollouts of one cohort, of which one at most is open.

    Parameters
    ----------
    store
        Where they are written down; with one that keeps no offers every version is for all at once.
    cohort
        The cohort's name.
    config
        How new versions come to devices.
    base
        The base model that versions are for.
    """

    def __init__(self, store: Store, cohort: str, config: RolloutConfig, *, base: str) -> None:
        self._store, self._cohort, self._config, self._base = store, cohort, config, base
        self._offers = offers_of(store)
        self._next_look = self._next_pins = float("-inf")
        self._pending: Offer | None = None
        self.open: Rollout | None = None

    def for_all(self) -> PublishedUpdate | None:
        """Return the newest version of the base that is for all devices."""
        return newest_of(self._store, self._cohort, self._base)

    def resume(self) -> None:
        """Go on with what is written down."""
        self._pending = None
        self.open = None
        found = None if self._offers is None else self._offers.rollout(self._cohort)
        periods = periods_of(self._store, self._cohort)
        after = periods[-1].after if periods else 0  # versions up to there are for another base
        if found is not None and found.state == "open" and found.version > after:
            self.open = found

    def released_by_others(self, version: int) -> bool:
        """Tell whether an operator has released a version that is newer than the one that all devices had."""
        if self.open is None or self._offers is None:
            return False
        newest = self.for_all()
        if newest is None or newest.version <= version:
            return False
        self.resume()
        return True

    @property
    def newest(self) -> int:
        """The version of the open rollout; 0 for none."""
        return self.open.version if self.open else 0

    def holds(self, now: float) -> bool:
        """Tell whether no newer version may be published yet: devices are still being watched, or asked for release."""
        if self.open is None:
            return False
        passed = not 0 <= now - self.open.began < self._config.wait
        return not (self.open.mode == "manual" and passed)

    def starts(self, update: PublishedUpdate, before: int, now: float) -> bool:
        """Let what was learned go out as configured; tell whether it is not for all devices from the start."""
        mode: Literal["immediate", "manual", "canary"] = self._config.mode
        if mode == "immediate" or self._offers is None:
            return False
        devices = canaries(self._cohort, self._heard_of(now), self._first()) if mode == "canary" else ()
        if mode == "canary" and not devices:
            return False  # nobody is there whom it could harm, or who could try it
        told = reports_of(self._store, devices)
        entropy = {
            device: found.report.serving.entropy
            for device, found in told.items()
            if found.report.serving.predicted - found.report.serving.guarded >= self._config.least
        }
        self._pending = Offer(
            audience=devices,
            rollout=Rollout(
                version=update.version,
                mode=mode,
                began=now,
                before=before,
                devices=devices,
                needed=len(devices),
                entropy=entropy,
            ),
        )
        return True

    def _first(self) -> float:
        """Return the share of the devices that try a version first: as an operator has said, or as configured."""
        said = self._store.control(self._cohort).first if isinstance(self._store, ControlStore) else None
        return self._config.first if said is None else said

    def measured(self, samples: Sequence[StoredSample], labels: Iterable[int]) -> None:
        """Take note of whether samples of canary devices agree with the foundation model, which gives the labels."""
        rollout = self.open
        if rollout is None or not rollout.devices:
            return
        found = dict(rollout.agreement)
        for sample, label in zip(samples, labels, strict=True):
            if sample.version == rollout.version and sample.device in rollout.devices:
                count, agreeing = found.get(sample.device, (0, 0))
                found[sample.device] = count + 1, agreeing + (sample.label == label)
        if found != rollout.agreement:
            self.open = msgspec.structs.replace(rollout, agreement=found)
            self._pending = Offer(rollout=self.open)

    def judged(self, now: float) -> Judgement | None:
        """Look at the canary devices, if it is time to."""
        rollout = self.open
        if rollout is None or rollout.mode != "canary" or 0 <= self._next_look - now <= LOOK_SECONDS:
            return None
        self._next_look = now + LOOK_SECONDS
        activity = activity_of(self._store)
        found = judge(
            rollout,
            self._config,
            reports=reports_of(self._store, rollout.devices),
            ran={name: activity[name].ran for name in rollout.devices if name in activity},
            before=self._agreement_before(rollout),
            now=now,
        )
        return None if found.decision == "wait" and not self._silent(rollout, found, now) else found

    def released(self, now: float) -> Offer:
        """Return what makes the version of the open rollout one for all."""
        assert self.open is not None  # noqa: S101 - it was judged
        ended = msgspec.structs.replace(self.open, state="released", ended=now)
        return Offer(release=ended.version, rollout=ended)

    def taken_back(self, found: Judgement, now: float) -> Offer:
        """Return what ends the open rollout: the content before goes out again."""
        assert self.open is not None  # noqa: S101 - it was judged
        return Offer(
            rollout=msgspec.structs.replace(self.open, state="taken_back", ended=now, reasons=found.reasons)
        )

    def extended(self, found: Judgement, now: float) -> Offer:
        """Return what lets other devices be canary devices beside those that are not heard of; it is waited anew."""
        assert self.open is not None  # noqa: S101 - it was judged
        others = [name for name in self._heard_of(now) if name not in self.open.devices]
        more = tuple(by_hash(self._cohort, others)[: self.open.needed - len(found.heard)])
        devices = (*self.open.devices, *more)
        return Offer(rollout=msgspec.structs.replace(self.open, devices=devices, began=now), also=more)

    def pin_due(self, now: float, half_life: float) -> tuple[str, bytes] | None:
        """Return a pinned device whose version is past half of its life, and its payload; once an hour at most."""
        if self._offers is None or 0 <= self._next_pins - now <= PINS_SECONDS:
            return None
        for each in self._offers.pinned(self._cohort):
            if each.created is not None and not 0 <= now - each.created < half_life:
                payload = self._store.artifact(self._cohort, each.digest)
                if payload is not None:
                    return each.device, payload
        self._next_pins = now + PINS_SECONDS
        return None

    def offer_of(self, update: PublishedUpdate | None) -> Offer | None:
        """Return what a step commits about offers, besides what was said to it."""
        offer = self._pending
        if update is not None and self.open is not None and not (offer and offer.audience is not None):
            # It is for all, and newer.
            return Offer(rollout=msgspec.structs.replace(self.open, state="superseded", ended=update.created))
        return offer

    def committed(self, offer: Offer | None, update: PublishedUpdate | None) -> None:
        """Take note of what is durable, and tell of it."""
        self._pending = None
        if offer is None or offer.rollout is None:
            return
        rollout = offer.rollout
        self.open = rollout if rollout.state == "open" else None
        about: dict[str, Any] = {"cohort": self._cohort, "version": rollout.version}
        if rollout.state == "open" and update is not None:
            devices = ", ".join(rollout.devices) or "none"
            report(log, events.ROLLOUT_BEGUN, **about, mode=rollout.mode, devices=devices)
        elif rollout.state == "released":
            report(log, events.ROLLOUT_RELEASED, **about)
        elif rollout.state == "taken_back":
            reasons = "; ".join(f"{device} {reason}" for device, reason in rollout.reasons.items())
            report(log, events.ROLLOUT_TAKEN_BACK, **about, reasons=reasons)
            if isinstance(self._store, AuditStore):
                detail = {"version": rollout.version, "before": rollout.before, "reasons": rollout.reasons}
                self._store.record_act(AuditedAct("cloud", "cohort.take_back", self._cohort, detail))

    def _silent(self, rollout: Rollout, found: Judgement, now: float) -> bool:
        """Tell whether too few are heard of, though there was time, and others could take their place."""
        passed = not 0 <= now - rollout.began < self._config.wait
        if not passed or 2 * len(found.heard) >= rollout.needed:
            return False
        return any(name not in rollout.devices for name in self._heard_of(now))

    def _agreement_before(self, rollout: Rollout) -> Proportion | None:
        keeps = agreements_of(self._store)
        known = keeps.agreement_by_version(self._cohort) if keeps else []
        return next((v.models.get("device") for v in known if v.version == rollout.before), None)

    def _heard_of(self, now: float) -> list[str]:
        """Return the cohort's devices that were heard of lately, and are neither pinned nor quarantined."""
        pinned = {each.device for each in self._offers.pinned(self._cohort)} if self._offers else set()
        activity = activity_of(self._store)
        found = []
        for device in self._store.devices([self._cohort]).list():
            seen = activity.get(device.name)
            mine = device.cohort == self._cohort and device.role == "device" and device.revoked_at is None
            apart = device.quarantined_at is not None or device.name in pinned
            if mine and not apart and seen is not None and now - seen.seen_at < HEARD_OF_SECONDS:
                found.append(device.name)
        return found
