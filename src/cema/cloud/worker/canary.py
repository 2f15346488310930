"""Canary devices: which ones they are, and what their reports say of a version."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from cema._util.proportion import Proportion, proportion
from cema.cloud.rollout_config import RolloutConfig, StopConfig
from cema.cloud.store.offers import Rollout
from cema.cloud.store.reports import DeviceReports
from cema.formats.report import Served

__all__ = ["Judgement", "by_hash", "canaries", "judge"]

# Samples of a device below which its agreement says nothing.
LEAST_SAMPLES = 16
# Nats by which a mean entropy must be higher: a model that is nearly always sure has a low one, and ratios mean little.
LEAST_RISE = 0.05

Decision: TypeAlias = Literal["wait", "release", "take_back"]


class Judgement(NamedTuple):
    """What is to become of a version.

    Attributes
    ----------
    decision : {"wait", "release", "take_back"}
    heard : tuple of str
        The canary devices that count.
    reasons : dict of str to str
        Those that have spoiled it, and how.
    """

    decision: Decision
    heard: tuple[str, ...]
    reasons: dict[str, str]


def by_hash(cohort: str, devices: Iterable[str]) -> list[str]:
    """Return devices in an order that depends on nothing but their names and the cohort's.

    Examples
    --------
    >>> by_hash("north", ["cam-1", "cam-2", "cam-3"]) == by_hash("north", ["cam-3", "cam-1", "cam-2"])
    True
    """
    return sorted(devices, key=lambda name: hashlib.sha256(f"{cohort}/{name}".encode()).digest())


def canaries(cohort: str, devices: Collection[str], share: float) -> tuple[str, ...]:
    """Return the canary devices of a cohort: a share of its devices, one at least if there is any."""
    return tuple(by_hash(cohort, devices)[: math.ceil(share * len(devices))])


def judge(
    rollout: Rollout,
    config: RolloutConfig,
    *,
    reports: Mapping[str, DeviceReports],
    ran: Mapping[str, int | None],
    before: Proportion | None,
    now: float,
) -> Judgement:
    """Decide about a version that canary devices have.

    Parameters
    ----------
    rollout : Rollout
        The open one.
    config : RolloutConfig
    reports : mapping of str to DeviceReports
        What the canary devices have reported.
    ran : mapping of str to int or None
        The version that predicted the last sample of each; for devices that report nothing.
    before : Proportion or None
        On what share the samples that devices predicted with the version before agree with the foundation model.
    now : float
        Unix seconds.
    """
    heard: list[str] = []
    reasons: dict[str, str] = {}
    for device in rollout.devices:
        told = reports.get(device)
        served = told.report.serving if told and told.report.serving.version == rollout.version else None
        samples, agreeing = rollout.agreement.get(device, (0, 0))
        reason = _refused(rollout.version, told, config.stop_if)
        if served is not None and served.predicted >= config.least:
            reason = reason or _served(served, rollout.entropy.get(device), config)
            heard.append(device)
        elif told is None and ran.get(device) == rollout.version and samples:
            heard.append(device)  # one that reports nothing, and sends samples
        reason = reason or _agreement(samples, agreeing, before, config.stop_if)
        if reason:
            reasons[device] = reason
    if reasons and len(reasons) >= config.stop_if.devices * len(rollout.devices):
        return Judgement("take_back", tuple(heard), reasons)
    enough = 2 * len(heard) >= rollout.needed and bool(heard)
    waited = not 0 <= now - rollout.began < config.wait
    return Judgement("release" if enough and waited else "wait", tuple(heard), reasons)


def _refused(version: int, told: DeviceReports | None, stop: StopConfig) -> str | None:
    refused = told.report.refused if told else None
    if refused is None or refused.version != version or not stop.refused:
        return None
    return f"refused it: {refused.reason}"


def _served(served: Served, before: float | None, config: RolloutConfig) -> str | None:
    stop = config.stop_if
    share = served.guarded / served.predicted
    if share > stop.guarded:
        return f"guarded {share:.0%} of {served.predicted} images"
    own = served.predicted - served.guarded
    risen = before is not None and served.entropy > max(stop.entropy * before, before + LEAST_RISE)
    if stop.entropy and own >= config.least and risen:
        return f"mean entropy {served.entropy:.2f} nats, {before:.2f} before"
    return None


def _agreement(samples: int, agreeing: int, before: Proportion | None, stop: StopConfig) -> str | None:
    if before is None or min(samples, before.samples) < LEAST_SAMPLES or stop.agreement >= 1:
        return None
    found = proportion(samples, agreeing)
    if found.share >= before.share - stop.agreement or found.high >= before.low:
        return None
    return f"agreement {found.share:.0%} of {samples} samples, {before.share:.0%} before"
