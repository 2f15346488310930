"""Requests that wait for a new version."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cloud_client import SOUTH, Cloud, auth, refused
from cloud_support import StillEngine, serving, write_config

from cema.cloud.config import CloudConfig
from cema.cloud.http.waiting import MOST_OF_ONE, Announcements
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.offers import Offers
from cema.cloud.store.traces import traces_of
from cema.errors import StoreUnavailable

LATEST = "/v1/cohorts/north/updates/latest"
COHORTS = frozenset({"north", "south"})


def version(number: int) -> PublishedUpdate:
    return PublishedUpdate(number, hashlib.sha256(b"x").hexdigest(), b"{}", b"x", 1.0, 2.0)


class Looked:
    """A store of which only the looks at versions are asked; they are counted."""

    def __init__(self) -> None:
        self.updates: dict[str, PublishedUpdate] = {}
        self.looks = self.reads = 0
        self.error: Exception | None = None
        self.looked = threading.Event()

    def newest_versions(self, cohorts: Any) -> dict[str, int]:
        self.looks += 1
        self.looked.set()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return {name: self.updates[name].version if name in self.updates else 0 for name in cohorts}

    def latest_update(self, cohort: str) -> PublishedUpdate | None:
        self.reads += 1
        return self.updates.get(cohort)

    def note_fetches(self, fetches: Any) -> None: ...

    def traced(self, cohort: str) -> list[int]:
        return []

    def trace(self, cohort: str, version: int) -> None: ...


async def looked(store: Looked, times: int = 1) -> None:
    """Wait until the store was looked at once more, so many times."""
    for _ in range(times):
        store.looked.clear()
        await asyncio.to_thread(store.looked.wait, 10)


def test_one_look_a_tick_whatever_the_number_of_those_who_wait() -> None:
    async def run() -> None:
        store = Looked()
        here = Announcements(store, COHORTS, tick=0.01)  # type: ignore[arg-type]
        waiting = [asyncio.create_task(here.newer("north", 0, 20, who=f"d{i}")) for i in range(200)]
        others = [asyncio.create_task(here.newer("south", 0, 20, who=f"s{i}")) for i in range(50)]
        await looked(store, 3)
        assert len(here) == 250
        assert store.reads == 0
        before = store.looks
        store.updates["north"] = version(1)
        got = await asyncio.gather(*waiting)
        assert {update.version for update in got if update} == {1}
        assert None not in got
        assert store.reads == 1
        assert store.looks - before <= 2
        assert len(here) == 50
        here.end()
        assert await asyncio.gather(*others) == [None] * 50

    asyncio.run(run())


def test_nobody_waits_and_nothing_is_looked_at() -> None:
    async def run() -> None:
        store = Looked()
        here = Announcements(store, COHORTS, tick=0.005)  # type: ignore[arg-type]
        assert await here.newer("north", 0, 0.02, who="d") is None
        while here._watch is not None:
            await asyncio.sleep(0.005)
        looks = store.looks
        await asyncio.sleep(0.05)
        assert store.looks == looks
        store.updates["north"] = version(3)
        update = await here.newer("north", 2, 20, who="d")
        assert update is not None
        assert update.version == 3

    asyncio.run(run())


def test_the_number_of_those_who_wait_is_bounded() -> None:
    async def run() -> None:
        here = Announcements(Looked(), COHORTS, tick=0.01)  # type: ignore[arg-type]
        here.most = MOST_OF_ONE + 1
        waiting = [asyncio.create_task(here.newer("north", 0, 20, who="one")) for _ in range(MOST_OF_ONE + 3)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert len(here) == MOST_OF_ONE
        other = asyncio.create_task(here.newer("north", 0, 20, who="other"))
        await asyncio.sleep(0)
        assert len(here) == here.most
        assert await here.newer("north", 0, 20, who="a third") is None
        here.end()
        assert await asyncio.gather(*waiting, other) == [None] * (MOST_OF_ONE + 4)
        assert await here.newer("north", 0, 20, who="late") is None

    asyncio.run(run())


def test_a_store_that_fails_for_a_moment_is_looked_at_again() -> None:
    async def run() -> None:
        store = Looked()
        here = Announcements(store, COHORTS, tick=0.005)  # type: ignore[arg-type]
        store.error = StoreUnavailable("locked")
        waiting = asyncio.create_task(here.newer("north", 0, 20, who="d"))
        await looked(store, 2)
        store.updates["north"] = version(1)
        assert await waiting == version(1)

    asyncio.run(run())


def test_an_answer_is_kept_back_until_a_version_is_published(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()
    look = cloud.store.offers

    def offers(cohorts: Any) -> dict[str, Offers]:
        looked.set()  # somebody waits
        return look(cohorts)

    monkeypatch.setattr(cloud.store, "offers", offers)

    def ask(**headers: str) -> httpx2.Response:
        headers |= auth(cloud.token)
        return httpx2.get(f"{cloud.url}{LATEST}?wait=20", headers=headers, timeout=30)

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask)
        assert looked.wait(10)
        assert not first.done()
        published = cloud.publish(1, b"one")
        answer = first.result()
        assert (answer.status_code, answer.content) == (200, published.envelope)
        looked.clear()
        second = threads.submit(ask, **{"If-None-Match": answer.headers["etag"]})
        assert looked.wait(10)
        assert not second.done()
        cloud.publish(2, b"two")
        assert second.result().status_code == 200
        assert second.result().headers["etag"] != answer.headers["etag"]


def test_who_was_given_a_version_is_in_its_trace(tmp_path: Path) -> None:
    engine = StillEngine(CloudConfig.load(write_config(tmp_path, cohorts=SOUTH)))
    with serving(engine) as url:
        cloud = Cloud(engine, url)
        cloud.publish(1, b"one", trace={})
        for token in (cloud.token, cloud.token, cloud.operator):
            assert cloud.get(LATEST, token=token).status_code == 200
        cloud.http.close()
        began = time.time()
    # At its end the server writes what was noted.
    with closing(engine.config.open_store()) as store:
        found = traces_of(store).trace("north", 1)
    assert found is not None
    assert list(found["devices"]) == ["cam"]
    assert found["devices"]["cam"]["fetched_at"] == pytest.approx(began, abs=60)


def test_without_news_it_is_304_or_204_in_the_end(cloud: Cloud) -> None:
    assert cloud.get(f"{LATEST}?wait=0.05").status_code == 204
    cloud.publish(1, b"one")
    answer = cloud.get(f"{LATEST}?wait=20")
    assert answer.status_code == 200  # what is new to the sender is not kept back
    tagged = {"If-None-Match": answer.headers["etag"]}
    again = cloud.get(f"{LATEST}?wait=0.05", headers=tagged)
    assert (again.status_code, again.headers["etag"]) == (304, answer.headers["etag"])
    for wrong in ("-1", "nan", "inf", "soon"):
        refused(cloud.get(f"{LATEST}?wait={wrong}"), 400, "invalid_request")
        assert cloud.get(f"{LATEST}?wait={wrong}", token="none").status_code == 401


def test_waiting_is_not_counted_as_slowness(cloud: Cloud) -> None:
    assert cloud.get(f"{LATEST}?wait=1.2").status_code == 204
    text = cloud.get("/metrics", token=cloud.operator).text
    line = next(line for line in text.splitlines() if "seconds_sum" in line and "updates/latest" in line)
    assert float(line.rsplit(" ", 1)[1]) < 1.0
