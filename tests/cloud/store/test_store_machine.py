"""The store against a model in memory, under random uploads, commits, crashes of the worker and reopening."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cema.cloud.store.sqlite import PublishedUpdate, Store
from cema.cloud.store.sqlite_samples import BacklogFull
from cema.errors import StoreFull
from cema.formats.sample import Sample

CAP = 400_000
BACKLOG = 30


def sample(number: int) -> Sample:
    image = number.to_bytes(8, "little") * (1 + 61 * (number % 40))
    return Sample(
        id=hashlib.sha256(image).hexdigest(), image=image, entropy=0.0, label=0, version=0, captured_at=0.0
    )


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "cema.db"
        self.order: list[str] = []  # every sample ever stored, in order of arrival
        self.done = 0  # how many of them the worker is through with
        self.checkpoint: bytes | None = None
        self.version = 0
        self.open()

    def open(self) -> None:
        self.store = Store(self.path, max_bytes=CAP)
        self.store.open_cohort("north", base="0" * 64)
        self.state = self.store.claim("north")

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(numbers=st.lists(st.integers(0, 100), min_size=1, max_size=12))
    def upload(self, numbers: list[int]) -> None:
        samples = [sample(n) for n in numbers]
        new = [i for i in dict.fromkeys(s.id for s in samples) if i not in set(self.order)]
        try:
            verdicts = self.store.put("north", samples, device="d", now=1.0, max_backlog=BACKLOG)
        except BacklogFull:
            assert len(self.order) - self.done + len(new) > BACKLOG
            return
        except StoreFull:
            return  # nothing may have changed: the invariants see to that
        assert [v.id for v in verdicts] == [s.id for s in samples]
        assert sorted(v.id for v in verdicts if v.verdict == "stored") == sorted(new)
        self.order += new

    @precondition(lambda self: self.done < len(self.order))
    @rule(share=st.floats(0, 1), publish=st.booleans())
    def step(self, share: float, publish: bool) -> None:
        waiting = self.store.sequence("north", after=self.cursor(), limit=1000)
        taken = max(1, round(share * len(waiting)))
        payload = b"payload %d" % self.version
        update = PublishedUpdate(
            self.version + 1, hashlib.sha256(payload).hexdigest(), b"e", payload, 1.0, 2.0
        )
        checkpoint = b"checkpoint %d" % taken * 100
        self.store.commit_step(
            "north",
            waiting[taken - 1],
            checkpoint,
            update if publish else None,
            epoch=self.state.epoch,
            now=1.0,
        )
        self.done += taken
        self.checkpoint = checkpoint
        self.version += publish

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()
        assert self.state.checkpoint == self.checkpoint
        assert self.state.attempts == 0

    def cursor(self) -> int:
        return int(self.store.status("north")["cursor"])

    @invariant()
    def what_waits_is_all_there_in_order(self) -> None:
        waiting = [s.id for s in self.store.fresh("north", after=self.cursor(), limit=1000)]
        assert waiting == self.order[self.done :]
        assert self.store.backlog("north").samples == len(waiting)

    @invariant()
    def only_the_oldest_processed_are_gone_and_counted(self) -> None:
        here = [s.id for s in self.store.fresh("north", after=0, limit=1000)]
        assert here == self.order[len(self.order) - len(here) :]
        assert self.store.counters("north").get("evicted.byte_cap", 0) == len(self.order) - len(here)

    @invariant()
    def the_cap_holds(self) -> None:
        assert self.path.stat().st_size <= CAP

    @invariant()
    def the_version_is_the_last_one_committed(self) -> None:
        assert self.store.status("north")["version"] == self.version


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
