"""Tests of a store: another base model for a cohort, if it takes any."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cema.cloud.store.audits import AuditStore
from cema.cloud.store.base import UPDATES_KEPT, Fenced, OtherBase, Store, UpdateTag
from cema.cloud.store.bases import BaseStore, DeviceBase, Migration, base_at, newest_of, periods_of
from cema.cloud.store.control import ActRefused, ControlStore, Pin, Rollback, Stop
from cema.errors import StoreError
from cema.testing.store_case import BASE, StoreCase, put
from cema.testing.store_data import numbered_sample, numbered_update

__all__ = ["BaseTests"]

NEW, THIRD = "1" * 64, "2" * 64


def migration(serial: int, *, old: str = BASE, new: str = NEW, **more: Any) -> Migration:
    """Return a change of base with a notice of its own."""
    return Migration(old=old, new=new, serial=serial, notice=f"notice {serial}".encode(), **more)


class BaseTests(StoreCase):
    """A cohort is given another base model whole, and its versions are told apart by base."""

    @pytest.fixture
    def based(self, store: Store) -> BaseStore:
        """Return the store, if it changes bases, with three versions and eight samples, of which five are done."""
        if not isinstance(store, BaseStore):
            pytest.skip("this store changes no bases")
        put(store, [numbered_sample(i) for i in range(8)])
        seqs = store.sequence("north", after=0, limit=8)
        epoch = store.claim("north").epoch
        for version in (1, 2, 3):
            _commit(store, epoch, numbered_update(version), cursor=seqs[4])
        return store

    def test_all_stays_but_what_was_learned(self, store: Store, based: BaseStore) -> None:
        token = store.devices(["north"]).add("cam", cohort="north")
        before, samples = store.claim("north"), store.fresh("north", after=0, limit=99)
        assert before.checkpoint is not None
        assert based.periods("north") == periods_of(store, "north") == ()
        assert based.bundle_notice("north") is None
        periods = based.migrate("north", migration(1, path="/srv/new"), actor="ann", now=5.0)
        assert [(p.base, p.after, p.at, p.path) for p in periods] == [
            (BASE, 0, 0.0, ""),
            (NEW, 3, 5.0, "/srv/new"),
        ]
        assert based.periods("north") == periods
        assert based.bundle_notice("north") == (1, b"notice 1")
        assert store.status("north")["base"] == NEW
        after = store.claim("north")
        assert (after.cursor, after.checkpoint) == (before.cursor, None)
        assert store.fresh("north", after=0, limit=99) == samples
        assert store.backlog("north").samples == 3
        assert store.latest_update("north") == numbered_update(3)
        assert store.devices(["north"]).authenticate(token) is not None

    def test_whoever_works_on_the_old_base_is_fenced(self, store: Store, based: BaseStore) -> None:
        state = store.claim("north")
        based.migrate("north", migration(1), actor="ann", now=5.0)
        with pytest.raises(Fenced):
            store.commit_step("north", state.cursor, b"", numbered_update(4), epoch=state.epoch, now=6.0)
        assert store.latest_update("north") == numbered_update(3)

    @pytest.mark.parametrize(("again", "waiting"), [(0, 3), (2, 3), (3, 3), (5, 5), (8, 8), (99, 8)])
    def test_the_newest_samples_wait_again(
        self, store: Store, based: BaseStore, again: int, waiting: int
    ) -> None:
        based.migrate("north", migration(1, again=again), actor="ann", now=5.0)
        state = store.claim("north")
        assert store.backlog("north").samples == waiting
        assert len(store.sequence("north", after=state.cursor, limit=99)) == waiting

    def test_versions_are_told_apart_by_base(self, store: Store, based: BaseStore) -> None:
        based.migrate("north", migration(1), actor="ann", now=5.0)
        assert (based.newest_of("north", NEW), based.tag_of("north", NEW)) == (None, None)
        assert newest_of(store, "north", NEW) is None
        epoch = store.claim("north").epoch
        _commit(store, epoch, numbered_update(4))
        fourth, third = numbered_update(4), numbered_update(3)
        assert based.newest_of("north", NEW) == newest_of(store, "north", NEW) == fourth
        assert based.tag_of("north", NEW) == UpdateTag(4, fourth.digest)
        assert based.newest_of("north", BASE) == third
        assert based.tag_of("north", BASE) == UpdateTag(3, third.digest)
        assert based.newest_of("north", THIRD) is None
        # Back to the first one: its versions are those of both times.
        based.migrate("north", migration(2, old=NEW, new=BASE), actor="ann", now=7.0)
        assert based.newest_of("north", BASE) == third
        epoch = store.claim("north").epoch
        with pytest.raises(StoreError, match="must follow version 4"):
            _commit(store, epoch, numbered_update(4, b"another"))
        _commit(store, epoch, numbered_update(5))
        assert based.newest_of("north", BASE) == numbered_update(5)
        assert based.newest_of("north", NEW) == fourth
        periods = based.periods("north")
        assert [base_at(periods, version) for version in range(1, 7)] == [BASE] * 3 + [NEW] + [BASE] * 2

    def test_the_newest_before_a_moment_or_else_the_oldest(self, store: Store, based: BaseStore) -> None:
        based.migrate("north", migration(1), actor="ann", now=5.0)
        epoch = store.claim("north").epoch
        for version in (4, 5):
            update = numbered_update(version)
            object.__setattr__(update, "created", 100.0 * version)
            _commit(store, epoch, update)
        for before, version in ((401.0, 4), (500.0, 4), (501.0, 5), (1.0, 4)):
            tag, found = (
                based.tag_of("north", NEW, before=before),
                based.newest_of("north", NEW, before=before),
            )
            assert tag is not None
            assert found is not None
            assert (tag.version, found.version) == (version, version)

    def test_what_has_expired_may_be_left_out(self, store: Store, based: BaseStore) -> None:
        based.migrate("north", migration(1), actor="ann", now=5.0)
        expires = numbered_update(3).expires
        assert based.newest_of("north", BASE, alive=expires - 1) == numbered_update(3)
        assert based.tag_of("north", BASE, alive=expires) is None
        assert based.newest_of("north", BASE, alive=expires, before=99.0) is None

    def test_the_last_version_of_every_base_is_kept(self, store: Store, based: BaseStore) -> None:
        based.migrate("north", migration(1), actor="ann", now=5.0)
        epoch = store.claim("north").epoch
        for version in range(4, 6 + UPDATES_KEPT):
            _commit(store, epoch, numbered_update(version))
        third, fourth = numbered_update(3), numbered_update(4)
        assert based.newest_of("north", BASE) == third
        assert store.artifact("north", third.digest) == third.payload
        # And the first of the newest base, for those that do not say which they have.
        assert based.newest_of("north", NEW, before=0.0) == fourth
        assert store.artifact("north", numbered_update(5).digest) is None
        assert store.artifact("north", numbered_update(2).digest) is None

    def test_a_cohort_is_tied_to_the_base_that_it_was_given(self, store: Store, based: BaseStore) -> None:
        based.migrate("north", migration(1, path="/srv/new"), actor="ann", now=5.0)
        store.open_cohort("north", base=NEW)
        for base in (BASE, THIRD):
            with pytest.raises(OtherBase, match="/srv/new"):
                store.open_cohort("north", base=base)

    def test_a_cohort_without_a_step_may_be_given_another_base_too(self, store: Store) -> None:
        if not isinstance(store, BaseStore):
            pytest.skip("this store changes no bases")
        store.migrate("north", migration(1), actor="ann", now=5.0)
        with pytest.raises(OtherBase):
            store.open_cohort("north", base=BASE)
        assert store.tag_of("north", NEW) is None

    def test_a_notice_alone_changes_no_base(self, store: Store, based: BaseStore) -> None:
        periods = based.migrate("north", migration(1), actor="ann", now=5.0)
        epoch = store.claim("north").epoch
        assert based.migrate("north", migration(2, old=NEW, new=NEW), actor="ann", now=6.0) == periods
        assert based.bundle_notice("north") == (2, b"notice 2")
        _commit(store, epoch, numbered_update(4))  # nobody was fenced

    def test_what_does_not_fit_changes_nothing(self, store: Store, based: BaseStore) -> None:
        based.migrate("north", migration(2), actor="ann", now=5.0)
        before = store.status("north"), based.periods("north"), based.bundle_notice("north")
        for wrong, told in (
            (migration(3), "has the base model"),
            (migration(2, old=NEW, new=THIRD), "must follow notice 2"),
        ):
            with pytest.raises(StoreError, match=told):
                based.migrate("north", wrong, actor="ann", now=6.0)
        with pytest.raises(StoreError, match="no cohort 'west'"):
            based.migrate("west", migration(1), actor="ann", now=6.0)
        assert (store.status("north"), based.periods("north"), based.bundle_notice("north")) == before

    def test_acts_on_versions_and_bases_keep_out_of_each_other(self, store: Store, based: BaseStore) -> None:
        if not isinstance(store, ControlStore):
            pytest.skip("this store takes no acts")
        store.act("north", Pin(to=2), actor="ann", now=4.0)
        with pytest.raises(StoreError, match="waits for the worker"):
            based.migrate("north", migration(1), actor="ann", now=5.0)
        epoch = store.claim("north").epoch
        waiting = store.waiting_act("north")
        assert waiting is not None
        done = {"control": waiting.number, "acted": _done(waiting)}
        _commit(store, epoch, numbered_update(4, numbered_update(2).payload), **done)
        with pytest.raises(StoreError, match="resume it first"):
            based.migrate("north", migration(1), actor="ann", now=5.0)
        store.act("north", Stop(), actor="ann", now=6.0)  # the source model, whichever that is
        based.migrate("north", migration(1), actor="ann", now=7.0)
        assert store.control("north").publishing == "stopped"
        epoch = store.claim("north").epoch
        _commit(store, epoch, numbered_update(5))
        for act in (Pin(to=4), Rollback(to=3)):
            with pytest.raises(ActRefused, match="another base model"):
                store.act("north", act, actor="ann", now=8.0)
        assert store.act("north", Pin(to=5), actor="ann", now=9.0).content == numbered_update(5).digest

    def test_what_devices_say_of_their_base_is_kept(self, based: BaseStore) -> None:
        assert based.device_bases("north") == []
        based.note_device_bases([])
        based.note_device_bases([DeviceBase("north", "b", BASE, 1.0), DeviceBase("north", "a", BASE, 2.0)])
        based.note_device_bases([DeviceBase("north", "b", NEW, 3.0), DeviceBase("south", "c", NEW, 4.0)])
        assert based.device_bases("north") == [
            DeviceBase("north", "a", BASE, 2.0),
            DeviceBase("north", "b", NEW, 3.0),
        ]

    def test_who_migrates_is_an_act(self, store: Store, based: BaseStore) -> None:
        if not isinstance(store, AuditStore):
            pytest.skip("the store keeps no acts")
        based.migrate("north", migration(1), actor="os:ann", now=5.0)
        (found,) = store.newest_audit(1)
        assert (found.at, found.act.actor, found.act.name, found.act.subject) == (
            5.0,
            "os:ann",
            "cohort.migrate",
            "north",
        )
        assert found.act.detail == {"from": BASE, "to": NEW, "serial": 1}


def _done(act: Any) -> Any:
    return msgspec.structs.replace(act, state="done", done_at=6.0, version=4)


def _commit(store: Any, epoch: int, update: Any, *, cursor: int | None = None, **more: Any) -> None:
    at = store.status("north")["cursor"] if cursor is None else cursor
    store.commit_step("north", at, b"learned", update, epoch=epoch, now=1.0, **more)
