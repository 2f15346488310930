"""Tests of a store: the worker's steps, updates, counters, reports, and the register of devices."""

from __future__ import annotations

from typing import Any

import pytest

from cema.cloud.store.base import UPDATES_KEPT, Fenced, OtherBase, Store
from cema.cloud.store.devices import Device
from cema.errors import StoreError
from cema.testing.store_case import BASE, StoreCase, put
from cema.testing.store_data import numbered_sample, numbered_update

__all__ = ["DeviceTests", "StepTests"]


class StepTests(StoreCase):
    """Steps are committed whole, one version after another."""

    def test_a_step_is_committed_whole_or_not_at_all(self, store: Store) -> None:
        put(store, [numbered_sample(i) for i in range(4)])
        seqs = store.sequence("north", after=0, limit=4)
        epoch = store.claim("north").epoch
        store.commit_step(
            "north", seqs[0], b"first", numbered_update(2), epoch=epoch, now=1.0, counts={"n": 1}
        )
        before = store.status("north")
        false = numbered_update(3)
        object.__setattr__(false, "digest", "0" * 64)
        for update, told in ((numbered_update(1), "must follow version 2"), (false, "digest")):
            with pytest.raises(StoreError, match=told):
                store.commit_step(
                    "north",
                    seqs[2],
                    b"second",
                    update,
                    epoch=epoch,
                    now=2.0,
                    counts={"n": 1},
                    report={"ready": True},
                )
            assert store.status("north") == before
            assert store.artifact("north", update.digest) is None
        assert store.latest_update("north") == numbered_update(2)
        assert store.claim("north").checkpoint == b"first"

    def test_a_cursor_never_goes_back_and_versions_follow_each_other(self, store: Store) -> None:
        put(store, [numbered_sample(i) for i in range(4)])
        seqs = store.sequence("north", after=0, limit=4)
        epoch = store.claim("north").epoch
        store.commit_step("north", seqs[2], b"", numbered_update(2), epoch=epoch, now=1.0)
        with pytest.raises(StoreError, match="cannot go back"):
            store.commit_step("north", seqs[1], b"", epoch=epoch, now=1.0)
        for wrong in (1, 2):
            with pytest.raises(StoreError, match="must follow version 2"):
                store.commit_step("north", seqs[2], b"", numbered_update(wrong), epoch=epoch, now=1.0)
        # Numbers may be left out: after a restored backup, devices refuse those that they have seen.
        store.commit_step("north", seqs[2], b"", numbered_update(90), epoch=epoch, now=1.0)
        assert store.latest_update("north") == numbered_update(90)
        assert store.artifact("north", numbered_update(2).digest) == numbered_update(2).payload

    def test_attempts_are_counted_until_a_step_commits(self, store: Store) -> None:
        for expected in range(3):
            state = store.claim("north")
            assert state.attempts == expected
            store.mark_attempt("north")
        store.commit_step("north", 0, b"", epoch=state.epoch, now=1.0)
        assert store.claim("north").attempts == 0

    def test_artifacts_belong_to_their_cohort_and_old_ones_go(self, store: Store) -> None:
        store.open_cohort("south", base=BASE)
        epoch = store.claim("north").epoch
        assert store.latest_update("north") is None
        for version in range(1, UPDATES_KEPT + 3):
            store.commit_step("north", 0, b"", numbered_update(version), epoch=epoch, now=1.0)
        assert store.latest_update("north") == numbered_update(UPDATES_KEPT + 2)
        third, second = numbered_update(3), numbered_update(2)
        assert store.artifact("north", third.digest) == third.payload
        assert store.artifact("north", second.digest) is None
        assert store.artifact("south", third.digest) is None

    def test_one_payload_under_two_versions_is_served_for_both(self, store: Store) -> None:
        epoch = store.claim("north").epoch
        for version in range(1, UPDATES_KEPT + 2):
            payload = b"same" if version in (1, 2) else None
            store.commit_step("north", 0, b"", numbered_update(version, payload), epoch=epoch, now=1.0)
        # The first of the two versions has been deleted since, and the second has not.
        assert store.artifact("north", numbered_update(1, b"same").digest) == b"same"

    def test_a_cohort_without_a_step_takes_any_base_model(self, store: Store) -> None:
        put(store, [numbered_sample(i) for i in range(3)])
        token = store.devices(["north"]).add("cam", cohort="north")
        seqs = store.sequence("north", after=0, limit=3)
        epoch = store.claim("north").epoch
        store.commit_step("north", seqs[0], b"waits for a batch", epoch=epoch, now=1.0)  # no step yet
        for base in ("1" * 64, BASE, "1" * 64):
            store.open_cohort("north", base=base)
            assert store.status("north")["base"] == base
        with pytest.raises(Fenced):  # whoever works on it does so with the base of before
            store.commit_step("north", seqs[1], b"", numbered_update(1), epoch=epoch, now=1.0)
        state = store.claim("north")
        assert (state.cursor, state.checkpoint) == (seqs[0], None)
        assert store.backlog("north").samples == 2
        assert store.devices(["north"]).authenticate(token) is not None

    @pytest.mark.parametrize("what", ["update", "step"])
    def test_a_cohort_that_has_made_steps_keeps_its_base_model(self, store: Store, what: str) -> None:
        update, counts = (numbered_update(1), {}) if what == "update" else (None, {"steps.count": 1.0})
        epoch = store.claim("north").epoch
        store.commit_step("north", 0, b"", update, epoch=epoch, now=1.0, counts=counts)
        store.open_cohort("north", base=BASE)
        with pytest.raises(OtherBase, match="cema cohort migrate north"):
            store.open_cohort("north", base="1" * 64)
        store.commit_step("north", 0, b"", epoch=epoch, now=1.0)  # nobody was fenced

    def test_what_no_cohort_has_done_is_an_error_or_empty(self, store: Store) -> None:
        for call in (store.claim, store.status):
            with pytest.raises(StoreError, match="no cohort 'west'"):
                call("west")
        with pytest.raises(StoreError, match="no cohort 'west'"):
            store.commit_step("west", 0, b"", epoch=1, now=1.0)
        assert store.fresh("west", after=0, limit=9) == []
        assert store.counters("west") == {}

    def test_status_and_reports(self, store: Store) -> None:
        empty = {
            "cohort": "north",
            "base": BASE,
            "cursor": 0,
            "committed_at": None,
            "samples": 0,
            "backlog": 0,
        }
        empty |= {"last_sample": 0, "version": 0, "update": None, "counts": {}, "worker": None}
        status = store.status("north")
        assert status.pop("used_bytes") == store.used_bytes()
        assert status == empty
        put(store, [numbered_sample(i) for i in range(3)])
        seqs = store.sequence("north", after=0, limit=3)
        store.count("north", {"x": 1.5})
        store.count("north", {"x": 1.0, "y": 2.0})
        store.put_report("north", {"ready": False}, now=4.0)
        update, epoch = numbered_update(1), store.claim("north").epoch
        report = {"ready": True, "steps": 3}
        store.commit_step(
            "north", seqs[0], b"", update, epoch=epoch, now=5.0, counts={"y": 1.0}, report=report
        )
        status = store.status("north")
        assert (status["samples"], status["backlog"], status["last_sample"]) == (3, 2, seqs[2])
        assert (status["cursor"], status["committed_at"], status["version"]) == (seqs[0], 5.0, 1)
        assert status["update"] == {"version": 1, "digest": update.digest, "created": 1.0, "expires": 1e12}
        assert status["counts"] == store.counters("north")
        assert (status["counts"]["x"], status["counts"]["y"]) == (2.5, 3.0)
        assert status["worker"] == {"seen_at": 5.0, "ready": True, "steps": 3}


class DeviceTests(StoreCase):
    """Devices have a token each, until it is revoked."""

    def test_a_token_names_its_device_until_it_is_revoked_and_after(self, store: Store) -> None:
        devices = store.devices(["north"])
        token = devices.add("cam-1", cohort="north", now=5.0)
        assert len({token, *(devices.add(f"d{i}", cohort="north") for i in range(9))}) == 10
        assert len(token) == 43  # 32 bytes in base64url
        assert devices.authenticate(token) == Device("cam-1", "device", "north", 5.0, None)
        assert devices.authenticate(token[:-1]) is None
        assert devices.authenticate("") is None
        devices.revoke("cam-1", now=7.0)
        devices.revoke("cam-1", now=9.0)
        assert devices.authenticate(token) == Device("cam-1", "device", "north", 5.0, 7.0)

    def test_a_renewed_token_takes_the_place_of_the_old_one(self, store: Store) -> None:
        devices = store.devices(["north"])
        old = devices.add("cam-1", cohort="north", now=5.0)
        other = devices.add("cam-2", cohort="north", now=6.0)
        new = devices.renew("cam-1")
        assert devices.authenticate(old) is None
        assert devices.authenticate(new) == Device("cam-1", "device", "north", 5.0, None)
        assert devices.authenticate(other) == Device("cam-2", "device", "north", 6.0, None)
        devices.revoke("cam-1", now=7.0)
        with pytest.raises(StoreError, match="revoked"):
            devices.renew("cam-1")
        with pytest.raises(StoreError, match="no device 'z'"):
            devices.renew("z")
        assert devices.authenticate(new) == Device("cam-1", "device", "north", 5.0, 7.0)

    def test_all_devices_are_listed_by_name(self, store: Store) -> None:
        devices = store.devices(["north"])
        devices.add("b", cohort="north", now=1.0)
        devices.add("a", cohort=None, role="operator", now=2.0)
        devices.revoke("b", now=3.0)
        assert store.devices([]).list() == (
            Device("a", "operator", None, 2.0, None),
            Device("b", "device", "north", 1.0, 3.0),
        )

    def test_a_wrong_device_is_refused_with_a_reason(self, store: Store) -> None:
        devices = store.devices(["north"])
        devices.add("a", cohort="north")
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"name": "a", "cohort": "north"}, "already"),
            ({"name": "a b", "cohort": "north"}, "letters"),
            ({"name": "c", "cohort": "south"}, "no cohort 'south'"),
            ({"name": "c", "cohort": None}, "one cohort"),
            ({"name": "c", "cohort": "north", "role": "root"}, "role"),
        ]
        for arguments, told in wrong:
            with pytest.raises(StoreError, match=told):
                devices.add(**arguments)
        with pytest.raises(StoreError, match="no device 'z'"):
            devices.revoke("z")
        assert [device.name for device in devices.list()] == ["a"]
