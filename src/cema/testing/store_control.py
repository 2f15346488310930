"""Tests of a store: acts of operators, if it takes any."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cema.cloud.store.base import UPDATES_KEPT, Store
from cema.cloud.store.control import (
    SOURCE,
    ActRefused,
    Canary,
    Control,
    ControlChanged,
    ControlStore,
    Pause,
    Pin,
    Resume,
    Rollback,
    Stop,
)
from cema.errors import StoreError
from cema.testing.store_case import StoreCase
from cema.testing.store_data import numbered_update

__all__ = ["ControlTests"]


class ControlTests(StoreCase):
    """An act is written down whole, and nothing that it forbids is committed after it."""

    @pytest.fixture
    def controlled(self, store: Store) -> ControlStore:
        """Return the store, if it takes acts, with three versions."""
        if not isinstance(store, ControlStore):
            pytest.skip("this store takes no acts")
        epoch = store.claim("north").epoch
        for version in (1, 2, 3):
            _commit(store, epoch, numbered_update(version))
        return store

    def test_an_act_waits_for_the_worker_and_is_done_with_its_step(
        self, store: Store, controlled: ControlStore
    ) -> None:
        assert (controlled.control("north"), controlled.waiting_act("north")) == (Control(), None)
        act = controlled.act("north", Pin(to=2), actor="ann", now=5.0)
        assert (act.actor, act.at, act.act, act.state) == ("ann", 5.0, Pin(to=2), "waiting")
        assert act.content == numbered_update(2).digest
        assert controlled.control("north").publishing == "pinned"
        assert controlled.waiting_act("north") == act
        done = msgspec.structs.replace(act, state="done", done_at=6.0, version=4)
        epoch = store.claim("north").epoch
        again = numbered_update(4, numbered_update(2).payload)
        _commit(store, epoch, again, control=act.number, acted=done)
        assert (controlled.waiting_act("north"), controlled.acts("north")) == (None, [done])
        assert store.latest_update("north") == again

    def test_what_needs_no_version_is_done_at_once(self, controlled: ControlStore) -> None:
        pause = controlled.act("north", Pause(), actor="ann", now=5.0)
        resume = controlled.act("north", Resume(), actor="bob", now=6.0)
        assert [(act.state, act.done_at) for act in (pause, resume)] == [("done", 5.0), ("done", 6.0)]
        assert controlled.acts("north") == [resume, pause]
        assert controlled.acts("north", limit=1) == [resume]
        assert controlled.control("north") == Control(serial=resume.number)

    def test_the_share_of_canary_devices_stays_until_it_is_set_again(
        self, store: Store, controlled: ControlStore
    ) -> None:
        assert controlled.control("north").first is None
        act = controlled.act("north", Canary(first=0.25), actor="ann", now=5.0)
        assert (act.state, act.act) == ("done", Canary(first=0.25))
        pin = controlled.act("north", Pin(to=1), actor="ann", now=6.0)
        assert controlled.waiting_act("north") == pin
        again = controlled.act("north", Canary(first=0.5), actor="ann", now=7.0)
        assert controlled.waiting_act("north") == pin, "it leaves others to be done"
        state = controlled.control("north")
        assert state == Control(
            publishing="pinned", content=numbered_update(1).digest, serial=again.number, first=0.5
        )
        for other in (Resume(), Pause(), Rollback(to=1), Stop(), Resume()):
            controlled.act("north", other, actor="ann", now=8.0)
            assert controlled.control("north").first == 0.5
        controlled.act("north", Canary(), actor="ann", now=9.0)
        assert controlled.control("north").first is None
        assert controlled.acts("north")[0].act == Canary()

    def test_nothing_is_published_that_was_made_before_an_act(
        self, store: Store, controlled: ControlStore
    ) -> None:
        epoch = store.claim("north").epoch
        before = store.status("north")
        serial = controlled.control("north").serial
        controlled.act("north", Pause(), actor="ann", now=5.0)
        with pytest.raises(ControlChanged, match="an operator acted"):
            _commit(store, epoch, numbered_update(4), control=serial)
        assert store.status("north") == before
        _commit(store, epoch, None, control=serial)  # a step without an update does no harm

    def test_a_later_act_leaves_at_most_one_to_do(self, controlled: ControlStore) -> None:
        pin = controlled.act("north", Pin(to=1), actor="ann", now=5.0)
        stop = controlled.act("north", Stop(), actor="ann", now=6.0)
        assert controlled.waiting_act("north") == stop
        assert stop.content == SOURCE
        resume = controlled.act("north", Resume(), actor="ann", now=7.0)
        assert controlled.waiting_act("north") is None
        states = {act.number: (act.state, act.done_at) for act in controlled.acts("north")}
        assert states == {
            pin.number: ("superseded", 6.0),
            stop.number: ("superseded", 7.0),
            resume.number: ("done", 7.0),
        }
        rollback = controlled.act("north", Rollback(to=1), actor="ann", now=8.0)
        controlled.act("north", Pause(), actor="ann", now=9.0)
        assert controlled.waiting_act("north") == rollback

    def test_a_version_that_is_not_kept_is_refused(self, controlled: ControlStore) -> None:
        with pytest.raises(ActRefused, match=r"keeps no version 9; the newest that are kept: 1, 2, 3"):
            controlled.act("north", Pin(to=9), actor="ann", now=5.0)
        assert (controlled.acts("north"), controlled.control("north")) == ([], Control())
        with pytest.raises(StoreError, match="no cohort 'west'"):
            controlled.act("west", Stop(), actor="ann", now=5.0)

    def test_what_devices_are_to_have_is_kept(self, store: Store, controlled: ControlStore) -> None:
        controlled.act("north", Pin(to=1), actor="ann", now=5.0)
        epoch = store.claim("north").epoch
        for version in range(4, 6 + UPDATES_KEPT):
            _commit(store, epoch, numbered_update(version))
        first = numbered_update(1)
        assert store.artifact("north", first.digest) == first.payload
        assert store.artifact("north", numbered_update(2).digest) is None
        assert controlled.versions("north")[0].version == 1
        controlled.act("north", Resume(), actor="ann", now=6.0)
        _commit(store, epoch, numbered_update(6 + UPDATES_KEPT))
        assert store.artifact("north", first.digest) is None

    def test_versions_are_told_with_their_payloads(self, controlled: ControlStore) -> None:
        found = controlled.versions("north")
        assert [known.version for known in found] == [1, 2, 3]
        third = numbered_update(3)
        assert found[-1] == (
            3,
            third.digest,
            third.created,
            third.expires,
            len(third.payload),
            third.envelope,
        )
        assert controlled.versions("south") == []


def _commit(store: Any, epoch: int, update: Any, **more: Any) -> None:
    store.commit_step("north", 0, b"", update, epoch=epoch, now=1.0, **more)
