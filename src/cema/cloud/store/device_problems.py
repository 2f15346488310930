"""What is out of the ordinary with a device, in words: for the overview, the page, the API and the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from cema._util.names import on_one_line
from cema._util.units import human_seconds
from cema.cloud.store.devices import EXPIRES_SOON

__all__ = [
    "SILENT_SECONDS",
    "Level",
    "Problem",
    "device_level",
    "device_problems",
    "is_silent",
    "trouble_order",
    "worst_level",
]

Level: TypeAlias = Literal["ok", "warn", "bad"]
"""``bad``: the device does not do its work; ``warn``: somebody should look at it some day."""

SILENT_SECONDS = 600.0
"""A device asks for updates twice a minute unless it is configured otherwise, which the cloud does not know."""
# It may be switched off for a night.
LONG_SILENT_SECONDS = 86_400.0
CLOCK_SLACK = 60.0
# Images of a version below which the share that the source model predicted says nothing.
LEAST_IMAGES = 32
GUARDED_SHARE = 0.5
# Reports that were lost: some always are.
LEAST_LOST, LOST_SHARE = 5, 0.1
_WEIGHT: dict[Level, int] = {"ok": 0, "warn": 1, "bad": 2}


class Problem(NamedTuple):
    """One thing that is out of the ordinary with a device: how bad it is, which kind, and in words."""

    level: Level
    kind: str
    text: str


def device_problems(told: Mapping[str, Any], now: float) -> list[Problem]:
    """Return what is out of the ordinary with a device, the worst first.

    Parameters
    ----------
    told : mapping
        What `cema.cloud.store.devices_told.devices_told` returns of it. A member that is missing says nothing.
    now : float
        Unix seconds.

    Returns
    -------
    list of Problem
        Empty for one that is well, and for one that was revoked: it is meant to do nothing.

    Examples
    --------
    >>> cam = {"role": "device", "created_at": 0.0, "seen_at": 1000.0}
    >>> device_problems(cam, 1030.0)
    []
    >>> [problem.text for problem in device_problems(cam, 1000.0 + 3 * 3600)]
    ['silent for 3 h']
    >>> served = {"version": 6, "predicted": 200, "guarded": 150}
    >>> report = {"serving": served, "refused": {"version": 7, "reason": "golden_mismatch"}, "problem": None}
    >>> [problem.text for problem in device_problems(cam | {"clock_offset": 10_799.9}, 1030.0)]
    ['its clock is 3 h ahead']
    >>> for problem in device_problems(cam | {"clock_offset": -90.0, "report": report}, 1030.0):
    ...     print(problem.level, problem.text)
    bad refused version 7: golden_mismatch
    warn its clock is 90 s behind
    warn the source model predicted 75 % of 200 images in place of version 6
    """
    if told.get("revoked_at") is not None:
        return []
    found = list(_of_token(told, now))
    if told.get("role", "device") == "device":
        found += [*_of_silence(told, now), *_of_quarantine(told), *_of_report(told)]
    return sorted(found, key=lambda problem: -_WEIGHT[problem.level])


def device_level(problems: Sequence[Problem]) -> Level:
    """Return the level of the worst of some problems.

    Examples
    --------
    >>> device_level([]), device_level([Problem("warn", "silent", "silent for 20 min")])
    ('ok', 'warn')
    """
    return worst_level(problem.level for problem in problems)


def worst_level(levels: Iterable[Level]) -> Level:
    """Return the worst of some levels.

    Examples
    --------
    >>> worst_level([]), worst_level(["warn", "bad", "ok"])
    ('ok', 'bad')
    """
    return max(levels, key=_WEIGHT.__getitem__, default="ok")


def trouble_order(level: Level, problems: Sequence[object], name: str) -> tuple[int, int, str]:
    """Return the sort key of a device in a list that begins with those that need somebody most.

    Examples
    --------
    >>> trouble_order("warn", ["its clock is 90 s behind"], "b") < trouble_order("ok", [], "a")
    True
    """
    return -_WEIGHT[level], -len(problems), name


def is_silent(told: Mapping[str, Any], now: float) -> bool:
    """Tell whether a device that was heard of, and was not revoked, has not been for `SILENT_SECONDS`.

    Examples
    --------
    >>> is_silent({"seen_at": 0.0}, 700.0), is_silent({"seen_at": 0.0}, 60.0), is_silent({"seen_at": None}, 700.0)
    (True, False, False)
    """
    heard = _heard(told)
    return told.get("revoked_at") is None and heard is not None and now - heard > SILENT_SECONDS


def _heard(told: Mapping[str, Any]) -> float | None:
    """Return when a device was last heard of, in any way."""
    seen, reported, received = told.get("seen_at"), told.get("reported_at"), told.get("received_at")
    return max((moment for moment in (seen, reported, received) if moment is not None), default=None)


def _of_silence(told: Mapping[str, Any], now: float) -> Iterator[Problem]:
    heard = _heard(told)
    if heard is None:
        since = now - told.get("created_at", now)
        if since > SILENT_SECONDS:
            yield Problem("warn", "never", f"never heard of since it was added {human_seconds(since)} ago")
    elif now - heard > SILENT_SECONDS:
        level: Level = "bad" if now - heard > LONG_SILENT_SECONDS else "warn"
        yield Problem(level, "silent", f"silent for {human_seconds(now - heard)}")


def _of_token(told: Mapping[str, Any], now: float) -> Iterator[Problem]:
    expires = told.get("expires_at")
    if expires is None:
        return
    if expires <= now:
        yield Problem("bad", "token", f"its token expired {human_seconds(now - expires)} ago")
    elif expires - now < EXPIRES_SOON:
        yield Problem("warn", "token", f"its token expires in {human_seconds(expires - now)}")


def _of_quarantine(told: Mapping[str, Any]) -> Iterator[Problem]:
    if told.get("quarantined_at") is not None:
        by = told.get("quarantined_by") or "an operator"
        yield Problem("warn", "quarantined", f"quarantined by {by}")
    if told.get("quarantined_by_worker"):
        yield Problem("warn", "quarantined", "quarantined by the worker: unlike all others")


def _of_report(told: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _of_clock(told)
    report = told.get("report")
    if report is None:
        return
    serving, refused = report["serving"], report.get("refused")
    # One that a newer version has followed is past.
    if refused is not None and not 0 < refused["version"] < serving["version"]:
        which = f"version {refused['version']}" if refused["version"] else "an update"
        yield Problem("bad", "refused", f"refused {which}: {refused['reason']}")
    if report.get("problem"):
        yield Problem("warn", "own", on_one_line(str(report["problem"])))
    predicted, guarded = serving.get("predicted", 0), serving.get("guarded", 0)
    if predicted >= LEAST_IMAGES and guarded > GUARDED_SHARE * predicted:
        share = f"{100 * guarded / predicted:.0f} % of {predicted} images"
        yield Problem(
            "warn", "guarded", f"the source model predicted {share} in place of version {serving['version']}"
        )
    reports = told.get("reports") or {"received": 0, "lost": 0}
    sent = reports["received"] + reports["lost"]
    if reports["lost"] >= LEAST_LOST and reports["lost"] > LOST_SHARE * sent:
        yield Problem("warn", "lost", f"{reports['lost']} of {sent} reports were lost")


def _of_clock(told: Mapping[str, Any]) -> Iterator[Problem]:
    offset = told.get("clock_offset")
    if offset is None:
        # A sample may be old, but none is captured after it came.
        offset = max(0.0, (told.get("captured_at") or 0.0) - (told.get("received_at") or 0.0))
    if abs(offset) > CLOCK_SLACK:
        side = "ahead" if offset > 0 else "behind"
        yield Problem("warn", "clock", f"its clock is {human_seconds(round(abs(offset)))} {side}")
