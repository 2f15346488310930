"""A store against a model in memory, under random uploads, commits, deletions, crashes of the worker and reopening."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cema.cloud.store.base import BacklogFull, Store
from cema.cloud.store.data import DataFilter, DataStore
from cema.errors import StoreFull
from cema.testing.store_data import numbered_sample, numbered_update

__all__ = ["StoreMachine"]

BACKLOG = 30
EVERYTHING = 10**6


class StoreMachine(RuleBasedStateMachine):
    """One store, used in a random order; each invariant is checked after each step.

    Parameters
    ----------
    make
        Opens the store: new at the first call, the same one at each later call.
    check_size
        Raises when the store takes more than its cap.
    remove
        Called at the end, when the store is closed.
    max_bytes
        The store's cap; samples have up to a twentieth of it.
    """

    def __init__(
        self,
        make: Callable[[], Store],
        check_size: Callable[[Store], None],
        remove: Callable[[], None],
        *,
        max_bytes: int,
    ) -> None:
        super().__init__()
        self.make = make
        self.check_size = check_size
        self.remove = remove
        self.unit = max_bytes // 800
        self.order: list[str] = []  # every sample ever stored and not deleted, in order of arrival
        self.deleted: set[str] = set()
        self.done = 0  # how many of them the worker is through with
        self.checkpoint: bytes | None = None
        self.version = 0
        self.open()

    def open(self) -> None:
        """Open the store as a worker that has just started."""
        self.store = self.make()
        self.store.open_cohort("north", base="0" * 64)
        self.state = self.store.claim("north")

    def teardown(self) -> None:
        """Remove the store."""
        self.store.close()
        self.remove()

    @rule(numbers=st.lists(st.integers(0, 100), min_size=1, max_size=12))
    def upload(self, numbers: list[int]) -> None:
        """Send samples, some of them again."""
        samples = [numbered_sample(n, 8 + self.unit * (n % 40)) for n in numbers]
        known = self.deleted.union(self.order)
        new = [i for i in dict.fromkeys(s.id for s in samples) if i not in known]
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
        """Commit a step on some of the samples that wait."""
        waiting = self.store.sequence("north", after=self.cursor(), limit=EVERYTHING)
        taken = max(1, round(share * len(waiting)))
        checkpoint = b"checkpoint %d" % taken * 100
        self.store.commit_step(
            "north",
            waiting[taken - 1],
            checkpoint,
            numbered_update(self.version + 1) if publish else None,
            epoch=self.state.epoch,
            now=1.0,
        )
        self.done += taken
        self.checkpoint = checkpoint
        self.version += publish

    @rule(label=st.integers(0, 3))
    def delete(self, label: int) -> None:
        """Delete the samples of one class, where the store does that; those that were evicted are gone already."""
        if not isinstance(self.store, DataStore):
            return
        samples = self.store.fresh("north", after=0, limit=EVERYTHING)
        gone = {sample.id for sample in samples if sample.label == label}
        try:
            receipt = self.store.delete_data("north", DataFilter(label=label), actor="os:ann", now=1.0)
        except StoreFull:
            return  # as for uploads
        assert receipt.samples == len(gone)
        self.done -= sum(i in gone for i in self.order[: self.done])
        self.order = [i for i in self.order if i not in gone]
        self.deleted |= gone

    @rule()
    def reopen(self) -> None:
        """Close the store and start again on what it kept."""
        self.store.close()
        self.open()
        assert self.state.checkpoint == self.checkpoint
        assert self.state.attempts == 0

    def cursor(self) -> int:
        """Return how far the worker is."""
        return int(self.store.status("north")["cursor"])

    @invariant()
    def what_waits_is_all_there_in_order(self) -> None:
        """Compare what waits with the model."""
        waiting = [s.id for s in self.store.fresh("north", after=self.cursor(), limit=EVERYTHING)]
        assert waiting == self.order[self.done :]
        assert self.store.backlog("north").samples == len(waiting)

    @invariant()
    def only_the_oldest_processed_are_gone_and_counted(self) -> None:
        """Compare what was evicted with the model."""
        here = [s.id for s in self.store.fresh("north", after=0, limit=EVERYTHING)]
        assert here == self.order[len(self.order) - len(here) :]
        assert self.store.counters("north").get("evicted.byte_cap", 0) == len(self.order) - len(here)

    @invariant()
    def the_cap_holds(self) -> None:
        """Compare the store's size with its cap."""
        self.check_size(self.store)

    @invariant()
    def the_version_is_the_last_one_committed(self) -> None:
        """Compare the newest update with the model."""
        assert self.store.status("north")["version"] == self.version
        latest = self.store.latest_update("north")
        assert latest == (numbered_update(self.version) if self.version else None)
