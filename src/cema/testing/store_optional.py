"""What a store promises beside the protocol, where it offers it: copies that can be restored, and a record of acts."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from cema.cloud.store.audits import AuditedAct, AuditStore
from cema.cloud.store.backups import BackupStore, restorer_of
from cema.cloud.store.base import Store
from cema.cloud.store.open import backend_of
from cema.errors import StoreError
from cema.testing.store_case import StoreCase, put
from cema.testing.store_data import numbered_sample, numbered_update

__all__ = ["OptionalTests"]


class OptionalTests(StoreCase):
    """Tests of the members that a store may have; those of a store without them are skipped."""

    def test_a_copy_is_of_one_moment_and_becomes_a_store_with_a_floor(self, tmp_path: Path) -> None:
        place, copy = tmp_path / "place", tmp_path / "copy"
        place.mkdir()
        store = self.open_north(place)
        if not isinstance(store, BackupStore):
            store.close()
            pytest.skip("the store makes no copies")
        backend, address = backend_of(self.url(place))
        restorer = restorer_of(backend)
        put(store, [numbered_sample(i) for i in range(4)])
        token = store.devices(["north"]).add("cam", cohort="north")
        _publish(store, 2)
        content = store.backup(copy, now=5.0, notes={"a": 1})
        assert restorer.inspect(copy) == content
        assert (content.made_at, content.notes, content.devices) == (5.0, {"a": 1}, 1)
        assert (content.cohorts["north"].version, content.cohorts["north"].samples) == (2, 4)
        with pytest.raises(FileExistsError):
            store.backup(copy, now=5.0, notes={})
        put(store, [numbered_sample(i) for i in range(4, 7)])
        _publish(store, 5)
        with pytest.raises(StoreError, match="using"):
            restorer.restore(address, copy, floors={}, replace=True)
        store.close()
        assert restorer.newest_versions_at(address) == {"north": 5}
        with pytest.raises(StoreError, match="already"):
            restorer.restore(address, copy, floors={}, replace=False)
        assert restorer.restore(address, copy, floors={"north": 40, "new": 7}, replace=True).kept
        assert restorer.newest_versions_at(address) == {"north": 39, "new": 6}
        for _ in range(2):  # the floor is the store's, not the process's
            with closing(self.open_north(place)) as again:
                assert isinstance(again, BackupStore)
                assert again.backlog("north").samples == 4
                assert again.latest_update("north") == numbered_update(2)
                assert again.devices(["north"]).authenticate(token) is not None
                assert [again.version_floor(name) for name in ("north", "new", "other")] == [40, 7, 0]
                with pytest.raises(StoreError, match="40"):
                    _publish(again, 39)
        with closing(self.open_north(place)) as again:
            _publish(again, 40)
            assert again.latest_update("north") == numbered_update(40)

    def test_what_is_no_copy_is_refused(self, tmp_path: Path) -> None:
        place, copy = tmp_path / "place", tmp_path / "copy"
        place.mkdir()
        with closing(self.open_north(place)) as store:
            if not isinstance(store, BackupStore):
                pytest.skip("the store makes no copies")
            _publish(store, 2)
        backend, address = backend_of(self.url(place))
        copy.write_bytes(b"something else" * 1000)
        with pytest.raises(StoreError):
            restorer_of(backend).inspect(copy)
        with pytest.raises(StoreError):
            restorer_of(backend).restore(address, copy, floors={}, replace=True)
        with closing(self.open_north(place)) as store:
            assert store.latest_update("north") == numbered_update(2)

    def test_acts_are_kept_in_order_and_over_restarts(self, tmp_path: Path) -> None:
        acts = [AuditedAct("os:ann", "thing.do", f"{i}", {"i": i, "nothing": None}) for i in range(4)]
        with closing(self.open_north(tmp_path)) as store:
            if not isinstance(store, AuditStore):
                pytest.skip("the store keeps no acts")
            for i, act in enumerate(acts):
                store.record_act(act, now=float(i))
        with closing(self.open_north(tmp_path)) as store:
            assert isinstance(store, AuditStore)
            found = store.audit(limit=10)
            assert [(one.at, one.act) for one in found] == [(float(i), act) for i, act in enumerate(acts)]
            assert list(store.audit(after=found[0].seq, limit=2)) == list(found[1:3])
            assert list(store.newest_audit(3)) == list(found[1:])

    def test_what_is_done_with_devices_is_an_act_and_what_fails_is_none(self, store: Store) -> None:
        if not isinstance(store, AuditStore):
            pytest.skip("the store keeps no acts")
        devices = store.audited_devices(["north"], actor="os:ann")
        devices.add("cam", cohort="north")
        with pytest.raises(StoreError):
            devices.add("cam", cohort="north")
        devices.renew("cam")
        devices.revoke("cam")
        with pytest.raises(StoreError):
            devices.renew("cam")
        assert [one.act for one in store.audit(limit=10)] == [
            AuditedAct("os:ann", "device.add", "cam", {"role": "device", "cohort": "north"}),
            AuditedAct("os:ann", "device.renew", "cam"),
            AuditedAct("os:ann", "device.revoke", "cam"),
        ]


def _publish(store: Store, version: int) -> None:
    state = store.claim("north")
    store.commit_step("north", state.cursor, b"", numbered_update(version), epoch=state.epoch, now=1.0)
