"""Tests of a store: what an operator does with devices, if its register takes acts."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cema.cloud.store.activity import ActivityStore, Poll, activity_of
from cema.cloud.store.audits import AuditStore
from cema.cloud.store.base import Store
from cema.cloud.store.control import ActRefused
from cema.cloud.store.devices import DeviceLimits, new_token
from cema.cloud.store.fleet import (
    DeviceTaken,
    Expire,
    FleetRegister,
    Limit,
    Move,
    NewDevice,
    Quarantine,
    Release,
    Remove,
    Renew,
    Revoke,
    UnknownDevice,
    Usage,
)
from cema.errors import StoreError
from cema.testing.store_case import StoreCase
from cema.testing.store_data import numbered_sample

__all__ = ["FleetTests"]

DAY = 86_400.0


class FleetTests(StoreCase):
    """An act on a device is done whole, and what it says holds from the next request on."""

    @pytest.fixture
    def fleet(self, store: Store) -> FleetRegister:
        """Return the store's register, if it takes acts, of two cohorts."""
        register = store.devices(["north", "south"])
        if not isinstance(register, FleetRegister):
            pytest.skip("this store takes no acts on devices")
        return register

    def test_many_devices_are_added_all_or_none(self, fleet: FleetRegister) -> None:
        tokens = [new_token() for _ in range(3)]
        new = [NewDevice(f"cam-{i}", "north", "device", token, 1e10 + i) for i, token in enumerate(tokens)]
        fleet.add("cam-1", cohort="north")
        with pytest.raises(DeviceTaken, match="cam-1"):
            fleet.add_all(new)
        assert [device.name for device in fleet.list()] == ["cam-1"]
        wrong = NewDevice("cam-9", "west", "device", new_token())
        with pytest.raises(StoreError, match="no cohort 'west'"):
            fleet.add_all([new[0], wrong])
        assert [device.name for device in fleet.list()] == ["cam-1"]
        fleet.act("cam-1", Remove())
        fleet.add_all(new, now=5.0)
        found = [fleet.authenticate(token) for token in tokens]
        assert found == list(fleet.list())
        assert [(d.name, d.created_at, d.expires_at) for d in fleet.list()] == [
            (f"cam-{i}", 5.0, 1e10 + i) for i in range(3)
        ]
        assert tokens[0] not in repr(new)

    def test_two_tokens_are_good_until_the_overlap_ends(self, fleet: FleetRegister) -> None:
        first = fleet.add("cam", cohort="north")
        now = time.time()
        device, second = fleet.act("cam", Renew(overlap=DAY), now=now)
        assert second is not None
        assert device is not None
        assert (device.older_token_until, device.taken_at) == (now + DAY, None)
        good = [fleet.authenticate(token) for token in (first, second)]
        assert [d is not None and (d.name, d.by_older_token) for d in good] == [("cam", True), ("cam", False)]
        # Seen from a day later.
        fleet.act("cam", Renew(overlap=0.0))
        assert [fleet.authenticate(token) for token in (first, second)] == [None, None]
        third = fleet.act("cam", Renew(overlap=DAY), now=now - 2 * DAY).token
        assert third is not None
        assert fleet.list()[0].older_token_until is None
        assert fleet.authenticate(third) == fleet.list()[0]

    def test_a_new_token_that_never_reached_its_device_is_replaced(self, fleet: FleetRegister) -> None:
        first = fleet.add("cam", cohort="north")
        now = time.time()
        lost = fleet.act("cam", Renew(overlap=DAY), now=now).token
        device, third = fleet.act("cam", Renew(overlap=DAY), now=now + 5)
        assert device is not None
        assert device.older_token_until == now + 5 + DAY
        assert [self.knows(fleet, token) for token in (first, lost, third)] == [True, False, True]
        fleet.note_taken(["cam", "nobody"], now=now + 6)
        fleet.note_taken(["cam"], now=now + 9)
        assert fleet.list()[0].taken_at == now + 6
        fourth = fleet.act("cam", Renew(overlap=DAY), now=now + 10).token
        assert [self.knows(fleet, token) for token in (first, third, fourth)] == [False, True, True]
        assert fleet.list()[0].taken_at is None

    def knows(self, fleet: FleetRegister, token: str | None) -> bool:
        """Tell whether a token is somebody's."""
        return token is not None and fleet.authenticate(token) is not None

    def test_a_revoked_device_has_no_good_token_and_gets_none(self, fleet: FleetRegister) -> None:
        first = fleet.add("cam", cohort="north")
        second = fleet.act("cam", Renew(overlap=DAY)).token
        assert second is not None
        fleet.act("cam", Revoke(), now=7.0)
        fleet.act("cam", Revoke(), now=9.0)
        for token in (first, second):
            found = fleet.authenticate(token)
            assert found is not None
            assert found.revoked_at == 7.0
        with pytest.raises(ActRefused, match="revoked"):
            fleet.act("cam", Renew(overlap=DAY))

    def test_a_moved_device_speaks_for_its_new_cohort(self, fleet: FleetRegister) -> None:
        token = fleet.add("cam", cohort="north")
        fleet.act("cam", Move(to="south"))
        found = fleet.authenticate(token)
        assert found is not None
        assert found.cohort == "south"
        with pytest.raises(StoreError, match="no cohort 'west'"):
            fleet.act("cam", Move(to="west"))
        assert fleet.authenticate(token) == found

    def test_a_removed_device_is_forgotten_and_its_samples_are_not(
        self, store: Store, fleet: FleetRegister
    ) -> None:
        old = fleet.add("cam", cohort="north")
        older = fleet.act("cam", Renew(overlap=DAY)).token
        fleet.act("cam", Expire(at=2e9))
        fleet.act("cam", Quarantine())
        fleet.keep_usage({"cam": {"samples_per_hour": Usage(3.0, 5.0)}})
        store.put("north", [numbered_sample(1)], device="cam", now=1.0, max_backlog=10)
        assert fleet.act("cam", Remove()) == (None, None)
        assert (fleet.list(), dict(fleet.quarantined()), activity_of(store)) == ((), {}, {})
        assert [self.knows(fleet, token) for token in (old, older)] == [False, False]
        assert store.backlog("north").samples == 1
        if isinstance(store, ActivityStore):  # what was asked before it was removed, and noted after it
            store.note_polls([Poll("north", "cam", 9.0, 1)])
        fleet.keep_usage({"cam": {"samples_per_hour": Usage(3.0, 5.0)}})
        token = fleet.add("cam", cohort="south")
        found = fleet.authenticate(token)
        assert found is not None
        assert (found.cohort, found.expires_at, found.quarantined_at) == ("south", None, None)
        assert (dict(fleet.usage("cam")), activity_of(store)) == ({}, {})

    def test_expiry_quarantine_and_limits_are_kept_and_taken_back(self, fleet: FleetRegister) -> None:
        token = fleet.add("cam", cohort="north")
        fleet.act("cam", Expire(at=2e9))
        fleet.act("cam", Quarantine(), now=5.0)
        fleet.act("cam", Quarantine(), now=8.0)
        fleet.act("cam", Limit(samples_per_hour=5))
        fleet.act("cam", Limit(bytes_per_day=0))
        found = fleet.authenticate(token)
        assert found is not None
        assert (found.expires_at, found.quarantined_at) == (2e9, 5.0)
        assert found.limits == DeviceLimits(samples_per_hour=5, bytes_per_day=0)
        assert dict(fleet.quarantined()) == {"cam": "north"}
        fleet.act("cam", Expire(at=None))
        fleet.act("cam", Release())
        fleet.act("cam", Limit(samples_per_day=7, as_configured=True))
        found = fleet.authenticate(token)
        assert found is not None
        assert (found.expires_at, found.quarantined_at, found.quarantined_by) == (None, None, None)
        assert found.limits == DeviceLimits(samples_per_day=7)
        assert dict(fleet.quarantined()) == {}

    def test_what_cannot_be_done_is_refused_with_a_reason(self, fleet: FleetRegister) -> None:
        fleet.add("cam", cohort="north")
        fleet.add("ann", cohort=None, role="operator")
        before = fleet.list()
        for act in (Renew(), Revoke(), Remove(), Move(to="south"), Expire(at=None), Quarantine(), Release()):
            with pytest.raises(UnknownDevice, match="no device 'z'"):
                fleet.act("z", act)
        refused: list[tuple[str, Any, str]] = [
            ("ann", Quarantine(), "role operator"),
            ("ann", Limit(samples_per_day=1), "role operator"),
            ("cam", Limit(), "at least one of samples_per_hour"),
            ("cam", Release(), "not quarantined by an operator"),
        ]
        for wrong in (
            Renew(overlap=-1.0),
            Renew(overlap=1e9),
            Expire(at=float("inf")),
            Limit(samples_per_day=-1),
        ):
            with pytest.raises(StoreError, match="the act "):
                fleet.act("cam", wrong)
        with pytest.raises(StoreError, match="expire"):
            fleet.add_all([NewDevice("late", "north", "device", new_token(), float("nan"))])
        for name, act, told in refused:
            with pytest.raises(ActRefused, match=told):
                fleet.act(name, act)
        assert fleet.list() == before

    def test_what_is_done_with_devices_is_on_record(self, store: Store, fleet: FleetRegister) -> None:
        if not isinstance(store, AuditStore):
            pytest.skip("the store keeps no acts")
        register: Any = store.audited_devices(["north", "south"], actor="os:ann")
        register.add_all([NewDevice("cam", "north", "device", new_token(), 2e9)])
        acts: list[tuple[Any, dict[str, Any]]] = [
            (Renew(overlap=60.0), {"overlap": 60.0}),
            (Move(to="south"), {"from": "north", "to": "south"}),
            (Expire(at=None), {"at": None}),
            (Quarantine(), {}),
            (Release(), {}),
            (Limit(samples_per_day=4), {"samples_per_day": 4}),
            (Revoke(), {}),
            (Remove(), {"role": "device", "cohort": "south"}),
        ]
        for act, _ in acts:
            register.act("cam", act)
        with pytest.raises(UnknownDevice):
            register.act("cam", Revoke())
        first, *told = [one.act for one in store.audit(limit=20)]
        assert (first.name, first.detail["expires_at"]) == ("device.add", 2e9)
        assert {(one.actor, one.subject) for one in told} == {("os:ann", "cam")}
        assert [(one.name, one.detail) for one in told] == [
            (f"device.{type(act).__name__.lower()}", detail) for act, detail in acts
        ]
        register.add("dog", cohort="north")
        register.act("dog", Quarantine())
        assert [device.quarantined_by for device in fleet.list()] == ["os:ann"]

    def test_what_a_device_has_used_is_kept(self, fleet: FleetRegister) -> None:
        fleet.add("cam", cohort="north")
        used = {"samples_per_hour": Usage(3.5, 5.0), "bytes_per_day": Usage(1e12, 6.0)}
        fleet.keep_usage({"cam": used, "nobody": used})
        assert (dict(fleet.usage("cam")), dict(fleet.usage("nobody"))) == (used, {})
        fleet.keep_usage({"cam": {"samples_per_hour": Usage(1.0, 9.0)}})
        assert dict(fleet.usage("cam")) == {**used, "samples_per_hour": Usage(1.0, 9.0)}
