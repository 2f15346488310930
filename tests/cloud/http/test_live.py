"""The overview, and what the page is told as it happens."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from cloud_client import Cloud, auth
from cloud_support import make_samples

from cema.cloud.http import overview
from cema.cloud.http.live import MOST_OF_ONE
from cema.cloud.store.activity import Poll
from cema.cloud.store.control import Pause, Resume
from cema.cloud.store.fleet import Move, fleet_of
from cema.cloud.store.history import HistoryNote
from cema.cloud.store.overview import Overview

LONGEST = 20.0


class Events:
    """Reads server-sent events off a response."""

    def __init__(self, response: httpx2.Response) -> None:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        self._lines = response.iter_lines()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        name = ""
        for line in self._lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))

    def until(self, wanted: str, cohort: str = "north", **members: Any) -> dict[str, Any]:
        """Return the first event of a name, and of its cohorts the one with these members."""
        for name, data in self:
            if name == wanted == "end":
                return dict(data)
            for one in data.get("cohorts", ()):
                if one["cohort"] == cohort and all(one[key] == value for key, value in members.items()):
                    return dict(one)
        raise AssertionError(f"the events ended without {wanted} {members}")

    def end(self) -> dict[str, Any]:
        """Return the event that says why no more come; those that say that nothing happens do not count."""
        deadline, name = time.monotonic() + LONGEST, ""
        for line in self._lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == "end":
                return dict(json.loads(line.removeprefix("data: ")))
            assert time.monotonic() < deadline, "the events went on"
        raise AssertionError("the events ended without saying so")


@contextmanager
def listening(cloud: Cloud, token: str) -> Iterator[Events]:
    timeout = httpx2.Timeout(LONGEST)
    with httpx2.stream("GET", f"{cloud.url}/v1/events", headers=auth(token), timeout=timeout) as response:
        yield Events(response)


def north(cloud: Cloud) -> dict[str, Any]:
    found = cloud.get("/v1/overview", token=cloud.operator).json()
    return dict(next(one for one in found["cohorts"] if one["cohort"] == "north"))


def test_the_overview_says_in_words_where_a_cohort_stands(cloud: Cloud) -> None:
    assert north(cloud)["level"] == "bad"
    cloud.ready()
    assert (north(cloud)["level"], north(cloud)["problems"]) == ("ok", [])
    assert north(cloud)["sentence"] == (
        "No device has sent a sample yet. No version was published yet. 0 of 1 devices silent, 1 never heard of."
    )
    cloud.send(make_samples(2))
    told = north(cloud)
    assert (told["samples"], told["backlog"]) == (2, 2)
    cloud.store.act("north", Pause(), actor="os:ann", now=time.time())
    told = north(cloud)
    assert (told["level"], told["publishing"]) == ("warn", "paused")
    assert told["problems"] == ["Publishing is paused: devices keep the version that they have."]


def test_the_overview_tells_what_a_day_costs_and_what_labels_say(cloud: Cloud) -> None:
    assert north(cloud)["labelled"] == {}
    now = time.time()
    old = HistoryNote("north", now - 90_000.0, {"bytes.up": (1, 1e9)})
    day = HistoryNote(
        "north", now - 3000.0, {"bytes.up": (2, 3e6), "bytes.down": (1, 1e6), "samples": (5, 5)}
    )
    labels = HistoryNote("north", now, {"labelled.adapted": (80, 60), "labelled.frozen": (80, 20)})
    cloud.store.note_history([old, day, labels])
    overview = Overview(cloud.store, price=2.5, currency="EUR", clock=lambda: now)
    (told,) = overview.read(["north"])[1]
    assert told["day"] == {
        "samples": 5, "bytes_up": 3_000_000, "bytes_down": 1_000_000, "cost": 0.01, "currency": "EUR"
    }  # fmt: skip
    assert {name: share["share"] for name, share in told["labelled"].items()} == {
        "adapted": 0.75,
        "frozen": 0.25,
    }


def test_silent_devices_are_counted(cloud: Cloud) -> None:
    cloud.ready()
    for name in ("old", "gone"):
        cloud.engine.devices.add(name, cohort="north")
    now = time.time()
    cloud.store.note_polls([Poll("north", "cam", now, None), Poll("north", "old", now - 1000.0, 3)])
    cloud.engine.devices.revoke("gone")
    told = north(cloud)
    assert told["devices"] == {"registered": 2, "seen": 1, "silent": 1, "quarantined": 0, "revoked": 1}
    assert told["level"] == "warn"
    assert "1 of 2 devices silent." in told["sentence"]


def test_a_page_is_told_of_its_cohorts_what_changes(cloud: Cloud) -> None:
    cloud.ready()
    with listening(cloud, cloud.northern_operator) as events:
        first = next(iter(events))
        assert first[0] == "overview"
        assert [one["cohort"] for one in first[1]["cohorts"]] == ["north"]
        cloud.store.act("south", Pause(), actor="os:ann", now=time.time())
        cloud.store.act("north", Pause(), actor="os:ann", now=time.time())
        _name, told = next(iter(events))
        assert [(one["cohort"], one["publishing"]) for one in told["cohorts"]] == [("north", "paused")]
        cloud.store.act("north", Resume(), actor="os:ann", now=time.time())
        assert events.until("overview", publishing="on")


def test_a_page_is_told_of_a_session_that_has_ended(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "QUIET_SECONDS", 0.2)
    with listening(cloud, cloud.operator) as events:
        assert next(iter(events))[0] == "overview"
        cloud.engine.devices.revoke("ops")
        assert events.until("end") == {"reason": "session"}
    assert code_of(cloud) == "revoked"


def test_a_page_is_told_no_more_of_a_cohort_that_its_holder_has_left(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "QUIET_SECONDS", 0.2)
    with listening(cloud, cloud.northern_operator) as events:
        assert next(iter(events))[0] == "overview"
        fleet_of(cloud.engine.devices).act("ops-north", Move(to="south"))
        assert events.end() == {"reason": "session"}


@pytest.mark.parametrize(
    ("sums", "status"), [([0.5, 0.25], 204), ([2.0**53, 2.0**53], 204), ([1e308, 1e308], 400)]
)
def test_strange_measures_from_outside_do_not_end_the_overview(
    cloud: Cloud, sums: list[float], status: int
) -> None:
    for _ in range(3):
        body = {"measures": {"labelled.adapted": sums}}
        answer = cloud.http.post("/v1/cohorts/north/measures", json=body, headers=auth(cloud.admin))
        assert answer.status_code == status
    answer = cloud.get("/v1/overview", token=cloud.operator)
    assert answer.status_code == 200
    assert all(0 <= each["share"] <= 1 for each in answer.json()["cohorts"][0]["labelled"].values())


def code_of(cloud: Cloud) -> str:
    return str(cloud.get("/v1/overview", token=cloud.operator).json()["error"]["code"])


def test_only_so_many_of_one_token_listen(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cema.cloud.http.live.MOST_OF_ONE", 1)
    with listening(cloud, cloud.operator) as events:
        next(iter(events))
        full = cloud.get("/v1/events", token=cloud.operator)
        assert (full.status_code, full.json()["error"]["code"]) == (503, "busy")
        assert "Retry-After" in full.headers
        with listening(cloud, cloud.admin) as others:
            next(iter(others))


def test_of_many_at_one_moment_only_so_many_listen(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cema.cloud.http.live.MOST_OF_ONE", 2)
    together, statuses = threading.Barrier(16), list[int]()
    done = threading.Event()

    def listen() -> None:
        with httpx2.Client(base_url=cloud.url, headers=auth(cloud.operator), timeout=LONGEST) as client:
            client.get("/livez")  # connected already
            together.wait(LONGEST)
            with client.stream("GET", "/v1/events") as response:
                statuses.append(response.status_code)
                done.wait(LONGEST)

    threads = [threading.Thread(target=listen) for _ in range(16)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LONGEST
    while len(statuses) < 16 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 2 + [503] * 14


def test_those_who_have_gone_leave_their_places(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "QUIET_SECONDS", 0.1)
    for _ in range(2 * MOST_OF_ONE + 1):  # the last ones find no place where the others' are still taken
        with listening(cloud, cloud.operator) as events:
            next(iter(events))
