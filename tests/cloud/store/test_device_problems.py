"""What is out of the ordinary with a device."""

from __future__ import annotations

from typing import Any

import pytest

from cema.cloud.store.device_problems import (
    Problem,
    device_level,
    device_problems,
    is_silent,
    trouble_order,
)

DAY = 86_400.0
NOW = 100 * DAY


def told(**more: Any) -> dict[str, Any]:
    """Return a device that is well, changed as said."""
    well: dict[str, Any] = {
        "name": "cam",
        "role": "device",
        "cohort": "north",
        "created_at": 0.0,
        "revoked_at": None,
        "expires_at": None,
        "quarantined_at": None,
        "quarantined_by": None,
        "quarantined_by_worker": False,
        "seen_at": NOW - 30,
        "captured_at": NOW - 100,
        "received_at": NOW - 60,
        "reported_at": NOW - 90,
        "clock_offset": -0.4,
        "reports": {"received": 100, "lost": 4},
        "report": {
            "serving": {"version": 6, "predicted": 400, "guarded": 10},
            "refused": {"version": 5, "reason": "expired"},
            "problem": None,
        },
    }
    return well | more


def report(**more: Any) -> dict[str, Any]:
    return {"report": told()["report"] | more}


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"seen_at": NOW - 700, "reported_at": NOW - 3 * DAY}, "ok", ""),  # a sample came a minute ago
    ({"seen_at": NOW - 700, "received_at": None, "reported_at": None}, "warn", "silent for 11 min"),
    ({"seen_at": NOW - 3 * DAY, "received_at": None, "reported_at": None}, "bad", "silent for 3 days"),
    (
        {"seen_at": None, "received_at": None, "reported_at": None, "created_at": NOW - 7200},
        "warn",
        "never heard of since it was added 2 h ago",
    ),
    ({"seen_at": None, "received_at": None, "reported_at": None, "created_at": NOW - 60}, "ok", ""),
    ({"expires_at": NOW - 3600}, "bad", "its token expired 60 min ago"),
    ({"expires_at": NOW + 3 * DAY}, "warn", "its token expires in 3 days"),
    ({"expires_at": NOW + 30 * DAY}, "ok", ""),
    ({"quarantined_at": 5.0, "quarantined_by": "token:ann"}, "warn", "quarantined by token:ann"),
    ({"quarantined_by_worker": True}, "warn", "quarantined by the worker: unlike all others"),
    (
        report(refused={"version": 7, "reason": "golden_mismatch"}),
        "bad",
        "refused version 7: golden_mismatch",
    ),
    (report(refused={"version": 0, "reason": "malformed"}), "bad", "refused an update: malformed"),
    (report(problem="spool: the disk is full"), "warn", "spool: the disk is full"),
    (
        report(serving={"version": 6, "predicted": 400, "guarded": 201}),
        "warn",
        "the source model predicted 50 % of 400 images in place of version 6",
    ),
    (report(serving={"version": 6, "predicted": 20, "guarded": 20}), "ok", ""),
    ({"clock_offset": 61.0}, "warn", "its clock is 61 s ahead"),
    ({"clock_offset": -200.0}, "warn", "its clock is 3 min behind"),
    ({"clock_offset": None, "captured_at": NOW}, "ok", ""),
    ({"clock_offset": None, "captured_at": NOW + 60}, "warn", "its clock is 2 min ahead"),
    ({"reports": {"received": 10, "lost": 5}}, "warn", "5 of 15 reports were lost"),
    ({"report": None, "reports": None, "reported_at": None}, "ok", ""),
]


@pytest.mark.parametrize(("more", "level", "text"), CASES)
def test_each_problem_has_its_level_and_words(more: dict[str, Any], level: str, text: str) -> None:
    found = device_problems(told(**more), NOW)
    assert [problem.text for problem in found] == ([text] if text else [])
    assert device_level(found) == level
    assert device_problems(told(**more, revoked_at=NOW), NOW) == [], "it is meant to do nothing"


def test_the_worst_comes_first_and_orders_a_list() -> None:
    both = device_problems(
        told(clock_offset=61.0, **report(refused={"version": 7, "reason": "expired"})), NOW
    )
    assert [problem.level for problem in both] == ["bad", "warn"]
    one, well = both[1:], list[Problem]()
    order = sorted(
        [("a", well), ("c", one), ("b", one), ("d", both)],
        key=lambda x: trouble_order(device_level(x[1]), x[1], x[0]),
    )
    assert [name for name, _ in order] == ["d", "b", "c", "a"]


def test_only_devices_are_expected_to_speak() -> None:
    operator = told(role="operator", seen_at=None, reported_at=None, received_at=None, report=None)
    assert device_problems(operator, NOW) == []
    assert device_level(device_problems(operator | {"expires_at": NOW - 1}, NOW)) == "bad"


def test_silence() -> None:
    assert not is_silent(told(), NOW)
    assert is_silent(told(), NOW + 600)
    assert not is_silent(told(revoked_at=5.0), NOW + 600)
