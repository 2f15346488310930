"""What every store of the cloud must do, as tests to inherit.

pytest and hypothesis are needed; the extra ``dev`` installs them. A failed assertion shows its values when the line
``pytest.register_assert_rewrite("cema.testing")`` stands in your ``conftest.py``.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from cema.cloud.store.base import Fenced, Store
from cema.cloud.store.devices import Device
from cema.errors import StoreUnavailable
from cema.testing.store_activity import ActivityTests
from cema.testing.store_agreements import AgreementTests
from cema.testing.store_bases import BaseTests
from cema.testing.store_case import MANY, PATIENCE, ROOMY, StoreCase, put, together
from cema.testing.store_control import ControlTests
from cema.testing.store_data import numbered_sample, numbered_update
from cema.testing.store_draws import DrawTests
from cema.testing.store_fleet import FleetTests
from cema.testing.store_history import HistoryTests
from cema.testing.store_machine import StoreMachine
from cema.testing.store_offers import OfferTests
from cema.testing.store_optional import OptionalTests
from cema.testing.store_reports import ReportTests
from cema.testing.store_rights import RightsTests
from cema.testing.store_samples import SampleTests
from cema.testing.store_sessions import SessionTests
from cema.testing.store_steps import DeviceTests, StepTests

__all__ = ["StoreSuite"]

# A process that stores one sample after another and says so, until it is killed.
WRITER = """
import itertools, sys
from cema.cloud.store.open import open_store
from cema.testing.store_data import numbered_sample

store = open_store(sys.argv[1], max_bytes=int(sys.argv[2]))
for number in itertools.count():
    sample = numbered_sample(number)
    store.put("north", [sample], device="d", now=1.0, max_backlog=10**6)
    print(sample.id, flush=True)
"""


class StoreSuite(
    SampleTests,
    StepTests,
    ActivityTests,
    AgreementTests,
    BaseTests,
    ControlTests,
    DeviceTests,
    DrawTests,
    FleetTests,
    HistoryTests,
    OfferTests,
    OptionalTests,
    ReportTests,
    RightsTests,
    SessionTests,
):
    """Tests of a `cema.cloud.store.base.Store`: inherit them, and say which store.

    A class of your own overrides ``url(folder)``: the URL of the store that belongs to an empty folder. For a server
    that is, say, a schema named after the folder. A store that has no URL overrides ``make_store(folder, *,
    max_bytes)`` in its place, and its processes are then not killed.

    Attributes
    ----------
    cap
        The smallest cap that the tests give a store, in bytes. A store that needs more for itself sets a larger one.

    Examples
    --------
    >>> class TestMine(StoreSuite):
    ...     __test__ = True
    ...
    ...     def url(self, folder):
    ...         return f"sqlite:{folder / 'cema.db'}"
    """

    def test_writers_that_send_the_same_samples_store_each_once(self, tmp_path: Path) -> None:
        stores = [self.open_north(tmp_path), self.open_north(tmp_path)]
        samples = [numbered_sample(i) for i in range(40)]
        verdicts: list[str] = []

        def send(store: Store) -> None:
            for i in range(0, 40, 8):
                verdicts.extend(put(store, samples[i : i + 8]))

        together(*(lambda store=store: send(store) for store in (*stores, *stores)))
        assert sorted(verdicts) == ["duplicate"] * 120 + ["stored"] * 40
        for store in stores:
            assert store.backlog("north").samples == 40
            store.close()

    def test_the_worker_that_claimed_last_is_the_only_one_that_commits(self, tmp_path: Path) -> None:
        first, second = self.open_north(tmp_path), self.open_north(tmp_path)
        old, new = first.claim("north"), second.claim("north")
        with pytest.raises(Fenced):
            first.commit_step("north", 0, b"old", epoch=old.epoch, now=1.0)
        second.commit_step("north", 0, b"new", epoch=new.epoch, now=1.0)
        assert first.claim("north").checkpoint == b"new"
        first.close()
        second.close()

    def test_of_workers_that_claim_at_once_one_commits(self, tmp_path: Path) -> None:
        stores = [self.open_north(tmp_path), self.open_north(tmp_path)]
        claimed = threading.Barrier(len(stores))
        committed: list[int] = []

        def work(store: Store) -> None:
            epoch = store.claim("north").epoch
            claimed.wait(PATIENCE)
            try:
                store.commit_step("north", 0, b"%d" % epoch, epoch=epoch, now=1.0)
            except Fenced:
                return
            committed.append(epoch)

        together(*(lambda store=store: work(store) for store in stores))
        state = stores[0].claim("north")
        assert [state.checkpoint] == [b"%d" % epoch for epoch in committed]
        assert state.epoch > committed[0]
        for store in stores:
            store.close()

    def test_everything_is_there_after_reopening(self, tmp_path: Path) -> None:
        store = self.open_north(tmp_path)
        put(store, [numbered_sample(i) for i in range(5)])
        seqs = store.sequence("north", after=0, limit=5)
        state = store.claim("north")
        store.commit_step("north", seqs[1], b"kept", numbered_update(1), epoch=state.epoch, now=1.0)
        store.put_report("north", {"ready": True}, now=4.0)
        token = store.devices(["north"]).add("cam", cohort="north", now=2.0)
        before, samples = store.status("north"), store.fresh("north", after=0, limit=9)
        store.close()
        store = self.open_north(tmp_path)
        assert store.status("north") == before
        assert store.fresh("north", after=0, limit=9) == samples
        assert store.latest_update("north") == numbered_update(1)
        assert store.devices([]).authenticate(token) == Device("cam", "device", "north", 2.0, None)
        again = store.claim("north")
        assert (again.cursor, again.checkpoint, again.epoch) == (seqs[1], b"kept", state.epoch + 1)
        store.close()

    def test_what_was_acknowledged_survives_the_kill_of_the_process(self, tmp_path: Path) -> None:
        if type(self).url is StoreCase.url:
            pytest.skip("another process cannot open this store: it has no URL")
        self.open_north(tmp_path).close()
        command = [sys.executable, "-c", WRITER, self.url(tmp_path), str(ROOMY * self.cap)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
            assert process.stdout is not None
            acknowledged = [line.strip() for line in itertools.islice(process.stdout, 20)]
            process.kill()
            acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
        store = self.open_north(tmp_path)
        stored = [s.id for s in store.fresh("north", after=0, limit=MANY)]
        assert len(acknowledged) >= 20
        assert stored[: len(acknowledged)] == acknowledged
        assert put(store, [numbered_sample(i) for i in range(20)]) == ["duplicate"] * 20
        store.close()

    def test_a_closed_store_is_unavailable(self, store: Store) -> None:
        devices = store.devices(["north"])
        store.close()
        store.close()
        calls: list[Callable[[], Any]] = [
            lambda: put(store, [numbered_sample(1)]),
            lambda: store.backlog("north"),
            lambda: store.count("north", {"n": 1}),
            devices.list,
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable, match="closed"):
                call()

    def test_whatever_happens_the_store_does_what_a_model_of_it_does(self) -> None:
        run_state_machine_as_test(
            self._machine,  # type: ignore[arg-type]  # a function will do
            settings=settings(max_examples=15, stateful_step_count=20, deadline=None),
        )

    def _machine(self) -> StoreMachine:
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name)
        return StoreMachine(
            lambda: self.make_store(path, max_bytes=self.cap),
            lambda store: self.check_size(path, store, self.cap),
            folder.cleanup,
            max_bytes=self.cap,
        )
