"""The cloud remembers when a device asked for updates, and the version that it has."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cloud_client import auth
from cloud_support import StillEngine, serving, write_config

from cema.cloud.config import CloudConfig
from cema.cloud.http.polls import MOST_NOTES, Polls
from cema.cloud.store.activity import ActivityStore, Poll, activity_of
from cema.errors import StoreUnavailable


class Kept:
    """A store that keeps what it is given."""

    def __init__(self) -> None:
        self.polls: list[Poll] = []
        self.broken = False

    def note_polls(self, polls: list[Poll]) -> None:
        if self.broken:
            raise StoreUnavailable("locked")
        self.polls += polls

    def activity(self) -> dict[str, Any]:
        return {}


def test_the_last_poll_of_each_device_is_written_together() -> None:
    kept = Kept()
    assert isinstance(kept, ActivityStore)

    async def ask() -> None:
        polls = Polls(kept, delay=0.0)  # type: ignore[arg-type]
        polls.note("north", "cam", None)
        polls.note("north", "far", '"not one of ours"')
        polls.note("north", "cam", f'"{"0" * 64}-12"')
        assert polls._writer is not None
        await polls._writer
        polls.write()

    asyncio.run(ask())
    assert [(poll.device, poll.version) for poll in kept.polls] == [("cam", 12), ("far", None)]
    assert kept.polls[0].at == pytest.approx(time.time(), abs=60)


def test_what_cannot_be_written_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    kept.broken = True

    async def ask() -> None:
        polls = Polls(kept, delay=3600.0)  # type: ignore[arg-type]
        for number in range(MOST_NOTES + 5):
            polls.note("north", f"d{number}", None)
        assert len(polls._polls) == MOST_NOTES
        polls.write()
        assert len(polls._polls) == 0
        assert polls._writer is not None
        polls._writer.cancel()

    asyncio.run(ask())
    assert "could not be noted: locked" in caplog.text


def test_a_store_without_activity_gets_no_notes() -> None:
    polls = Polls(object())  # type: ignore[arg-type]
    polls.note("north", "cam", None)
    polls.write()
    assert (polls._polls, polls._writer) == ({}, None)


def test_devices_are_heard_of_when_they_ask_and_operators_are_not(tmp_path: Path) -> None:
    config = CloudConfig.load(write_config(tmp_path))
    engine = StillEngine(config)
    device = engine.devices.add("cam", cohort="north")
    operator = engine.devices.add("ops", cohort=None, role="operator")
    with serving(engine) as url:
        for token in (device, operator):
            headers = {**auth(token), "If-None-Match": f'"{"0" * 64}-3"'}
            answer = httpx2.get(f"{url}/v1/cohorts/north/updates/latest", headers=headers)
            assert answer.status_code == 204
    # What was noted is written when the service ends.
    with closing(config.open_store()) as store:
        found = activity_of(store)
    assert list(found) == ["cam"]
    assert (found["cam"].cohort, found["cam"].has) == ("north", 3)
    assert found["cam"].seen_at == pytest.approx(time.time(), abs=60)
