"""Tests of a store: what it knows of devices, if it keeps that."""

from __future__ import annotations

import msgspec
import pytest

from cema.cloud.store.activity import ActivityStore, DeviceActivity, Poll, activity_of
from cema.cloud.store.base import BacklogFull, Store
from cema.testing.store_case import StoreCase
from cema.testing.store_data import numbered_sample

__all__ = ["ActivityTests"]


class ActivityTests(StoreCase):
    """What devices send and ask for is kept by device."""

    @pytest.fixture
    def heard(self, store: Store) -> ActivityStore:
        """Return the store, if it keeps activity."""
        if not isinstance(store, ActivityStore):
            pytest.skip("this store keeps no activity of devices")
        return store

    def test_what_a_device_sends_is_added_up_and_its_last_sample_is_kept(
        self, store: Store, heard: ActivityStore
    ) -> None:
        assert activity_of(store) == {}
        first, last = numbered_sample(1, 64), msgspec.structs.replace(numbered_sample(2, 80), version=7)
        store.put("north", [first, last], device="cam", now=10.0, max_backlog=10)
        store.put("north", [first], device="cam", now=12.0, max_backlog=10)
        store.put("north", [], device="cam", now=13.0, max_backlog=10)
        store.put("north", [first], device="other", now=11.0, max_backlog=10)
        found = heard.activity()
        assert found["cam"] == DeviceActivity(
            "cam", "north", 12.0, None, first.version, 3, 64 + 80 + 64, first.captured_at, 12.0
        )
        assert (found["other"].samples, found["other"].seen_at) == (1, 11.0)
        with pytest.raises(BacklogFull):
            store.put("north", [numbered_sample(9)], device="cam", now=20.0, max_backlog=0)
        assert heard.activity() == found, "what was not stored was not sent"

    def test_the_last_poll_of_each_device_is_kept(self, store: Store, heard: ActivityStore) -> None:
        heard.note_polls([Poll("north", "cam", 10.0, None), Poll("north", "far", 11.0, 3)])
        store.put("north", [numbered_sample(1)], device="cam", now=30.0, max_backlog=10)
        heard.note_polls([Poll("north", "cam", 20.0, 4)])
        found = heard.activity()
        assert (found["cam"].seen_at, found["cam"].has, found["cam"].samples) == (30.0, 4, 1)
        assert found["far"] == DeviceActivity("far", "north", 11.0, 3, None, 0, 0, None, None)

    def test_a_poll_that_names_no_version_says_nothing_of_the_one_before(self, heard: ActivityStore) -> None:
        heard.note_polls([Poll("north", "cam", 10.0, 4)])
        heard.note_polls([Poll("north", "cam", 20.0, None)])  # a program that was started anew
        assert heard.activity()["cam"].has == 4
        heard.note_polls([Poll("south", "cam", 30.0, None)])  # moved: versions are others there
        assert heard.activity()["cam"].has is None
