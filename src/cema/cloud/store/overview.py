"""The state of every cohort in a sentence and a few numbers: what the page, its events and `cema top` show first."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from cema._util.proportion import proportion
from cema._util.units import ago
from cema.cloud.store.activity import activity_of
from cema.cloud.store.agreements import RECENT
from cema.cloud.store.base import Store
from cema.cloud.store.device_problems import SILENT_SECONDS, Level, is_silent, worst_level
from cema.cloud.store.devices import Device
from cema.cloud.store.history import BIN_SECONDS, LABELLED, HistoryBin, added, history_of
from cema.cloud.store.told import more_status
from cema.errors import StoreError

__all__ = ["Overview", "told_agreement"]

# What is read of devices is of all cohorts, and changes slowly.
DEVICES_SECONDS = 5.0
# What a day has cost is a sum of many rows: it is read for so small a share of the time, and at least so often.
DAY_SHARE = 1000.0
DAY_SECONDS = 60.0
GB = 1e9
# Fewer samples than these say nothing of a share.
LEAST_SAMPLES = 32
# An act of an operator is done within the worker's step.
WAITING_SECONDS = 120.0
DAY = 86_400.0
# So large a share of silent devices is more than some that are switched off.
MANY_SILENT = 0.05


class _Problem(NamedTuple):
    level: Level
    text: str


class Overview:
    """Reads where cohorts stand.

    Parameters
    ----------
    store : Store
    price : float
        Of a GB (10^9 bytes) that is sent or received; 0 where that is not known.
    currency : str
        Its name.
    clock : callable
        Unix seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        price: float = 0.0,
        currency: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._price, self._currency, self._clock = store, price, currency, clock
        self._devices: dict[str, dict[str, int]] = {}
        self._devices_until = float("-inf")
        self._days: dict[str, tuple[float, dict[str, Any]]] = {}

    def read(
        self, cohorts: Collection[str], wrong: Mapping[str, str] | None = None
    ) -> tuple[float, list[dict[str, Any]]]:
        """Return the moment of reading, unix seconds, and each cohort, JSON-able; docs/protocol.md names the members.

        Parameters
        ----------
        cohorts
            Their names.
        wrong
            What is wrong by name of the cohort, or under ``""`` with all, where whoever asks knows more than the store.
        """
        now = self._clock()
        return now, [self._one(cohort, now, wrong or {}) for cohort in cohorts]

    def _one(self, cohort: str, now: float, wrong: Mapping[str, str]) -> dict[str, Any]:
        try:
            status = self._store.status(cohort) | more_status(self._store, cohort)
        except StoreError as error:  # no cloud was ever started with it
            return _never_started(cohort, str(error))
        devices = self._counted(now).get(cohort, _NO_DEVICES)
        worker = status["worker"] or {}
        told: dict[str, Any] = {
            "cohort": cohort,
            **{name: status[name] for name in ("agreement", "random_agreement", "version")},
            "version_at": (status["update"] or {}).get("created"),
            **{name: status.get(name) for name in ("publishing", "act", "rollout")},
            "ready": bool(worker.get("ready")),
            "backlog": status["backlog"],
            "samples": status["samples"],
            "last_step_at": status["committed_at"],
            "devices": devices | {"quarantined": devices["quarantined"] + len(worker.get("quarantined", ()))},
            **self._measured(cohort, now),
        }
        problems = _problems(told, worker, now)
        problems += [_Problem("bad", wrong[name]) for name in ("", cohort) if name in wrong]
        told["level"] = worst_level(each.level for each in problems)
        told["problems"] = [each.text for each in problems]
        told["changed"] = _digest(told, now)
        return told | {"sentence": _sentence(told, now)}

    def _measured(self, cohort: str, now: float) -> dict[str, Any]:
        """Return what a day has cost and what labels have said, read every few seconds, or once a minute."""
        until, found = self._days.get(cohort, (float("-inf"), {}))
        if not until - DAY_SECONDS <= now < until:
            began = time.perf_counter()
            found = self._day(cohort, now)
            pause = min(DAY_SECONDS, DEVICES_SECONDS + DAY_SHARE * (time.perf_counter() - began))
            self._days[cohort] = now + pause, found
        return found

    def _day(self, cohort: str, now: float) -> dict[str, Any]:
        history = history_of(self._store)
        bins = [] if history is None else history.history(cohort, now - DAY, now + BIN_SECONDS, BIN_SECONDS)
        day = added({}, *(each.measures for each in bins))
        up, down = (day.get(f"bytes.{way}", (0, 0.0))[1] for way in ("up", "down"))
        cost = (up + down) / GB * self._price if self._price else None
        return {
            "day": {
                "samples": int(day.get("samples", (0, 0.0))[0]),
                "bytes_up": int(up),
                "bytes_down": int(down),
                "cost": cost,
                "currency": self._currency if self._price else None,
            },
            "labelled": _labelled(bins),
        }

    def _counted(self, now: float) -> Mapping[str, dict[str, int]]:
        """Return how many devices each cohort has, read every few seconds."""
        if not self._devices_until - DEVICES_SECONDS <= now < self._devices_until:
            self._devices = _count(self._store, now)
            self._devices_until = now + DEVICES_SECONDS
        return self._devices


def _labelled(bins: Sequence[HistoryBin]) -> dict[str, Any]:
    """Return the accuracy on the newest samples whose classes somebody knew, by the name of the model."""
    sums: dict[str, tuple[float, float]] = {}
    for each in reversed(bins):
        for name, (count, total) in each.measures.items():
            known = sums.get(name, (0.0, 0.0))
            if name.startswith(LABELLED) and known[0] < RECENT:
                sums[name] = known[0] + count, known[1] + total
    shares = {
        name.removeprefix(LABELLED): proportion(int(count), int(total))
        for name, (count, total) in sums.items()
    }
    return {name: msgspec.to_builtins(shares[name]) for name in sorted(shares)}


_NO_DEVICES = {"registered": 0, "seen": 0, "silent": 0, "quarantined": 0, "revoked": 0}


def _never_started(cohort: str, why: str) -> dict[str, Any]:
    return {
        "cohort": cohort,
        "level": "bad",
        "sentence": f"The cloud was never started with this cohort: {why}",
        "problems": [why],
        "agreement": {},
        "random_agreement": {},
        "version": 0,
        "version_at": None,
        "publishing": None,
        "act": None,
        "rollout": None,
        "ready": False,
        "backlog": 0,
        "samples": 0,
        "last_step_at": None,
        "devices": _NO_DEVICES,
        "day": {"samples": 0, "bytes_up": 0, "bytes_down": 0, "cost": None, "currency": None},
        "labelled": {},
        "changed": "",
    }


def _count(store: Store, now: float) -> dict[str, dict[str, int]]:
    activity = activity_of(store)
    found: dict[str, dict[str, int]] = {}
    for device in store.devices(()).list():
        if device.role == "device" and device.cohort is not None:
            counts = found.setdefault(device.cohort, dict(_NO_DEVICES))
            known = activity.get(device.name)
            for name in _kinds(device, None if known is None else known.seen_at, now):
                counts[name] += 1
    return found


def _kinds(device: Device, seen_at: float | None, now: float) -> list[str]:
    """Return the counts that a device is in."""
    if device.revoked_at is not None:
        return ["revoked"]
    kinds = ["registered"]
    if seen_at is not None:
        kinds.append("silent" if is_silent({"seen_at": seen_at}, now) else "seen")
    if device.quarantined_at is not None:
        kinds.append("quarantined")
    return kinds


def _problems(told: Mapping[str, Any], worker: Mapping[str, Any], now: float) -> list[_Problem]:
    found = []
    if not told["ready"]:
        why = worker.get("error") or "it has not said so since the cloud was started"
        found.append(_Problem("bad", f"The worker is not ready: {why}."))
    running, source = (told["agreement"].get(model) for model in ("running", "source"))
    if running and source and running["high"] < source["low"]:
        found.append(
            _Problem(
                "bad",
                f"The newest version agrees less than the source model, {_percent(running)} against "
                f"{_percent(source)}: roll back, or stop publishing.",
            )
        )
    if told["publishing"] in _NOT_PUBLISHING:
        found.append(_Problem("warn", _NOT_PUBLISHING[told["publishing"]]))
    act, rollout, devices = told["act"], told["rollout"], told["devices"]
    if act and now - act["at"] > WAITING_SECONDS:
        found.append(
            _Problem("warn", f"An act waits for the worker: {act['act']['type']}, {ago(now - act['at'])}.")
        )
    if rollout and rollout["state"] == "taken_back" and now - (rollout["ended"] or 0) < DAY:
        why = "; ".join(f"{name} {reason}" for name, reason in rollout["reasons"].items())
        found.append(_Problem("warn", f"Version {rollout['version']} was taken back: {why}."))
    if rollout and rollout["state"] == "open" and rollout["mode"] == "manual":
        found.append(_Problem("warn", f"Version {rollout['version']} waits for its release."))
    if devices["silent"] > MANY_SILENT * devices["registered"]:
        found.append(
            _Problem(
                "warn", f"{devices['silent']} devices were not heard of for {SILENT_SECONDS / 60:g} minutes."
            )
        )
    if devices["quarantined"]:
        found.append(_Problem("warn", f"{devices['quarantined']} devices are quarantined."))
    return found


_NOT_PUBLISHING = {
    "paused": "Publishing is paused: devices keep the version that they have.",
    "pinned": "Publishing is pinned: devices have one version until somebody resumes it.",
    "stopped": "Publishing is stopped: devices have the source model.",
}


def _sentence(told: Mapping[str, Any], now: float) -> str:
    """Say in words where a cohort stands."""
    devices = told["devices"]
    if not devices["registered"]:
        return "No device belongs to this cohort yet. Add one: cema device add NAME."
    parts = [_agreement_told(told)]
    if told["version"]:
        parts.append(f"Version {told['version']} came {ago(now - told['version_at'])}.")
    else:
        parts.append("No version was published yet.")
    never = devices["registered"] - devices["seen"] - devices["silent"]
    silent = f"{devices['silent']} of {devices['registered']} devices silent"
    parts.append(f"{silent}, {never} never heard of." if never else f"{silent}.")
    return " ".join(parts)


def told_agreement(
    told: Mapping[str, Any],
) -> tuple[str, Mapping[str, Any], Mapping[str, Any] | None] | None:
    """Return the agreement that tells most of a cohort, or None where too few samples were learned from.

    What was drawn at random comes first, since it is of all that devices see; and what devices predicted comes before
    what the newest version would have.

    Returns
    -------
    tuple or None
        On which samples it is, the agreement now, and that of the source model where it is known.
    """
    for kind, what in (("random_agreement", "all that devices see"), ("agreement", "new samples")):
        now = told[kind].get("device") or told[kind].get("running")
        if now and now["samples"] >= LEAST_SAMPLES:
            return what, now, told[kind].get("source")
    return None


def _agreement_told(told: Mapping[str, Any]) -> str:
    """Say the agreement in words, or why there is none."""
    found = told_agreement(told)
    if found is not None:
        what, now, source = found
        margin = 50 * (now["high"] - now["low"])
        unadapted = f", unadapted {_percent(source)}" if source else ""
        return f"Agrees with the foundation model on {_percent(now)} ± {margin:.0f} of {what}{unadapted}."
    if not told["samples"]:
        return "No device has sent a sample yet."
    return "Too few samples were learned from to tell the agreement."


def _percent(share: Mapping[str, Any]) -> str:
    return f"{100 * share['share']:.0f} %"


def _digest(told: Mapping[str, Any], now: float) -> str:
    """Return what differs when anything does, and once a minute: the sentence tells how long ago things were."""
    content = msgspec.json.encode([told, now // 60])
    return hashlib.blake2b(content, digest_size=8).hexdigest()
