"""Tests of a store: versions for some devices alone, if it keeps such."""

from __future__ import annotations

from typing import Any

import pytest

from cema.cloud.store.base import UPDATES_KEPT, Store, UpdateTag
from cema.cloud.store.control import (
    SOURCE,
    ActRefused,
    ControlChanged,
    ControlStore,
    Pause,
    Pin,
    Release,
    Resume,
    Stop,
)
from cema.cloud.store.fleet import FleetRegister, Move, Remove
from cema.cloud.store.offers import Offer, Offers, OfferStore, PinnedDevice, Rollout
from cema.cloud.store.reports import Reported, ReportStore, reports_of
from cema.formats.report import DeviceReport, Served
from cema.testing.store_case import StoreCase
from cema.testing.store_data import numbered_update

__all__ = ["OfferTests"]


def _canary(version: int, *devices: str, **more: Any) -> Rollout:
    return Rollout(version=version, mode="canary", began=1.0, before=1, devices=devices, **more)


class OfferTests(StoreCase):
    """Each device is offered the newest version that is for it, and no other."""

    @pytest.fixture
    def offering(self, store: Store) -> OfferStore:
        """Return the store, if it keeps offers, with one version for all and two devices."""
        if not isinstance(store, OfferStore) or not isinstance(store, ControlStore):
            pytest.skip("this store keeps no versions for some devices alone")
        for device in ("cam", "far"):
            store.devices(["north"]).add(device, cohort="north")
        self.epoch = store.claim("north").epoch
        self._commit(store, 1)
        return store

    def _commit(self, store: Store, version: int | None, offer: Offer | None = None, **more: Any) -> None:
        update = None if version is None else numbered_update(version)
        extra: dict[str, Any] = {"offer": offer} if offer else {}
        store.commit_step("north", 0, b"", update, epoch=self.epoch, now=float(version or 9), **extra, **more)

    def _offered(self, store: OfferStore, *devices: str) -> list[int]:
        tags = [store.offered_tag("north", device) for device in devices]
        for device, tag in zip(devices, tags, strict=True):
            update = store.offered("north", device)
            assert (update and UpdateTag(update.version, update.digest)) == tag
        return [tag.version if tag else 0 for tag in tags]

    def test_a_version_for_some_is_offered_to_them_alone_until_it_is_released(
        self, store: Store, offering: OfferStore
    ) -> None:
        self._commit(store, 2, Offer(audience=("cam",), rollout=_canary(2, "cam")))
        assert self._offered(offering, "cam", "far", "an operator") == [2, 1, 1]
        assert offering.offers(["north"]) == {"north": Offers(1, {"cam": 2})}
        assert offering.for_all("north") == numbered_update(1)
        assert offering.update("north", 2) == store.latest_update("north") == numbered_update(2)
        assert offering.update("north", 7) is None
        self._commit(store, None, Offer(rollout=_canary(2, "cam", "far"), also=("far",)))
        assert self._offered(offering, "cam", "far", "an operator") == [2, 2, 1]
        released = _canary(2, "cam", state="released", ended=3.0)
        self._commit(store, None, Offer(release=2, rollout=released))
        assert self._offered(offering, "cam", "far", "an operator") == [2, 2, 2]
        assert offering.offers(["north"]) == {"north": Offers(2, {})}
        assert offering.rollout("north") == released

    def test_what_is_taken_back_is_followed_by_a_version_for_all(
        self, store: Store, offering: OfferStore
    ) -> None:
        self._commit(store, 2, Offer(audience=("cam",), rollout=_canary(2, "cam")))
        back = _canary(2, "cam", state="taken_back", ended=3.0, reasons={"cam": "guarded"})
        self._commit(store, 3, Offer(rollout=back))
        assert self._offered(offering, "cam", "far") == [3, 3]
        assert offering.rollout("north") == back

    def test_an_operator_may_release_what_waits_and_the_worker_cannot_undo_it(
        self, store: Store, offering: OfferStore
    ) -> None:
        assert isinstance(store, ControlStore)
        waits = Rollout(version=2, mode="manual", began=1.0)
        self._commit(store, 2, Offer(audience=(), rollout=waits))
        assert self._offered(offering, "cam", "far") == [1, 1]
        assert store.act("north", Release(to=2), actor="ann", now=5.0).state == "done"
        assert self._offered(offering, "cam", "far") == [2, 2]
        self._commit(store, None, Offer(rollout=waits))
        rollout = offering.rollout("north")
        assert rollout is not None
        assert (rollout.state, rollout.ended) == ("released", 5.0)
        with pytest.raises(ActRefused, match="version 2 is for all"):
            store.act("north", Release(to=1), actor="ann", now=6.0)
        with pytest.raises(ActRefused, match="keeps no version 9"):
            store.act("north", Release(to=9), actor="ann", now=6.0)

    def test_a_pause_that_comes_first_keeps_a_release_back(self, store: Store, offering: OfferStore) -> None:
        assert isinstance(store, ControlStore)
        tried = _canary(2, "cam")
        self._commit(store, 2, Offer(audience=("cam",), rollout=tried))
        serial = store.control("north").serial
        store.act("north", Pause(), actor="ann", now=5.0)
        released = Offer(release=2, rollout=_canary(2, "cam", state="released", ended=6.0))
        for offer in (released, Offer(rollout=_canary(2, "cam", "far"), also=("far",))):
            with pytest.raises(ControlChanged):
                self._commit(store, None, offer, control=serial)
        assert self._offered(offering, "cam", "far") == [2, 1]
        assert offering.rollout("north") == tried
        self._commit(store, None, Offer(rollout=_canary(2, "cam", agreement={"cam": (3, 2)})), control=serial)

    def test_a_newer_rollout_closes_the_one_before(self, store: Store, offering: OfferStore) -> None:
        assert offering.rollout("north") is None
        for version in (2, 3):
            self._commit(
                store, version, Offer(audience=(), rollout=Rollout(version=version, mode="manual", began=1.0))
            )
        assert self._offered(offering, "cam") == [1]
        assert isinstance(store, ControlStore)
        assert store.act("north", Release(to=3), actor="ann", now=5.0).state == "done"
        assert self._offered(offering, "cam") == [3]

    def test_a_pinned_device_keeps_its_content_whatever_comes(
        self, store: Store, offering: OfferStore
    ) -> None:
        assert isinstance(store, ControlStore)
        self._commit(store, 2)
        pin = store.act("north", Pin(to=1, device="cam"), actor="ann", now=5.0)
        digest = numbered_update(1).digest
        assert (pin.state, pin.content, store.control("north").publishing) == ("waiting", digest, "on")
        assert offering.pinned("north") == [PinnedDevice("cam", digest, None, None)]
        again = numbered_update(3, numbered_update(1).payload)
        extra: dict[str, Any] = {"offer": Offer(audience=("cam",))}
        store.commit_step("north", 0, b"", again, epoch=self.epoch, now=3.0, **extra)
        assert self._offered(offering, "cam", "far") == [3, 2]
        for version in range(4, UPDATES_KEPT + 6):
            self._commit(store, version)
        assert self._offered(offering, "cam", "far") == [3, UPDATES_KEPT + 5], "its version is not deleted"
        assert offering.offers(["north"]) == {"north": Offers(UPDATES_KEPT + 5, {"cam": 3})}
        (pinned,) = offering.pinned("north")
        assert (pinned.version, pinned.created) == (3, again.created)
        resume = store.act("north", Resume(device="cam"), actor="ann", now=9.0)
        assert resume.content == numbered_update(UPDATES_KEPT + 5).digest
        assert self._offered(offering, "cam") == [UPDATES_KEPT + 5]
        assert offering.pinned("north") == []
        with pytest.raises(ActRefused, match="is not pinned"):
            store.act("north", Resume(device="cam"), actor="ann", now=9.0)

    def test_pins_of_several_devices_wait_one_after_the_other(
        self, store: Store, offering: OfferStore
    ) -> None:
        assert isinstance(store, ControlStore)
        first = store.act("north", Pin(to=1, device="cam"), actor="ann", now=5.0)
        second = store.act("north", Pin(to=1, device="far"), actor="ann", now=6.0)
        assert store.waiting_act("north") == first
        again = store.act("north", Pin(to=1, device="cam"), actor="ann", now=7.0)
        assert store.waiting_act("north") == second, (
            "a later act on the same device takes the place of the first"
        )
        assert [act.state for act in store.acts("north")] == ["waiting", "waiting", "superseded"]
        stop = store.act("north", Stop(), actor="ann", now=8.0)
        assert (store.waiting_act("north"), stop.content) == (stop, SOURCE)
        assert offering.pinned("north") == [], "in an emergency all devices get the source model"
        assert again.number < stop.number

    def test_a_device_that_leaves_the_cohort_is_pinned_no_more(
        self, store: Store, offering: OfferStore
    ) -> None:
        register = store.devices(["north", "south"])
        if not isinstance(register, FleetRegister):
            pytest.skip("the register of this store takes no acts on devices")
        assert isinstance(store, ControlStore)
        for device, act in (("cam", Remove()), ("far", Move(to="south"))):
            store.act("north", Pin(to=1, device=device), actor="ann", now=5.0)
            if isinstance(store, ReportStore):
                report = DeviceReport(boot="0" * 16, number=1, serving=Served(version=1))
                store.note_reports([Reported("north", device, 5.0, report)])
            register.act(device, Move(to="north"))
            assert [each.device for each in offering.pinned("north")] == [device]
            register.act(device, act)
            assert offering.pinned("north") == []
        assert "cam" not in reports_of(store), "its name is free again, and nothing is known of it"
        register.add("cam", cohort="north")
        assert (offering.pinned("north"), self._offered(offering, "cam")) == ([], [1])

    def test_only_a_device_of_the_cohort_is_pinned(self, store: Store, offering: OfferStore) -> None:
        assert isinstance(store, ControlStore)
        with pytest.raises(ActRefused, match="has no device 'nobody'"):
            store.act("north", Pin(to=1, device="nobody"), actor="ann", now=5.0)
        assert (store.acts("north"), offering.pinned("north")) == ([], [])
